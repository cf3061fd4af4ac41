"""`kvloom sessions …`: stored conversations. Knows the façade only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli import amounts
from kvloom.cli.options import LOOM, Options, takes

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from kvloom.session.loom import Loom
    from kvloom.session.values import SessionInfo, Turn

app = typer.Typer(help="List, show and delete stored sessions.", no_args_is_help=True, rich_markup_mode=None)

RefArgument = Annotated[str, typer.Argument(metavar="ID", help="A session's name, its id, or 6 or more digits of it.")]


@app.command("list")
@takes(LOOM)
def list_(options: Options) -> None:
    """List the sessions of the home."""
    from kvloom.cli.panels import sessions_table
    from kvloom.session.home import HomeSessions

    output = options.output
    with HomeSessions(options.paths.home) as home:
        found = home.sessions()
    output.emit({"sessions": found}, lambda: sessions_table(found))


@app.command("show")
@takes(LOOM)
def show(options: Options, ref: RefArgument) -> None:
    """Show a session's turns and its context."""
    from kvloom.cli.stored import open_as_last
    from kvloom.session.stored import ModelNeededError

    output = options.output
    with output.progress() as progress:

        def shown(opens: Callable[[Options], Loom]) -> tuple[dict[str, object], RenderableType]:
            loom, is_as_last = open_as_last(options, ref, opens)
            with loom:
                return _shown(loom, ref, is_as_last=is_as_last)

        try:
            data, view = shown(lambda chosen: chosen.open_stored(progress))
        except ModelNeededError:
            data, view = shown(lambda chosen: chosen.open_loom(progress))
    output.emit(data, view)


def _shown(loom: Loom, ref: str, *, is_as_last: bool) -> tuple[dict[str, object], RenderableType]:
    """A session as data and for people."""
    from rich.console import Group

    from kvloom.cli.context_view import context_rows, context_view
    from kvloom.cli.resume import find_session, resume
    from kvloom.cli.standing import WindowOrigin, read_standing

    info = find_session(loom, ref)
    with resume(loom, info.id) as session:
        turns, usage, status = session.history(), session.usage(), loom.status()
        system = session.system
        standing = read_standing(loom, session, WindowOrigin.LAST if is_as_last else None)
    data: dict[str, object] = {
        "session": info, "system": system, "turns": turns, "usage": usage, "rows": context_rows(usage.segments),
    }  # fmt: skip
    return data, Group(context_view(usage, status, standing, info.name or info.id), turns_text(info, turns))


def turns_text(info: SessionInfo, turns: list[Turn]) -> str:
    """The conversation as text."""
    if not turns:
        return f"\nsession {info.name or info.id} has no turns yet"
    shown = [f"\n[{turn.number}] > {turn.user}\n{turn.answer}" for turn in turns]
    return amounts.printable("\n".join(shown))


@app.command("delete")
@takes(LOOM)
def delete(
    options: Options,
    refs: Annotated[list[str], typer.Argument(metavar="ID", help="Sessions, by name or id.")],
) -> None:
    """Delete sessions; the chunks they used stay."""
    from kvloom.cli.resume import find_session
    from kvloom.session.home import HomeSessions

    output = options.output
    with HomeSessions(options.paths.home) as home:
        found = [find_session(home, ref) for ref in refs]
        for info in found:
            home.delete_session(info.id)
    names = ", ".join(info.name or info.id for info in found)
    output.emit({"deleted": [info.id for info in found]}, f"deleted: {amounts.printable(names)}")
