"""What is done to a whole context, in a chat and for a stored session alike: window, snapshots, compression, ledger.

Knows the façade and what to show of it; how the words were given is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from kvloom.cli import amounts
from kvloom.cli.context_stats import context_stats
from kvloom.cli.context_view import attention, context_rows, context_view, used_tokens
from kvloom.cli.kept_view import brings_back, ledger_table, messages_text, snapshots_table
from kvloom.cli.library_view import attached_line
from kvloom.cli.registry import Result, known
from kvloom.cli.standing import read_standing
from kvloom.cli.stats_view import stats_view
from kvloom.config import TOKEN_FORMS, parse_tokens
from kvloom.errors import CancelledError, CompressionError, EngineUnsupportedError, SnapshotError, UsageError
from kvloom.session.compression import STRATEGIES
from kvloom.session.values import CompressionEstimate, CompressionResult

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvloom.cli.chat import Chat
    from kvloom.session.values import LedgerLine, Snapshot

AUTOMATIC = "auto"


def policies() -> tuple[str, ...]:
    """The names of all policies that there are."""
    import kvloom

    return kvloom.policies()


# -- looking ----------------------------------------------------------------------------------------------------------


def show(chat: Chat) -> Result:
    usage, status = chat.session.usage(), chat.loom.status()
    standing = read_standing(chat.loom, chat.session, chat.window_origin)
    data = {
        "session": {"id": chat.session.id, "name": chat.session.name},
        "usage": usage,
        "rows": context_rows(usage.segments),
        "status": status,
        "standing": standing,
        "notes": [*attention(usage), *filter(None, (standing.window_warning,))],
    }
    return Result(data, context_view(usage, status, standing, name_of(chat)))


def stats(chat: Chat) -> Result:
    usage, status = chat.session.usage(), chat.loom.status()
    sums = context_stats(usage, chat.session.history(), chat.session.ledger())
    return Result({"usage": usage, "status": status, "stats": sums}, stats_view(usage, status, sums))


def prompt(chat: Chat) -> Result:
    """What the model sees; without token ids where another server has them."""
    text = chat.session.prompt()
    try:
        tokens = chat.session.tokens()
    except EngineUnsupportedError:
        return Result({"text": text, "tokens": None}, text)
    return Result({"text": text, "tokens": tokens}, text)


def here(chat: Chat, what: str) -> Result:
    """Which session the chat is in now."""
    usage, turns = chat.session.usage(), len(chat.session.history())
    data = {"id": chat.session.id, "name": chat.session.name, "num_turns": turns, "used": usage.used}
    view = f"{what} {name_of(chat)}: {turns} turns, {used_tokens(usage)} tokens used, {usage.fidelity.value}"
    return Result(data, view)


def name_of(chat: Chat) -> str:
    return chat.session.name or chat.session.id


# -- the window -------------------------------------------------------------------------------------------------------


def size(chat: Chat, text: str) -> Result:
    """A window of so many tokens, `8k` too, or as large as memory allows. Raises UsageError."""
    wanted = None if text == AUTOMATIC else parse_tokens(text)
    if wanted is None and text != AUTOMATIC:
        raise UsageError(f"a window is {TOKEN_FORMS} or {AUTOMATIC}, got {text!r}")
    if notice := chat.session.resize_notice(wanted):
        chat.options.output.note(notice)
    before, after = chat.session.window, chat.session.resize(wanted)
    usage = chat.session.usage()
    moved = "stays at" if after == before else f"{amounts.tokens(before)} →"
    view = f"window {moved} {amounts.tokens(after)} tokens, {used_tokens(usage)} used{_undoable(chat, after != before)}"
    return Result({"window": after, "window_before": before, "used": usage.used}, view)


def policy(chat: Chat, name: str) -> Result:
    """Shows what leaves a full window, or sets it. Raises UsageError with the nearest name."""
    if name:
        chat.session.policy = known(name, policies(), "policy")
    current = chat.session.policy
    others = ", ".join(other for other in policies() if other != current)
    view = f"{current}: {POLICY_TEXTS.get(current, 'leaves')} (others: {others})"
    return Result({"policy": current, "policies": policies()}, view)


POLICY_TEXTS = {
    "stop": "a question that does not fit is refused with the numbers",
    "clear": "a full window is cleared, behind a snapshot",
    "fifo": "the oldest turns leave",
    "sliding_window": "turns older than a fixed number of tokens leave",
    "keep_first": "the first turns stay, the oldest behind them leave",
    "adaptive": "what matters least to the question leaves, and comes back when it matters",
}


def compress(chat: Chat, strategy: str, *, dry_run: bool) -> Result:
    """Raises UsageError with the nearest strategy, CompressionError where there is nothing to gain.

    To a dry run, that there is nothing to compress is an answer.
    """
    chosen = known(strategy, STRATEGIES, "strategy") if strategy else None
    try:
        with chat.working() as progress:
            done = chat.session.compress(chosen, dry_run=dry_run, progress=progress)
    except CompressionError as error:
        if not dry_run:
            raise
        used, name = chat.session.usage().used, chosen or chat.loom.settings.compression.strategy
        return Result({**asdict(CompressionEstimate(name, 0, used, used, 0, None)), "reason": str(error)}, str(error))
    if isinstance(done, CompressionEstimate):
        return Result({**asdict(done), "reason": ""}, _estimate_text(done))
    return Result(done, _compressed_text(chat, done))


def _estimate_text(estimate: CompressionEstimate) -> str:
    summary = (
        f" with a summary of up to {amounts.tokens(estimate.num_summary_tokens)}" if estimate.num_summary_tokens else ""
    )
    lasts = f", in about {amounts.seconds(estimate.seconds)}" if estimate.seconds is not None else ""
    return (
        f"{estimate.strategy} would replace {_counted(estimate.num_turns, 'turn')}{summary}: "
        f"{amounts.tokens(estimate.num_tokens_before)} → {amounts.tokens(estimate.num_tokens_after)} tokens{lasts}; "
        "nothing was changed"
    )


def _compressed_text(chat: Chat, done: CompressionResult) -> str:
    saved = amounts.share(done.num_tokens_before - done.num_tokens_after, done.num_tokens_before)
    lines = [
        f"{done.strategy}: {_counted(done.num_turns, 'turn')} replaced, {amounts.tokens(done.num_tokens_before)} → "
        f"{amounts.tokens(done.num_tokens_after)} tokens (−{saved}) in {amounts.seconds(done.seconds)}; "
        f"{chat.how('/ledger')} lists what left{_undoable(chat)}"
    ]
    if done.is_fallback:
        lines.append("the model gave no usable summary of some parts: their first sentences stand for them")
    if done.summary:
        lines.append(f"summary: {done.summary}")
    return "\n".join(lines)


def clear(chat: Chat, words: Sequence[str]) -> Result:
    """Everything out of the context, or the turns of these numbers. Raises UsageError."""
    wrong = [word for word in words if not word.isdigit()]
    if wrong:
        raise UsageError(f"a turn is given by its number, got {wrong[0]!r}; without a number everything is cleared")
    turns = [int(word) for word in words]
    chat.session.clear(turns or None)
    usage = chat.session.usage()
    what = f"turn{'s' if len(turns) > 1 else ''} {', '.join(words)}" if turns else "chunks and turns"
    view = f"cleared {what}; {used_tokens(usage)} tokens used{_undoable(chat)}"
    return Result({"turns": turns, "used": usage.used}, view)


def undo(chat: Chat) -> Result:
    what = chat.session.undo()
    usage = chat.session.usage()
    return Result({"undone": what, "used": usage.used}, f"undone: {what}; {used_tokens(usage)} tokens used")


# -- snapshots --------------------------------------------------------------------------------------------------------


def snapshot(chat: Chat, title: str) -> Result:
    taken = chat.session.snapshot(title)
    back = chat.how(f"/context restore {taken.id}")
    view = f"snapshot {taken.id} ({taken.title or 'untitled'}): {_held(taken)}; {back} returns to it"
    return Result(taken, view)


def snapshots(chat: Chat) -> Result:
    from rich.console import Group

    found, faults = chat.session.snapshots(), chat.session.snapshot_faults()
    view: RenderableType = snapshots_table(found)
    if not found:
        view = f"no snapshots yet: {chat.how('/context snapshot')} takes one"
    return Result({"snapshots": found, "unreadable": faults}, Group(view, *faults) if faults else view)


def restore(chat: Chat, ref: str) -> Result:
    """Back to a snapshot. Without a name a person chooses; where nobody is there, the list is the answer."""
    if not ref:
        found = chat.session.snapshots()
        if not found:
            raise SnapshotError(f"this session has no snapshot yet; {chat.how('/context snapshot')} takes one")
        if chat.pick is None:
            return Result({"restored": None, "snapshots": found}, _which_one(chat, found))
        chosen = chat.pick(found, chat.session.snapshot_messages)
        if chosen is None:
            return Result({"restored": None}, "no snapshot was chosen; nothing was changed, the context is as before")
        ref = chosen.id
    taken = chat.session.restore(ref)
    try:
        chat.warm()
        placed = ""
    except CancelledError:  # the conversation is back already
        placed = "; interrupted while its KV was placed: the next question does that"
    usage = chat.session.usage()
    held = _held(replace(taken, num_tokens=usage.used), is_estimate=usage.is_estimate)
    # Another model counts otherwise.
    then = f" ({amounts.tokens(taken.num_tokens)} when it was taken, under {taken.model})"
    before = "" if usage.used == taken.num_tokens else then
    view = f"restored {taken.id} ({taken.title or 'untitled'}): {held}{before}{placed}{_undoable(chat)}"
    return Result({"restored": taken, "used": usage.used}, view)


def _which_one(chat: Chat, found: Sequence[Snapshot]) -> RenderableType:
    from rich.console import Group

    return Group(snapshots_table(found), f"which one? {chat.how('/context restore ' + found[0].id)} takes the newest")


def fork(chat: Chat, ref: str, name: str) -> Result:
    """Another session that goes on from a snapshot, or from here; the chat goes on there."""
    left = name_of(chat)
    chat.replace_session(chat.session.fork(ref or None, name))
    result = here(chat, "fork")
    return Result({**result.data, "left_session": left}, f"{result.view}; {left} stays as it is")  # type: ignore[dict-item]


def delete(chat: Chat, ref: str) -> Result:
    gone = chat.session.delete_snapshot(ref)
    return Result({"deleted": gone}, f"deleted snapshot {gone.id} ({gone.title or 'untitled'})")


def messages(chat: Chat, ref: str) -> Result:
    """A snapshot's conversation, without restoring it."""
    found = chat.session.snapshot_messages(ref)
    return Result({"messages": found}, messages_text(found) or "that snapshot holds no message")


