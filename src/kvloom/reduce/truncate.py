"""Cuts one text to a number of tokens, with a marker where something is left out. Knows no model, only how to count.

The result is never over the budget, marker included, and never cuts inside a character.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvloom.errors import UsageError
from kvloom.reduce.boundaries import boundary_after, boundary_before
from kvloom.reduce.fit import Count, longest

MARKER = "\n[… {n} tokens left out …]\n"
"""`{n}` becomes the number of tokens that were left out."""

_MARKER_SHARE = 2
"""A marker that takes more than one part in so many of the budget is left out: text is worth more than a note on it."""


class Keep(Enum):
    """What stays of a text that is too long."""

    HEAD = "head"
    TAIL = "tail"
    BOTH_ENDS = "both"


@dataclass(frozen=True)
class Truncated:
    """What is left of a text.

    `num_tokens` counts `text`, marker included. `kept` holds the characters [start, stop) of the original that stay.
    """

    text: str
    num_tokens: int
    num_removed_tokens: int
    kept: tuple[tuple[int, int], ...]

    @property
    def is_cut(self) -> bool:
        return self.num_removed_tokens > 0


def truncate(text: str, max_tokens: int, count: Count, keep: Keep | str = Keep.HEAD, marker: str = MARKER) -> Truncated:
    """`text` in at most `max_tokens`, counted by `count` (for a loaded model, `loom.count`).

    `keep` says what stays: the head, the tail, or both ends with half of the tokens each. `marker` stands where
    something is left out and is paid from the budget; where the budget is smaller than twice the marker it is left out.
    Raises UsageError for a negative budget and for a `keep` that there is not.
    """
    if max_tokens < 0:
        raise UsageError(f"a text cannot be cut to {max_tokens} tokens; give 0 or more")
    try:
        keep = Keep(keep)
    except ValueError as exc:
        known = ", ".join(one.value for one in Keep)
        raise UsageError(f"there is no way to keep {keep!r} of a text; choose one of {known}") from exc
    total = count(text)
    if total <= max_tokens:
        return Truncated(text, total, 0, ((0, len(text)),) if text else ())
    return _Cut(text, total, max_tokens, count, marker).made(keep)


class _Cut:
    """One text that is over its budget. A cut is (head, tail): characters [0, head) and [tail, len) stay."""

    def __init__(self, text: str, total: int, max_tokens: int, count: Count, marker: str) -> None:
        self._text, self._total, self._max, self._count = text, total, max_tokens, count
        self._rate = len(text) / max(total, 1)
        num_marker_tokens = count(marker.replace("{n}", str(total))) if marker else 0
        fits = num_marker_tokens * _MARKER_SHARE <= max_tokens
        self._marker = marker if fits else ""
        self._room = max_tokens - (num_marker_tokens if fits else 0)

    def made(self, keep: Keep) -> Truncated:
        end = len(self._text)
        if keep is Keep.HEAD:
            head, tail = self._head(self._max), end
        elif keep is Keep.TAIL:
            head, tail = 0, self._tail(0)
        else:
            head = self._head((self._room + 1) // 2)
            tail = self._tail(head)
        kept = tuple(part for part in ((0, head), (tail, end)) if part[0] < part[1])
        text = self._put(head, tail)
        return Truncated(text, self._count(text), self._num_removed(head, tail), kept)

    def _head(self, max_head_tokens: int) -> int:
        """The end of the longest head that has at most so many tokens and fits together with the marker."""
        text, end = self._text, len(self._text)

        def excess(length: int) -> int:
            head = boundary_before(text, length)
            alone = self._count(text[:head]) - max_head_tokens
            return max(alone, self._count(self._put(head, end)) - self._max)

        guess = int(min(max_head_tokens, self._room) * self._rate)
        return boundary_before(text, longest(end - 1, excess, guess, self._rate))

    def _tail(self, head: int) -> int:
        """The start of the longest tail that fits behind the head and the marker."""
        text, end = self._text, len(self._text)

        def excess(length: int) -> int:
            return self._count(self._put(head, boundary_after(text, end - length))) - self._max

        guess = int((self._room - self._count(text[:head])) * self._rate)
        return boundary_after(text, end - longest(end - head - 1, excess, guess, self._rate))

    def _put(self, head: int, tail: int) -> str:
        marker = self._marker.replace("{n}", str(self._num_removed(head, tail))) if self._marker else ""
        return self._text[:head] + marker + self._text[tail:]

    def _num_removed(self, head: int, tail: int) -> int:
        """Tokens of the whole that are in neither end; where tokens ran over the cut it is one or two off."""
        kept = self._count(self._text[:head]) + self._count(self._text[tail:])
        return max(1, self._total - kept)
