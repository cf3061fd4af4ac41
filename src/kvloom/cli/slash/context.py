"""Slash commands on the whole context: look at it, size it, keep and restore it, take back. Words in, verbs called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kvloom.cli import context_verbs as verbs
from kvloom.cli.registry import Arguments, Result, Suggestion, choose, slash
from kvloom.cli.slash import completion
from kvloom.session.compression import STRATEGIES

if TYPE_CHECKING:
    from kvloom.cli.chat import Chat

GROUP = "Context"

RECALL_SWITCHES = ("on", "off")


def _compress(chat: Chat, args: Arguments) -> Result:
    strategy, dry_run, words = "", False, iter(args.words)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--dry-run" and not equals:
            dry_run = True
        elif name == "--strategy":
            strategy = value if equals else next(words, "")
            if not strategy:
                raise args.wrong(f"--strategy takes one of {', '.join(STRATEGIES)}")
        else:
            raise args.wrong(f"takes --dry-run and --strategy, got {word!r}")
    return verbs.compress(chat, strategy, dry_run=dry_run)


def _fork(chat: Chat, args: Arguments) -> Result:
    ref, name = (*args.words, "", "")[:2]
    args.behind(2).none()
    return verbs.fork(chat, ref, name)


def _show(chat: Chat, args: Arguments) -> Result:
    ref = args.at_most_one("snapshot")
    return verbs.messages(chat, ref) if ref else verbs.show(chat)


def _bare(verb: Callable[[Chat], Result]) -> Callable[[Chat, Arguments], Result]:
    """A verb that takes no words."""

    def run(chat: Chat, args: Arguments) -> Result:
        args.none()
        return verb(chat)

    return run


CONTEXT_VERBS: dict[str, Callable[[Chat, Arguments], Result]] = {
    "show": _show,
    "stats": _bare(verbs.stats),
    "prompt": _bare(verbs.prompt),
    "size": lambda chat, args: verbs.size(chat, args.one("number of tokens")),
    "auto": _bare(lambda chat: verbs.size(chat, verbs.AUTOMATIC)),
    "policy": lambda chat, args: verbs.policy(chat, args.at_most_one("policy")),
    "compress": _compress,
    "clear": lambda chat, args: verbs.clear(chat, args.words),
    "snapshot": lambda chat, args: verbs.snapshot(chat, " ".join(args.words)),
    "list": _bare(verbs.snapshots),
    "restore": lambda chat, args: verbs.restore(chat, args.at_most_one("snapshot")),
    "fork": _fork,
    "delete": lambda chat, args: verbs.delete(chat, args.one("snapshot")),
}


def _complete_context(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    if not before:
        return [Suggestion(verb) for verb in CONTEXT_VERBS]
    verb, *rest = before
    if verb == "compress":
        chosen = rest[-1:] == ["--strategy"]
        return [Suggestion(word) for word in (STRATEGIES if chosen else ("--dry-run", "--strategy"))]
    if rest:
        return []
    if verb in ("restore", "fork", "delete", "show"):
        return completion.snapshots(chat)
    if verb == "clear":
        return completion.turns(chat)
    return [Suggestion(word) for word in {"policy": verbs.policies(), "size": (verbs.AUTOMATIC,)}.get(verb, ())]


@slash(
    "/context [show [ID] | stats | prompt | size N | auto | policy [P] | compress [--dry-run] [--strategy S] | clear | "
    "snapshot [TITLE] | list | restore [ID] | fork [ID [NAME]] | delete ID]",
    "What takes the window (`prompt`: exactly what the model sees); its size and what leaves it when it is full; "
    "snapshots of it: taken, listed, shown, restored, forked.",
    group=GROUP,
    complete=_complete_context,
)
def context(chat: Chat, args: Arguments) -> Result:
    verb = choose(args.words[0], tuple(CONTEXT_VERBS), args) if args.words else "show"
    return CONTEXT_VERBS[verb](chat, args.behind())


@slash("/ledger", "What was given and is not in the prompt, why, and how it comes back.", group=GROUP)
def ledger(chat: Chat, args: Arguments) -> Result:
    args.none()
    return verbs.ledger(chat)


def _complete_recall(chat: Chat, before: Sequence[str]) -> Iterable[Suggestion]:
    switches = [] if before or not chat.session.libraries else [Suggestion(word) for word in RECALL_SWITCHES]
    return [*switches, *completion.ledger(chat, before)]


@slash(
    "/recall [ID…|on|off]",
    "Bring turns and chunks of the ledger back to their places; on, off: whether questions are looked up in the "
    "attached libraries. Alone it lists those.",
    group=GROUP,
    complete=_complete_recall,
)
def recall(chat: Chat, args: Arguments) -> Result:
    if args.words and args.words[0] not in RECALL_SWITCHES:
        return verbs.recall(chat, args.words)
    if switch := args.at_most_one("of on and off"):
        chat.session.set_recall(switch == "on")
    return verbs.attached(chat)


@slash(
    "/clear [TURN…]",
    "Take this context's chunks and turns out, or the turns of these numbers; the store is untouched.",
    group=GROUP,
    complete=lambda chat, before: [one for one in completion.turns(chat) if one.text not in before],
)
def clear(chat: Chat, args: Arguments) -> Result:
    return verbs.clear(chat, args.words)


@slash("/retry", "Take the last reply back and ask its question again.", group=GROUP)
def retry(chat: Chat, args: Arguments) -> Result:
    args.none()
    with chat.screen.progress() as progress:
        return chat.show_reply(chat.session.retry_stream(progress=progress), progress.clear)


@slash(
    "/undo",
    "Take the last change of this context back: a turn, a switch, a clear, a compression, a resize, a restore.",
    group=GROUP,
)
def undo(chat: Chat, args: Arguments) -> Result:
    args.none()
    return verbs.undo(chat)


@slash("/recompute", "Compute turns again that were made while a chunk that is now off was on.", group=GROUP)
def recompute(chat: Chat, args: Arguments) -> Result:
    args.none()
    count = chat.session.recompute()
    if not count:
        return Result({"num_turns": 0}, "no turn carries the trace of a chunk that is off")
    chat.warm()
    return Result({"num_turns": count}, f"{count} turn{'s' if count > 1 else ''} computed again")