def _held(taken: Snapshot, *, is_estimate: bool = False) -> str:
    chunks = f", {_counted(taken.num_chunks, 'chunk')}" if taken.num_chunks else ""
    num_tokens = amounts.tokens(taken.num_tokens, is_estimate=is_estimate)
    return f"{_counted(taken.num_turns, 'turn')}{chunks}, {num_tokens} tokens"


# -- the ledger -------------------------------------------------------------------------------------------------------


def ledger(chat: Chat) -> Result:
    lines = chat.session.ledger()
    num_tokens = sum(line.num_tokens for line in lines)
    shown = [{**asdict(line), "how": chat.how(brings_back(line))} for line in lines]
    data = {"lines": shown, "num_tokens": num_tokens, "libraries": chat.session.libraries}
    return Result(data, _ledger_view(chat, lines, num_tokens))


def _ledger_view(chat: Chat, lines: Sequence[LedgerLine], num_tokens: int) -> RenderableType:
    from rich.console import Group

    if not lines:
        return _nothing_left_out(chat)
    total = f"{amounts.tokens(num_tokens)} tokens in {_counted(len(lines), 'line')} are not in the prompt"
    return Group(ledger_table(lines, chat.how), total)


def _nothing_left_out(chat: Chat) -> str:
    number = len(chat.session.libraries)
    if not number:
        return "everything that was ever given is in the prompt"
    libraries, them = ("1 library is", "it") if number == 1 else (f"{number} libraries are", "them")
    looked_up = f"looked up as questions need {them}" if chat.session.is_recalling else "attached, and recall is off"
    return f"everything that was given whole is in the prompt; {libraries} {looked_up}"


