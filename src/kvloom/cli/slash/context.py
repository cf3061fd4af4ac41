"""Slash commands on the whole context: look at it, clear it, take back, ask again. Knows the façade only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.context_view import attention, context_rows, context_view, stats_view
from kvloom.cli.registry import Arguments, Result, choose, slash
from kvloom.cli.slash.completion import words

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat

GROUP = "Context"


@slash(
    "/context [prompt|stats]",
    "What takes the window; `prompt` shows exactly what the model sees, `stats` the tiers and the engine.",
    group=GROUP,
    complete=words("prompt", "stats"),
)
def context(chat: Chat, args: Arguments) -> Result:
    what = args.at_most_one("word")
    if not what:
        return _show_context(chat)
    if choose(what, ("prompt", "stats"), args) == "prompt":
        text, tokens = chat.session.prompt(), chat.session.tokens()
        return Result({"text": text, "tokens": tokens}, text)
    usage, status = chat.session.usage(), chat.loom.status()
    return Result({"usage": usage, "status": status}, stats_view(usage, status))


def _show_context(chat: Chat) -> Result:
    usage, status = chat.session.usage(), chat.loom.status()
    data = {
        "session": {"id": chat.session.id, "name": chat.session.name},
        "usage": usage,
        "rows": context_rows(usage.segments),
        "status": status,
        "notes": attention(usage),
    }
    return Result(data, context_view(usage, status, chat.session.name or chat.session.id))


@slash(
    "/clear [TURN…]",
    "Take this context's chunks and turns out, or the turns of these numbers; the store is untouched.",
    group=GROUP,
)
def clear(chat: Chat, args: Arguments) -> Result:
    wrong = [word for word in args.words if not word.isdigit()]
    if wrong:
        raise args.wrong(f"a turn is given by its number, got {wrong[0]!r}")
    turns = [int(word) for word in args.words]
    chat.session.clear(turns or None)
    used = chat.session.usage().used
    what = f"turn{'s' if len(turns) > 1 else ''} {', '.join(args.words)}" if turns else "chunks and turns"
    view = f"cleared {what}; {amounts.tokens(used)} tokens used; /undo takes it back"
    return Result({"turns": turns, "used": used}, view)


@slash("/retry", "Take the last reply back and ask its question again.", group=GROUP)
def retry(chat: Chat, args: Arguments) -> Result:
    args.none()
    with chat.screen.progress() as progress:
        return chat.show_reply(chat.session.retry_stream(progress=progress), progress.clear)


@slash("/undo", "Take the last change of this context back: a turn, a switch, a clear.", group=GROUP)
def undo(chat: Chat, args: Arguments) -> Result:
    args.none()
    what = chat.session.undo()
    used = chat.session.usage().used
    return Result({"undone": what, "used": used}, f"undone: {what}; {amounts.tokens(used)} tokens used")


@slash("/recompute", "Compute turns again that were made while a chunk that is now off was on.", group=GROUP)
def recompute(chat: Chat, args: Arguments) -> Result:
    args.none()
    count = chat.session.recompute()
    if not count:
        return Result({"num_turns": 0}, "no turn carries the trace of a chunk that is off")
    chat.warm()
    return Result({"num_turns": count}, f"{count} turn{'s' if count > 1 else ''} computed again")
