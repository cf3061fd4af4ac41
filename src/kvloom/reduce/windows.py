"""Cuts a text into windows of a number of tokens that overlap, so that every token stands in one of them.

Pure: it is given who counts. Knows no model, no file and no prompt.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from functools import lru_cache

from kvloom.errors import CancelledError, UsageError
from kvloom.reduce.boundaries import boundary_after, boundary_before, is_boundary
from kvloom.reduce.fit import Count, longest, part_end
from kvloom.reduce.summarize import Watch

MAX_OVERLAP = 0.75
"""Each token is read four times then. Beyond it a pass costs a multiple of that and sees nothing new."""

_SLACK_SHARE = 1 / 32
"""Of a size that may stay free: to look for the last token takes as many counts again as all else."""
_MAX_CHARS_PER_TOKEN = 64
"""Longer texts than so many for each token of a window are not counted as a whole: they are more than one window."""
_NUM_KNOWN_COUNTS = 8
"""A window is counted where its end is looked for, and again where it is made: the last counts are remembered."""
_SHIFT_SHARE = 0.3
"""An overlap may be this share of itself smaller, so that a window begins where a line or a word does."""
_BEGINNINGS = (re.compile(r"\n\s*"), re.compile(r"\s+"))
"""What stands in front of a natural beginning, the best first."""


@dataclass(frozen=True)
class Window:
    """Characters [start, stop) of a text, which are on its lines `first_line` to `last_line`, from 1."""

    text: str = field(repr=False)
    start: int
    stop: int
    first_line: int
    last_line: int
    num_tokens: int


def windows(text: str, size: int, overlap: float, count: Count, watch: Watch | None = None) -> tuple[Window, ...]:
    """The windows of at most `size` tokens over `text`, counted by `count` (for a loaded model, `loom.count`).

    Each begins in the one before it: with `overlap` of that one's tokens, or some fewer where a line or a word begins
    there. Without the overlaps they are the text. A single character that takes more than `size` is a window by itself.
    `watch` is told the characters that are in windows, and asked before each window.
    Raises UsageError for what is no text, for a size below 1, and for an overlap that is not within 0 and MAX_OVERLAP;
    CancelledError between two windows.
    """
    check_text(text)
    check_layout(size, overlap)
    if not text:
        return ()
    watch, count = watch or Watch(), lru_cache(_NUM_KNOWN_COUNTS)(count)
    watch.progress(0, len(text))
    lines = _Lines(text)
    head = text[: boundary_before(text, size * _MAX_CHARS_PER_TOKEN)]
    num_tokens = count(head)
    if num_tokens <= size and len(head) == len(text):
        watch.progress(len(text), len(text))
        return (lines.window(0, len(text), num_tokens),)
    rate, slack = len(head) / max(1, num_tokens), int(size * _SLACK_SHARE)
    found: list[Window] = []
    start = covered = 0
    while covered < len(text):
        if watch.is_cancelled():
            raise CancelledError(f"stopped while windows were laid: over {covered:,} of {len(text):,} characters")
        stop = part_end(text, start, size, count, rate, covered, slack)
        if stop <= covered:  # the overlap alone fills this window: counts of two ends of a text do not add up
            start = covered
            continue
        found.append(lines.window(start, stop, count(text[start:stop])))
        rate = (stop - start) / max(1, found[-1].num_tokens)
        start = _next_start(text, found[-1], overlap, count)
        covered = stop
        watch.progress(covered, len(text))
    return tuple(found)


def check_text(text: object) -> None:
    """Raises UsageError for what is no str."""
    if not isinstance(text, str):
        raise UsageError(f"windows are laid over one text, a str; got {type(text).__name__}")


def check_layout(size: int, overlap: float) -> None:
    """Raises UsageError where windows cannot be laid so."""
    if size < 1:
        raise UsageError(f"a window of {size} tokens holds nothing; give 1 or more")
    if overlap == 1:
        raise UsageError(
            f"with an overlap of 1 every window is the one before it, and the text never ends; give 0 to {MAX_OVERLAP}"
        )
    if not 0 <= overlap <= MAX_OVERLAP:  # a NaN is not, either
        raise UsageError(f"an overlap of {overlap} is not possible; give a share of the window from 0 to {MAX_OVERLAP}")


class _Lines:
    """Where the lines of a text end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]

    def window(self, start: int, stop: int, num_tokens: int) -> Window:
        return Window(self._text[start:stop], start, stop, self._line(start), self._line(stop - 1), num_tokens)

    def _line(self, at: int) -> int:
        return bisect.bisect_left(self._ends, at) + 1


def _next_start(text: str, window: Window, overlap: float, count: Count) -> int:
    """Where the window behind `window` begins: within it, and behind its first character."""
    start, stop = window.start, window.stop
    most = int(overlap * window.num_tokens)
    if not most:
        return stop
    rate = (stop - start) / window.num_tokens

    def excess(length: int) -> int:
        return count(text[boundary_after(text, stop - length) : stop]) - most

    length = longest(stop - start - 1, excess, int(most * rate), rate, int(most * _SLACK_SHARE))
    at = max(boundary_after(text, stop - length), boundary_after(text, start + 1))
    return min(stop, _beginning(text, at, stop))


def _beginning(text: str, at: int, stop: int) -> int:
    """The first natural beginning at or behind `at`, the best that is near enough; `at` where there is none."""
    latest = at + int((stop - at) * _SHIFT_SHARE)
    for pattern in _BEGINNINGS:
        for match in pattern.finditer(text, at - 1, latest):
            if match.end() >= at and is_boundary(text, match.end()):
                return match.end()
    return at
