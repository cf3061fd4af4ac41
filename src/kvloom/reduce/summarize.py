"""Summarizes a long span of a conversation with a model: piece by piece, joined, and again until it fits.

Pure orchestration: the model is a function, and so is counting. Knows no engine, no session and no template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvloom.errors import CancelledError, UsageError
from kvloom.reduce.extract import extract, shortened
from kvloom.reduce.fit import Count, parts
from kvloom.reduce.prompts import CONVERSATION, NOTES, Wording, flaw, tidy
from kvloom.reduce.spans import SpanPiece, SpanTurn, halved, openings, pieces

MAX_ROUNDS = 4
"""Rounds over the text, the first among them. Each shortens at least by MIN_GAIN, or it is the last."""
MIN_GAIN = 0.1
MIN_SUMMARY_TOKENS = 16
MIN_REPLY_TOKENS = 64
"""Room for the summary of one piece, however many there are; what is too much together goes into another round."""
MIN_HALF_TOKENS = 32
"""Room for the summary of half a piece; with less, a reply that was cut off is completed by first sentences."""
MIN_PIECE_TOKENS = 64
"""A window that leaves less for the text, beside the instruction and the reply, is too small to summarize in."""
MAX_PIECE_TOKENS = 2048
"""Of the text in one prompt: small models leave out more of longer ones, and a cancel waits for one piece."""
_SEAM_TOKENS = 8
"""What a prompt may take more than its parts apart."""
_REPLY_SHARE = 4
"""A reply takes at most one part in so many of the window."""
_GAIN = 4
"""A small model shortens a text so many times at once; asked for more it finds no end. Another round does the rest."""


class Completer(Protocol):
    """The model: a reply of at most `max_tokens` to a prompt that its caller puts into a chat template."""

    def __call__(self, prompt: str, max_tokens: int) -> str: ...


@dataclass(frozen=True)
class SummaryRoom:
    """`summary_tokens`: what the summary may take. `window_tokens`: what one prompt and its reply may take together,
    without the template around them. `piece_tokens`: what a prompt shows of the conversation at most.
    """

    summary_tokens: int
    window_tokens: int
    piece_tokens: int = MAX_PIECE_TOKENS


@dataclass(frozen=True)
class Watch:
    """Who looks on. `progress(done, total)` counts prompts; `is_cancelled` is asked before each. `known(number)` says,
    in front of `progress`, how many of those that are done were not computed."""

    progress: Callable[[int, int], None] = lambda _done, _total: None
    is_cancelled: Callable[[], bool] = lambda: False
    known: Callable[[int], None] = lambda _number: None


@dataclass(frozen=True)
class Summary:
    """A summary of the turns in `covers`, and of the summary before it.

    `num_pieces` prompts showed the conversation, in the first of `num_rounds` rounds. `is_fallback`: at least one part
    was extracted, not summarized, since the model gave nothing that was usable.
    """

    text: str
    num_tokens: int
    num_pieces: int
    num_rounds: int
    is_fallback: bool
    covers: tuple[str, ...]


@dataclass(frozen=True)
class SummaryEstimate:
    """What summarizing would cost, if no prompt has to be repeated.

    `num_prompt_tokens` are exact; the reply and what a second round would read (`max_merge_tokens`) are at most.
    """

    num_pieces: int
    num_prompt_tokens: int
    max_reply_tokens: int
    max_merge_tokens: int
    num_tokens_before: int
    max_tokens_after: int


def summarize(
    turns: Sequence[SpanTurn],
    complete: Completer,
    count: Count,
    room: SummaryRoom,
    *,
    previous: str = "",
    watch: Watch | None = None,
) -> Summary:
    """One summary of all the turns and of the `previous` summary, within `room.summary_tokens`.

    A reply that is empty, an echo, special-token text or no shorter than what it replaces is asked for once more in
    other words; then the first sentences of the turns stand in its place, and the summary says so. In a window too
    small for a prompt everything is extracted. Raises CancelledError between two prompts, UsageError where there is
    nothing to summarize or no room for a summary; what `complete` raises passes through.
    """
    plan = _plan(turns, count, room, previous)
    notes = [previous.strip()] if previous.strip() else []
    if plan.is_without_model:
        return _extracted(turns, notes, count, room)
    work = _Work(complete, count, room, watch or Watch(), len(plan.pieces))
    notes += [work.noted(piece, plan.reply_tokens) for piece in plan.pieces]
    num_rounds = 1
    while num_rounds < MAX_ROUNDS and count(_joined(notes)) > room.summary_tokens:
        before = count(_joined(notes))
        notes = work.merged(notes, plan.note_tokens)
        num_rounds += 1
        if count(_joined(notes)) > before * (1 - MIN_GAIN):
            break
    text = _joined(notes)
    if count(text) > room.summary_tokens:
        text = shortened(text.splitlines(), room.summary_tokens, count)
        work.is_fallback = True
    return Summary(text, count(text), len(plan.pieces), num_rounds, work.is_fallback, _refs(turns))


def estimate(turns: Sequence[SpanTurn], count: Count, room: SummaryRoom, *, previous: str = "") -> SummaryEstimate:
    """What `summarize` would cost, without a model. Raises UsageError as it does."""
    plan = _plan(turns, count, room, previous)
    previous_tokens = count(previous.strip())
    before = sum(turn.num_tokens for turn in turns) + previous_tokens
    if plan.is_without_model:
        return SummaryEstimate(0, 0, 0, 0, before, room.summary_tokens)
    num_pieces = len(plan.pieces)
    prompts = sum(count(CONVERSATION[0].prompt(piece.text)) for piece in plan.pieces)
    replies = num_pieces * plan.reply_tokens
    joined = previous_tokens + replies + num_pieces
    merge = 0
    if joined > room.summary_tokens:
        merge = joined + -(-joined // plan.note_tokens) * _overhead(count)
    return SummaryEstimate(num_pieces, prompts, replies, merge, before, min(room.summary_tokens, joined))


@dataclass(frozen=True)
class _Plan:
    """`reply_tokens`: of each piece's summary. `note_tokens`: of the notes in one prompt of a later round."""

    pieces: tuple[SpanPiece, ...] = ()
    reply_tokens: int = 0
    note_tokens: int = 0

    @property
    def is_without_model(self) -> bool:
        return self.note_tokens == 0


