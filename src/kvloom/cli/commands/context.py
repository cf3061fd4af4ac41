"""`kvloom context …`: what a chat's /context does, for a stored session. Opens it, calls one verb, shows its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from kvloom.cli.options import LOOM, Options, takes

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat
    from kvloom.cli.registry import Result

app = typer.Typer(
    help="Look at a stored session's context; size, compress, keep, restore and fork it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SessionOption = Annotated[
    str | None, typer.Option("--session", "-s", metavar="NAME", help="Name or id; default: the session used last.")
]
SnapshotArgument = Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, its beginning, or its title.")]
MaybeSnapshotArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A snapshot's id, its beginning, or its title.", show_default=False)
]


def _emit(options: Options, session: str | None, verb: Callable[[Chat], Result], *, needs_model: bool = False) -> None:
    """Carries a verb out. `needs_model`: it computes, or asks for memory beside a loaded model."""
    from kvloom.cli import amounts
    from kvloom.cli.stored import stored_chat
    from kvloom.session.stored import ModelNeededError

    try:
        with stored_chat(options, session, needs_model=needs_model) as chat:
            result = verb(chat)
    except ModelNeededError:  # nothing was changed: a session of another model, say
        with stored_chat(options, session) as chat:
            result = verb(chat)
    view = "" if result.view is None else result.view
    options.output.emit(result.data, amounts.printable(view) if isinstance(view, str) else view)


@app.command("show")
@takes(LOOM)
def show(options: Options, ref: MaybeSnapshotArgument = "", session: SessionOption = None) -> None:
    """Show the status and what takes the window.

    With a snapshot's ID: the conversation that it holds.
    """
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.messages(chat, ref) if ref else verbs.show(chat))


@app.command("stats")
@takes(LOOM)
def stats(options: Options, session: SessionOption = None) -> None:
    """Show the numbers.

    Used, free and reserve, tokens per turn, tiers, ledger, engine.
    """
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, verbs.stats)


@app.command("size")
@takes(LOOM)
def size(
    options: Options,
    tokens: Annotated[str, typer.Argument(metavar="N|auto", help="Tokens (16384, 16k), or what memory allows.")],
    session: SessionOption = None,
) -> None:
    """Give the session a window of another size."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.size(chat, tokens), needs_model=True)


@app.command("policy")
@takes(LOOM)
def policy(
    options: Options,
    name: Annotated[
        str, typer.Argument(metavar="POLICY", help="stop, clear, fifo, …; shown without.", show_default=False)
    ] = "",
    session: SessionOption = None,
) -> None:
    """Show or set what leaves a full window."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.policy(chat, name))


@app.command("compress")
@takes(LOOM)
def compress(
    options: Options,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate.")] = False,
    strategy: Annotated[
        str, typer.Option("--strategy", metavar="S", help="hybrid, summarize or truncate.", show_default=False)
    ] = "",
    session: SessionOption = None,
) -> None:
    """Sum up old turns, or let them leave; the ledger keeps them."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.compress(chat, strategy, dry_run=dry_run), needs_model=True)


@app.command("clear")
@takes(LOOM)
def clear(
    options: Options,
    turns: Annotated[list[str] | None, typer.Argument(metavar="TURN", help="Only the turns of these numbers.")] = None,
    session: SessionOption = None,
) -> None:
    """Take chunks and turns out of the context."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.clear(chat, turns or []))


@app.command("snapshot")
@takes(LOOM)
def snapshot(
    options: Options,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What to call it.", show_default=False)] = "",
    session: SessionOption = None,
) -> None:
    """Keep the present state under an id."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.snapshot(chat, title))


@app.command("list")
@takes(LOOM)
def list_(options: Options, session: SessionOption = None) -> None:
    """List the snapshots, the newest first."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, verbs.snapshots)


@app.command("restore")
@takes(LOOM)
def restore(options: Options, ref: MaybeSnapshotArgument = "", session: SessionOption = None) -> None:
    """Go back to a snapshot.

    Without ID a list to choose from, in a terminal with a filter and a preview.
    """
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.restore(chat, ref), needs_model=True)


@app.command("fork")
@takes(LOOM)
def fork(
    options: Options,
    ref: MaybeSnapshotArgument = "",
    name: Annotated[str, typer.Option("--name", help="Name of the new session.", show_default=False)] = "",
    session: SessionOption = None,
) -> None:
    """Start another session from a snapshot, or from the present state."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.fork(chat, ref, name))


@app.command("delete")
@takes(LOOM)
def delete(options: Options, ref: SnapshotArgument, session: SessionOption = None) -> None:
    """Delete a snapshot."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.delete(chat, ref))


@app.command("ledger")
@takes(LOOM)
def ledger(options: Options, session: SessionOption = None) -> None:
    """List what was given and is not in the prompt, why, and how it comes back."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, verbs.ledger)


@app.command("recall")
@takes(LOOM)
def recall(
    options: Options,
    refs: Annotated[list[str], typer.Argument(metavar="ID", help="Lines of the ledger, by the beginning of their id.")],
    session: SessionOption = None,
) -> None:
    """Bring turns and chunks of the ledger back to their places."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, lambda chat: verbs.recall(chat, refs))


@app.command("undo")
@takes(LOOM)
def undo(options: Options, session: SessionOption = None) -> None:
    """Take the last change of the context back."""
    from kvloom.cli import context_verbs as verbs

    _emit(options, session, verbs.undo, needs_model=True)
