"""Splits a long text into parts whose borders follow its structure and its local content. Knows no tokenizer.

A border is a line that outranks every line near it, so an edit moves only the borders next to it, and only the parts
it touched are computed again. Sizes are estimated tokens, so that every model splits a text alike.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvloom.errors import UsageError
from kvloom.text.counter import estimate_tokens

_MAX_UNIT_CHARS = 400
"""A huge line is cut behind a space, comma, semicolon or bracket, and after so many characters without one."""

_DEFINITION = re.compile(
    r"(?:(?:export|default|pub|public|private|protected|static|final|abstract|async|inline|unsafe|extern)\s+)*"
    r"(?:def|class|func|fn|function|struct|impl|interface|enum|trait|module|namespace|package|CREATE)\b"
)
_HEADING = re.compile(r"#{1,6}\s|={3,}|-{3,}|\\(?:chapter|section|subsection)\b|(?:Chapter|CHAPTER)\s")
_LEADING = re.compile(r"@|#\[|///|/\*\*|//!")
"""What belongs to the definition behind it: decorators, attributes, documentation comments."""
_UNIT = re.compile(rf"[^\s,;\])}}]{{0,{_MAX_UNIT_CHARS - 1}}}(?:[\s,;\])}}]|$|.)", re.DOTALL)


@dataclass(frozen=True)
class SplitSizes:
    """A text up to `whole_tokens` stays whole; parts have `least_tokens` to `whole_tokens`, about twice the least.

    `rank_chars`: only so much of a line decides between lines of one level (0: all of it), so that most edits of a long
    line, a whole paragraph of it, move no border.
    """

    whole_tokens: int = 1536
    least_tokens: int = 448
    rank_chars: int = 0

    def __post_init__(self) -> None:
        if self.least_tokens < 1 or self.whole_tokens < 2 * self.least_tokens:
            raise UsageError(
                f"a part of at least {self.least_tokens} tokens needs a limit of at least twice that, "
                f"not {self.whole_tokens}"
            )


def split(text: str, sizes: SplitSizes | None = None) -> tuple[str, ...]:
    """The parts of `text`; joined, they are `text`. Lines are cut only where one alone is over the limit."""
    sizes = sizes or SplitSizes()
    units = list(_units(text, sizes.whole_tokens))
    starts = [0.0]
    for unit in units:
        starts.append(starts[-1] + estimate_tokens(unit))
    if starts[-1] <= sizes.whole_tokens:
        return (text,)
    ranks = [_rank(units, i, sizes.rank_chars) for i in range(len(units))]
    cuts = [0, *_peaks(starts, ranks, sizes.least_tokens), len(units)]
    borders: list[int] = []
    for start, stop in itertools.pairwise(cuts):
        borders += _within(starts, ranks, start, stop, sizes)
    return tuple("".join(units[a:b]) for a, b in zip(borders, [*borders[1:], len(units)], strict=True))


Rank = tuple[int, int]
"""Structure first, then a hash of the line: ties between equals must not depend on where they stand."""


def _peaks(starts: Sequence[float], ranks: Sequence[Rank], reach: int) -> list[int]:
    """Units that outrank all others within `reach` tokens, to both sides; the text's ends count as the highest."""
    num_units = len(ranks)
    left = _highest_before(starts[:num_units], ranks, reach)
    mirrored = [starts[num_units - 1] - s for s in reversed(starts[:num_units])]
    right = _highest_before(mirrored, ranks[::-1], reach)[::-1]
    inner = (i for i in range(num_units) if reach <= starts[i] <= starts[-1] - reach)
    return [i for i in inner if ranks[i] > left[i] and ranks[i] >= right[i]]


def _highest_before(places: Sequence[float], ranks: Sequence[Rank], reach: int) -> list[Rank]:
    """For each unit the highest rank among those less than `reach` before it, in one sweep."""
    falling: deque[int] = deque()
    highest: list[Rank] = []
    for i, rank in enumerate(ranks):
        while falling and places[i] - places[falling[0]] >= reach:
            falling.popleft()
        highest.append(ranks[falling[0]] if falling else (-1, -1))
        while falling and ranks[falling[-1]] <= rank:
            falling.pop()
        falling.append(i)
    return highest


def _within(starts: Sequence[float], ranks: Sequence[Rank], start: int, stop: int, sizes: SplitSizes) -> Iterable[int]:
    """The first unit of each part of start … stop - 1: again the highest line, within what a part may hold."""
    yield start
    while starts[stop] - starts[start] > sizes.whole_tokens:
        low, high = starts[start] + sizes.least_tokens, starts[start] + sizes.whole_tokens
        reachable = range(start + 1, _first_over(starts, high, start, stop))
        fitting = [i for i in reachable if starts[i] >= low] or list(reachable[-1:])
        if not fitting and start + 1 == stop:
            return
        fitting = fitting or [start + 1]
        start = max(fitting, key=lambda i: (ranks[i], -i))
        yield start


def _first_over(starts: Sequence[float], high: float, start: int, stop: int) -> int:
    i = start + 1
    while i < stop and starts[i] <= high:
        i += 1
    return i


def _units(text: str, limit: int) -> Iterable[str]:
    """Lines with their ends; a line over the limit in smaller runs."""
    for line in text.splitlines(keepends=True):
        if estimate_tokens(line) <= limit:
            yield line
        else:
            yield from (run for run in _UNIT.findall(line) if run)


def _rank(units: Sequence[str], i: int, num_chars: int) -> Rank:
    line, before = units[i], units[i - 1] if i else ""
    told = line[:num_chars] if num_chars else line
    return _level(line, before), zlib.crc32(told.encode("utf-8", "surrogatepass"))


def _level(line: str, before: str) -> int:
    """How good a place to cut is in front of `line`: 0 (inside of something) to 4 (a heading, a definition)."""
    body = line.lstrip()
    if not body:
        return 0
    is_indented, after_blank = body[0] != line[0], not before.strip()
    if _DEFINITION.match(body) or _LEADING.match(body):
        if _LEADING.match(before.lstrip()):
            return 0
        return 3 if is_indented else 4
    if not is_indented and after_blank:
        return 3 if _HEADING.match(body) else 2
    return 1 if after_blank else 0
