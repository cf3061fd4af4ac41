"""Which sequence holds which positions in which cells: the engine's own books, asked before every native call.

It knows no native library and no bytes: a refused native call would abort the process, so nothing is left to it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from kvloom.errors import EngineMemoryError, EngineStateError

__all__ = ["MAX_POSITION", "CellBooks", "Span"]

MAX_POSITION = 2**31 - 2
"""Positions are signed 32 bit on the native side, and `stop` must fit too."""

_ORIGIN_STRIDE = 2**32
"""Distance of two origins: more than any position, so that cells of two origins never get one number."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions start … stop - 1 of one sequence. The cell of position p has the number `origin + p`.

    Numbers name cells for counting only (the native index is nobody's business): every span that is computed or
    written gets an origin of its own, and copying it to another sequence keeps the origin. So two sequences share a
    cell exactly when both hold its number, and the used cells are the union of all number ranges.
    """

    start: int
    stop: int
    origin: int


class CellBooks:
    """Positions and cells of every sequence. Raises before anything changes; not thread-safe."""

    def __init__(self, num_cells: int, num_sequences: int) -> None:
        self.num_cells = num_cells
        self._spans: list[list[Span]] = [[] for _ in range(num_sequences)]
        self._growing: list[bool] = [False] * num_sequences
        self._next_origin = 0
        self._num_used = 0

    @property
    def num_used_cells(self) -> int:
        return self._num_used

    @property
    def num_free_cells(self) -> int:
        return self.num_cells - self._num_used

    def spans(self, sequence: int) -> tuple[Span, ...]:
        """The sequence's spans by ascending position; neighbours may touch."""
        return tuple(self._spans[self._known(sequence)])

    def num_tokens(self, sequence: int) -> int:
        return sum(span.stop - span.start for span in self._spans[self._known(sequence)])

    def last_position(self, sequence: int) -> int | None:
        spans = self._spans[self._known(sequence)]
        return spans[-1].stop - 1 if spans else None

    def num_tokens_between(self, sequence: int, start: int, stop: int) -> int:
        return sum(min(s.stop, stop) - max(s.start, start) for s in self._overlapping(sequence, start, stop))

    def check_append(self, sequence: int, start: int, num_tokens: int) -> None:
        """Refuse what is not exactly behind the sequence's last position."""
        last = self.last_position(sequence)
        if num_tokens < 1:
            raise EngineStateError(f"a run of {num_tokens} tokens for sequence {sequence}: at least 1 is needed")
        if start < 0 or start + num_tokens - 1 > MAX_POSITION:
            raise EngineStateError(f"positions {start} … {start + num_tokens - 1} are outside 0 … {MAX_POSITION}")
        if last is not None and start != last + 1:
            raise EngineStateError(
                f"sequence {sequence} ends at position {last}: the next run must start at {last + 1}, not {start}"
            )

    def check_room(self, num_tokens: int, num_freed: int = 0) -> None:
        """Refuse `num_tokens` new cells when fewer are free (after `num_freed` more have been given back)."""
        num_free = self.num_free_cells + num_freed
        if num_tokens > num_free:
            raise EngineMemoryError(
                f"{num_tokens} more tokens need {num_tokens} cells, but only {num_free} of {self.num_cells} are free; "
                "drop something from the context or load the model with a larger one"
            )

    def append(self, sequence: int, start: int, num_tokens: int) -> None:
        """Note that `num_tokens` new cells continue the sequence at `start`."""
        # First: who reads on without the turn may see too few free cells for a moment, never too many.
        self._num_used += num_tokens
        spans = self._spans[sequence]
        if spans and self._growing[sequence] and spans[-1].stop == start:
            last = spans[-1]
            spans[-1] = Span(last.start, last.stop + num_tokens, last.origin)
        else:
            spans.append(Span(start, start + num_tokens, self._new_origin()))
            self._growing[sequence] = True

    def check_copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Refuse a copy that would give the target a position twice."""
        self._known(source)
        self._known(target)
        self._check_range(start, stop)
        if source == target:
            raise EngineStateError(f"sequence {source} cannot be copied onto itself")
        for wanted in self._overlapping(source, start, stop):
            low, high = max(wanted.start, start), min(wanted.stop, stop)
            if taken := self._overlapping(target, low, high):
                raise EngineStateError(
                    f"sequence {target} already holds position {max(taken[0].start, low)}: remove it before copying "
                    f"{start} … {stop - 1} from sequence {source}"
                )

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Note that the target now shares the source's cells in the range."""
        added = [Span(max(s.start, start), min(s.stop, stop), s.origin) for s in self._overlapping(source, start, stop)]
        if not added:
            return
        spans = sorted((*self._spans[target], *added), key=lambda span: span.start)
        # What was copied may grow in its source: the copy must not hand out the same cell numbers.
        if spans[-1] is not (self._spans[target][-1] if self._spans[target] else None):
            self._growing[target] = False
        self._spans[target] = spans

    def remove(self, sequence: int, start: int, stop: int | None) -> None:
        """Note that the sequence no longer holds the range; cells that no other sequence holds become free."""
        end = MAX_POSITION + 1 if stop is None else stop
        kept: list[Span] = []
        for span in self._spans[sequence]:
            if span.start < min(span.stop, start):
                kept.append(Span(span.start, min(span.stop, start), span.origin))
            if max(span.start, end) < span.stop:
                kept.append(Span(max(span.start, end), span.stop, span.origin))
        before = self._spans[sequence]
        if kept == before:
            return
        if not kept or kept[-1].stop != before[-1].stop:
            # A cut tail may live on in a copy: growing again must use new numbers.
            self._growing[sequence] = False
        self._spans[sequence] = kept
        self._num_used = self._count_used()

    def check_range(self, sequence: int, start: int, stop: int | None) -> None:
        self._known(sequence)
        self._check_range(start, MAX_POSITION + 1 if stop is None else stop)

    def num_cells_only_in(self, sequence: int) -> int:
        """Cells that become free when the sequence is removed."""
        own = self._spans[self._known(sequence)]
        others = [spans for i, spans in enumerate(self._spans) if i != sequence]
        return self._num_used - _union(span for spans in others for span in spans) if own else 0

    def _count_used(self) -> int:
        return _union(span for spans in self._spans for span in spans)

    def _overlapping(self, sequence: int, start: int, stop: int) -> list[Span]:
        spans = self._spans[self._known(sequence)]
        if start >= stop:
            return []
        first = max(0, bisect_left(spans, start, key=lambda span: span.start) - 1)
        return [span for span in spans[first:] if span.start < stop and span.stop > start]

    def _known(self, sequence: int) -> int:
        if not 0 <= sequence < len(self._spans):
            raise EngineStateError(f"sequence {sequence} does not exist: there are 0 … {len(self._spans) - 1}")
        return sequence

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= MAX_POSITION + 1:
            raise EngineStateError(f"positions {start} … {stop - 1} are no range within 0 … {MAX_POSITION}")

    def _new_origin(self) -> int:
        origin, self._next_origin = self._next_origin, self._next_origin + _ORIGIN_STRIDE
        return origin


def _union(spans: Iterator[Span]) -> int:
    """How many different cell numbers the spans cover."""
    ranges = sorted((span.origin + span.start, span.origin + span.stop) for span in spans)
    count, reached = 0, -1
    for start, stop in ranges:
        if stop > reached:
            count += stop - max(start, reached)
            reached = stop
    return count
