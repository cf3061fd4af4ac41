"""How much of a text fits into a number of tokens, found by counting alone. Knows no vocabulary.

A count need not grow with every character (a longer word may be fewer tokens), so what is found is measured: it fits,
and one character more does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from kvloom.reduce.boundaries import boundary_after, boundary_before, is_boundary

Count = Callable[[str], int]
"""The tokens of a text: a model's own tokenizer, `Loom.count`, a provider's endpoint or an estimate."""

_NUM_JUMPS = 8
"""Steps by the text's own characters per token, close from both sides; then doubling until a length is too long, and
halving, which always ends."""
_SEAM_SHARE = 0.3
"""A part may end this share of its length earlier, where the text has a natural end."""
_SEAMS = (
    re.compile(r"\n[ \t]*\n"),
    re.compile(r"\n"),
    re.compile(r"[.!?。！？][ \t]*"),
    re.compile(r"[ \t]+|[,;、，；]"),
)
"""Natural ends, the best first: a paragraph's, a line's, a sentence's, a word's."""


def longest(limit: int, excess: Callable[[int], int], guess: int, chars_per_token: float, slack: int = 0) -> int:
    """A length n up to `limit` where `excess(n)` is at most 0 and `excess(n + 1)`, if there is one, is not.

    `excess` is in tokens; a length of 0 is taken to fit and is not measured. With a `slack` the first length is enough
    that leaves no more tokens than it.
    """
    low, high, num_steps = 0, limit + 1, 0
    while high - low > 1:
        if not low < guess < high:
            guess = (low + high) // 2
        over = excess(guess)
        if over <= 0:
            low = guess
            if slack and over >= -slack:
                return low
        else:
            high = guess
        num_steps += 1
        reach = max(1, int((abs(over) + 1) * chars_per_token))
        guess = low + reach if over <= 0 else high - reach
        if num_steps >= _NUM_JUMPS:
            # Where nothing was too long yet, half of what is left may be megabytes beyond.
            guess = min((low + high) // 2, 2 * low) if high > limit else (low + high) // 2
    return low


def parts(text: str, max_tokens: int, count: Count) -> Iterator[str]:
    """`text` in consecutive parts of at most `max_tokens`, ending where it has a natural end; joined, they are it.

    Each holds a character at least, whatever that takes.
    """
    num_tokens = count(text)
    if not text or num_tokens <= max_tokens:
        if text:
            yield text
        return
    rate = len(text) / num_tokens
    start = 0
    while start < len(text):
        stop = part_end(text, start, max_tokens, count, rate)
        yield text[start:stop]
        start = stop


def part_end(text: str, start: int, max_tokens: int, count: Count, rate: float, beyond: int = 0, slack: int = 0) -> int:
    """Where a part of at most `max_tokens` that begins at `start` ends: the last natural end near its limit.

    `rate`: the text's characters per token, about. Only natural ends behind `beyond` are taken. With a `slack` the part
    may have so many tokens less than would fit. It has a character at least, whatever that takes.
    """

    def excess(length: int) -> int:
        return count(text[start : boundary_before(text, start + length)]) - max_tokens

    length = longest(len(text) - start, excess, int(max_tokens * rate), rate, slack)
    stop = boundary_before(text, start + length)
    if stop <= start:
        return boundary_after(text, start + 1)
    if stop == len(text):
        return stop
    seam = _seam(text, start, stop)
    return seam if seam > beyond and count(text[start:seam]) <= max_tokens else stop


def _seam(text: str, start: int, stop: int) -> int:
    """The last natural end before `stop`, the best that is near enough; `stop` where there is none."""
    earliest = stop - int((stop - start) * _SEAM_SHARE)
    for pattern in _SEAMS:
        ends = [m.end() for m in pattern.finditer(text, earliest, stop) if is_boundary(text, m.end())]
        if ends:
            return ends[-1]
    return stop