def _plan(turns: Sequence[SpanTurn], count: Count, room: SummaryRoom, previous: str) -> _Plan:
    if not turns and not previous.strip():
        raise UsageError("there is nothing to summarize: no turn was given")
    if room.summary_tokens < MIN_SUMMARY_TOKENS:
        raise UsageError(f"a summary needs {MIN_SUMMARY_TOKENS} tokens or more, got {room.summary_tokens}")
    most = max(MIN_SUMMARY_TOKENS, min(room.summary_tokens, room.window_tokens // _REPLY_SHARE))
    left = room.window_tokens - most - _overhead(count)
    if min(left, room.piece_tokens) < MIN_PIECE_TOKENS:
        return _Plan()
    capacity = min(left, room.piece_tokens)
    found = pieces(turns, capacity, count)
    share = (room.summary_tokens - count(previous.strip())) // max(1, len(found))
    return _Plan(found, min(most, max(MIN_REPLY_TOKENS, share, capacity // _GAIN)), capacity)


def _extracted(turns: Sequence[SpanTurn], notes: Sequence[str], count: Count, room: SummaryRoom) -> Summary:
    """The summary that needs no model: the one before, and the first sentences of every turn."""
    most = room.summary_tokens // 2 if turns else room.summary_tokens
    before = shortened(_joined(notes).splitlines(), most, count) if notes else ""
    told = extract([one for turn in turns for one in openings(turn)], room.summary_tokens - count(before) - 1, count)
    text = "\n".join(part for part in (before, told) if part)
    return Summary(text, count(text), 0, 0, True, _refs(turns))


def _refs(turns: Sequence[SpanTurn]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(turn.ref for turn in turns))


def _bare(line: str) -> str:
    return line.removeprefix("- ")


def _overhead(count: Count) -> int:
    """Tokens of the longest wording around an empty text."""
    return max(count(wording.prompt("")) for wording in (*CONVERSATION, *NOTES)) + _SEAM_TOKENS


def _joined(notes: Sequence[str]) -> str:
    return tidy("\n".join(notes))


class _Work:
    """The prompts of one summary, one after the other."""

    def __init__(self, complete: Completer, count: Count, room: SummaryRoom, watch: Watch, total: int) -> None:
        self._complete, self._count, self._room, self._watch = complete, count, room, watch
        self._done, self._total = 0, total
        self.is_fallback = False
        watch.progress(0, total)

    def noted(self, piece: SpanPiece, max_tokens: int) -> str:
        """The summary of one piece. Where the reply does not reach its end, each half is asked for by itself."""
        halves = halved(piece) if max_tokens >= 2 * MIN_HALF_TOKENS else ()
        note = self._note(piece.text, CONVERSATION, max_tokens, piece.openings, is_whole_wanted=bool(halves))
        if note is not None:
            return note
        self._total += len(halves)
        share = max_tokens // len(halves)
        return "\n".join(self._note(half.text, CONVERSATION, share, half.openings) or "" for half in halves)

    def merged(self, notes: Sequence[str], max_tokens: int) -> list[str]:
        """The notes of one round in fewer and shorter ones."""
        groups = self._grouped(notes, max_tokens)
        share = max(MIN_REPLY_TOKENS, self._room.summary_tokens // len(groups))
        window_share = max(MIN_SUMMARY_TOKENS, self._room.window_tokens // _REPLY_SHARE)
        most = min(share, self._room.summary_tokens, window_share)
        self._total += len(groups)
        made = (self._note(group, NOTES, most, [_bare(line) for line in group.splitlines()]) for group in groups)
        return [note for note in made if note]

    def _note(
        self,
        text: str,
        wordings: Sequence[Wording],
        max_tokens: int,
        openings: Sequence[str],
        *,
        is_whole_wanted: bool = False,
    ) -> str | None:
        """What the model makes of a text, or an extract of it; never longer than `max_tokens` or the text.

        A reply that was cut off says nothing of the text's end: None where the whole is wanted, else the first
        sentences of the later half get up to half of the room.
        """
        limit = max(1, min(max_tokens, self._count(text) - 1))
        note, missing = "", openings
        for wording in wordings:
            if self._watch.is_cancelled():
                raise CancelledError("summarizing was cancelled; nothing was changed")
            reply = self._complete(wording.prompt(text), limit)
            is_cut_off = self._count(reply) >= limit
            note = tidy(reply, is_cut_off=is_cut_off)
            if flaw(note, text, self._count) is None:
                missing = openings[len(openings) // 2 :] if is_cut_off else ()
                break
            note = ""
        self._done += 1
        self._watch.progress(self._done, self._total)
        if note and missing and is_whole_wanted:
            return None
        if not missing and note:
            return shortened(note.splitlines(), limit, self._count)
        self.is_fallback = True
        if not note:
            return extract(openings, limit, self._count)
        end = extract(missing, limit // 2, self._count)
        return f"{shortened(note.splitlines(), limit - self._count(end) - 1, self._count)}\n{end}".strip()

    def _grouped(self, notes: Sequence[str], max_tokens: int) -> list[str]:
        """Notes, in their order, as texts that a prompt can hold."""
        groups: list[str] = []
        for part in (part for note in notes for part in parts(note, max_tokens, self._count)):
            if groups and self._count(f"{groups[-1]}\n{part}") <= max_tokens:
                groups[-1] = f"{groups[-1]}\n{part}"
            else:
                groups.append(part)
        return groups