def attached(chat: Chat) -> Result:
    """The attached libraries, and whether questions are looked up in them."""
    libraries, is_on = chat.session.attached(), chat.session.is_recalling
    data = {"recall": is_on, "libraries": libraries}
    state = f"recall is {'on' if is_on else 'off'}"
    if not libraries:
        return Result(data, f"{state}: no library is attached; /load attaches a long file")
    other = "off stops looking questions up in" if is_on else "on looks questions up in"
    them = "it" if len(libraries) == 1 else "them"
    hint = f"/recall {other} {them}, /deactivate NAME detaches {them if len(libraries) == 1 else 'one'}"
    return Result(data, "\n".join([f"{state}:", *map(attached_line, libraries), hint]))


def recall(chat: Chat, refs: Sequence[str]) -> Result:
    before = chat.session.usage().used
    chat.session.recall(*refs)
    chat.warm()
    used = chat.session.usage().used
    view = (
        f"back in the context: {', '.join(refs)} ({amounts.tokens(used - before)} tokens); {amounts.tokens(used)} used"
    )
    return Result({"refs": refs, "used": used}, view + _undoable(chat))


# -- words ------------------------------------------------------------------------------------------------------------


def _undoable(chat: Chat, is_so: bool = True) -> str:
    return f"; {chat.how('/undo')} takes it back" if is_so else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
