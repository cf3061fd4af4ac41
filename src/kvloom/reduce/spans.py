"""Packs the turns of a conversation into pieces that a prompt can hold. Knows how they are written, no model.

Nothing is skipped: a turn longer than a piece is cut in parts, and each of them stands in some piece.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvloom.reduce.fit import Count, parts

_CONTINUED = "(the message goes on)\n"
_SEAM_TOKENS = 1
"""What two texts may take more together than apart."""
_MAX_OPENING_CHARS = 300
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|[。！？]|$)", re.DOTALL)


@dataclass(frozen=True)
class SpanTurn:
    """One question and its answer. `num_tokens` is what the turn takes in the context, template and all."""

    ref: str
    user: str
    answer: str
    num_tokens: int


@dataclass(frozen=True)
class SpanPart:
    """A turn, or a part of one that is too long, as it stands in a prompt. `openings`: its first sentences."""

    ref: str
    text: str = field(repr=False)
    is_continued: bool
    openings: tuple[str, ...] = field(repr=False)

    @property
    def written(self) -> str:
        return _CONTINUED + self.text if self.is_continued else self.text


@dataclass(frozen=True)
class SpanPiece:
    """What one prompt shows of the conversation."""

    parts: tuple[SpanPart, ...]

    @property
    def text(self) -> str:
        return "".join(part.written for part in self.parts)

    @property
    def openings(self) -> tuple[str, ...]:
        return tuple(opening for part in self.parts for opening in part.openings)


def written(turn: SpanTurn) -> str:
    """A turn as a prompt shows it."""
    return f"User: {turn.user}\nAssistant: {turn.answer}\n"


def pieces(turns: Sequence[SpanTurn], max_tokens: int, count: Count) -> tuple[SpanPiece, ...]:
    """The turns in their order, in as few pieces of at most `max_tokens` as it takes, of about equal size."""
    limit = max_tokens
    while True:
        found = _packed(turns, limit, count)
        # Counts of parts do not quite add up, so what was packed is measured.
        if limit <= 1 or all(count(piece.text) <= max_tokens for piece in found):
            return found
        limit = limit * 9 // 10


def halved(piece: SpanPiece) -> tuple[SpanPiece, ...]:
    """The piece in two of about the same length; () where it is a single part."""
    sizes = [len(part.text) for part in piece.parts]
    middles = [abs(2 * sum(sizes[:number]) - sum(sizes)) for number in range(1, len(sizes))]
    if not middles:
        return ()
    cut = 1 + middles.index(min(middles))
    return (SpanPiece(piece.parts[:cut]), SpanPiece(piece.parts[cut:]))


def _packed(turns: Sequence[SpanTurn], max_tokens: int, count: Count) -> tuple[SpanPiece, ...]:
    sized = [(part, count(part.written) + _SEAM_TOKENS) for turn in turns for part in _parts(turn, max_tokens, count)]
    fewest = len(_filled(sized, max_tokens))
    # Filled to the brim, the last piece may be a single turn, and summarize badly: the lowest limit that makes no more.
    low, high = max([0, *(size for _, size in sized)]), max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_filled(sized, middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return _filled(sized, high)


def _filled(sized: Sequence[tuple[SpanPart, int]], max_tokens: int) -> tuple[SpanPiece, ...]:
    filled: list[list[SpanPart]] = []
    room = 0
    for part, size in sized:
        if not filled or size > room:
            filled.append([])
            room = max_tokens
        filled[-1].append(part)
        room -= size
    return tuple(SpanPiece(tuple(group)) for group in filled)


def _parts(turn: SpanTurn, max_tokens: int, count: Count) -> list[SpanPart]:
    text = written(turn)
    if count(text) + _SEAM_TOKENS <= max_tokens:
        return [SpanPart(turn.ref, text, is_continued=False, openings=openings(turn))]
    limit = max(1, max_tokens - count(_CONTINUED) - _SEAM_TOKENS)
    cut = parts(text, limit, count)
    return [
        SpanPart(turn.ref, part, is_continued=number > 0, openings=(opening(part),)) for number, part in enumerate(cut)
    ]


def openings(turn: SpanTurn) -> tuple[str, ...]:
    """The first sentence of the question and of the answer, each where there is one."""
    said = (("User", opening(turn.user)), ("Assistant", opening(turn.answer)))
    return tuple(f"{who}: {sentence}" for who, sentence in said if sentence)


def opening(text: str) -> str:
    """The first sentence of a text, on one line; of one that has none, its first words."""
    line = " ".join(text[: 2 * _MAX_OPENING_CHARS].split())
    found = _SENTENCE.match(line)
    return found.group()[:_MAX_OPENING_CHARS] if found else ""
