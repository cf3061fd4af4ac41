"""`kvloom keys …`: the API keys of the server. Knows the home's accounts; loads no model and no server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import HOME, Options, takes
from kvloom.cli.registry import known

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.server.keys import ApiKey, KeyRing

app = typer.Typer(help="Make, list and revoke the server's API keys.", no_args_is_help=True, rich_markup_mode=None)


@contextmanager
def key_ring(options: Options) -> Iterator[KeyRing]:
    """The keys of the home that the options name."""
    from kvloom.config import create_home
    from kvloom.server.accounts import Accounts
    from kvloom.server.keys import KeyRing

    with Accounts(create_home(options.paths)) as accounts:
        yield KeyRing(accounts)


@app.command("add")
@takes(HOME)
def add(
    options: Options,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called in lists and logs.")],
    tenant: Annotated[
        str,
        typer.Option(
            "--tenant",
            metavar="TENANT",
            help="Whose chunks and sessions it sees; those of this command line and of a server without keys: local.",
        ),
    ] = "default",
    tier: Annotated[
        str, typer.Option("--tier", metavar="TIER", help="Which limits it has; tiers are in the settings.")
    ] = "default",
) -> None:
    """Make a key.

    It is shown this once and stored as a hash only: whoever loses it makes another.
    """
    from kvloom.config import load_settings

    known(tier, sorted(load_settings(home=options.home).tiers), "tier")
    with key_ring(options) as ring:
        made = ring.add(name, tenant, tier)
    data = {"key": made.text, "id": made.key.id, "name": name, "tenant": tenant, "tier": tier}
    options.output.note("this key is not shown again:")
    options.output.emit(data, made.text)


@app.command("list")
@takes(HOME)
def list_(options: Options) -> None:
    """List the keys, the revoked ones too."""
    with key_ring(options) as ring:
        found = ring.list()
    options.output.emit({"keys": found}, lambda: keys_table(found))


@app.command("revoke")
@takes(HOME)
def revoke(
    options: Options,
    ref: Annotated[str, typer.Argument(metavar="KEY", help="The key's name, its id, or 6 or more digits of it.")],
) -> None:
    """Revoke a key.

    From now on it is refused, by a server that is running too.
    """
    with key_ring(options) as ring:
        key = ring.revoke(ref)
    options.output.emit({"revoked": key}, f"revoked: {amounts.printable(key.name)} ({key.id})")


def keys_table(keys: tuple[ApiKey, ...]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not keys:
        return "no keys yet: `kvloom keys add NAME`; without one the server serves this machine only"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("id", "name", "tenant", "tier", "made", "last used", "state"):
        table.add_column(title)
    for key in keys:
        used = amounts.age(key.last_used_s) if key.last_used_s is not None else "never"
        state = f"revoked {amounts.age(key.revoked_s)}" if key.revoked_s is not None else "in force"
        name = Text(amounts.printable(key.name))
        table.add_row(key.id, name, key.tenant, key.tier, amounts.age(key.created_s), used, state)
    return table
