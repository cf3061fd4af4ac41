"""`kvloom serve`: the HTTP server. Joins settings, accounts and the models to the edge, and says what it serves.

Knows no endpoint.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import Options, takes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.config import ServerSettings, Settings
    from kvloom.server.backend import ModelInfo

SCRATCH_SEQUENCES = 4
"""Native sequences that weaving takes beside those of the replies."""

SERVE = ("model", "context", "home", "kv_type", "json")
"""The shared options of this command: a request names its own fidelity and policy."""


@dataclass(frozen=True)
class Serving:
    """What is served, where, with which limits: one screen, or one JSON document. `model`: the first of `models`, which
    are loaded when they are asked for; `window`: its own."""

    version: str
    model: str
    models: tuple[str, ...]
    url: str
    window: int
    slots: int
    queue_size: int
    reuse: str
    needs_key: bool
    max_body_bytes: int
    drain_timeout_s: float
    home: str


@takes(SERVE)
def serve(
    options: Options,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Where to listen; others than loopback need keys.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", metavar="FILE", help="Serve the models of this registry (YAML or JSON).")
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", metavar="N", min=1, help="How many replies run at once.")
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            "--reuse", metavar="MODE", help="How KV of text known as a chunk is placed: off, exact, blend or splice."
        ),
    ] = None,
) -> None:
    """Serve a model, or those of a registry file, over HTTP: OpenAI's API, with chunks in it.

    Any OpenAI client works with the base URL that is shown. Ends on Ctrl-C or SIGTERM when the running replies have
    finished, the second time at once.
    """
    from kvloom.config import create_home, load_settings
    from kvloom.server.logs import set_up_logging
    from kvloom.server.run import check_address, listen
    from kvloom.server.run import serve as run

    registry = None if models is None else str(models)
    server = {"host": host, "port": port, "slots": slots, "reuse": reuse, "models": registry}
    given = {"model": options.model, "context": options.context, "kv_type": options.kv_type, "server": server}
    settings = load_settings(given, home=options.home)
    _check_slots(settings)
    home = create_home(options.paths)
    with ExitStack() as stack:
        from kvloom.server.account_gate import AccountKeys, AccountQuota
        from kvloom.server.accounts import Accounts
        from kvloom.server.app import create_app
        from kvloom.server.auth import is_loopback
        from kvloom.server.fleet import make_fleet
        from kvloom.server.keys import KeyRing
        from kvloom.server.quota import QuotaLedger

        accounts = stack.enter_context(Accounts(home))
        ring = KeyRing(accounts)
        check_address(settings.server.host, has_keys=ring.has_keys())
        # Before the model is loaded: a port in use shall not cost a minute of waiting.
        bound = stack.enter_context(listen(settings.server.host, settings.server.port))
        keys = AccountKeys(ring, is_always_required=not is_loopback(settings.server.host))
        quota = AccountQuota(stack.enter_context(QuotaLedger(accounts, settings.tiers)))
        progress = stack.enter_context(options.output.progress())
        fleet = make_fleet(settings, options.home, progress)
        app = create_app(fleet, settings.server, keys=keys, quota=quota)
        set_up_logging(settings.server.log_format)
        shown = bound.getsockname()

        def announce() -> None:
            progress.clear()
            told = _serving(settings, fleet.models(), _url(shown), needs_key=ring.has_keys(), home=str(home))
            options.output.emit(told, lambda: serving_view(told))

        run(app, settings.server, bound, announce)


def _check_slots(settings: Settings) -> None:
    from kvloom.errors import ConfigError

    most = settings.max_sequences - SCRATCH_SEQUENCES
    if settings.server.slots > most:
        raise ConfigError(
            f"{settings.server.slots} slots need {settings.server.slots + SCRATCH_SEQUENCES} native sequences, and"
            f" max_sequences is {settings.max_sequences}: raise it, or take at most {most} slots"
        )


def _url(address: tuple[str, int]) -> str:
    host, port = address[:2]
    # On all addresses: one that can be asked from here.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _serving(settings: Settings, infos: list[ModelInfo], url: str, *, needs_key: bool, home: str) -> Serving:
    from importlib.metadata import version

    limits: ServerSettings = settings.server
    return Serving(
        version=version("kvloom"),
        model=infos[0].id,
        models=tuple(info.id for info in infos),
        url=url,
        window=infos[0].window,
        slots=limits.slots,
        queue_size=limits.queue_size,
        reuse=limits.reuse,
        needs_key=needs_key,
        max_body_bytes=int(limits.max_body_bytes),
        drain_timeout_s=limits.drain_timeout_s,
        home=home,
    )


def serving_view(told: Serving) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    rows = {
        f"kvloom {told.version}": f"{amounts.printable(', '.join(told.models))} at {told.url}",
        "window": f"{amounts.tokens(told.window)} tokens, prompt and reply together",
        "replies": f"{told.slots} at once, {told.queue_size} wait, more are refused with 503",
        "KV reuse": told.reuse,
        "keys": "needed" if told.needs_key else "none made: this machine only (`kvloom keys add NAME` makes one)",
        "largest body": amounts.size(told.max_body_bytes),
        "home": amounts.printable(told.home),
        "to end": f"Ctrl-C; replies that run may take {told.drain_timeout_s:g} s more",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)
