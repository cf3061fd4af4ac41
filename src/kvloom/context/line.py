"""Who found too few cells, in the order of coming: nobody is overtaken for ever by those who need less.

Knows no cells. Every call needs the turn at the turnstile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvloom.engine.turnstile import Turnstile

MAX_OVERTAKEN = 8
"""So many may be let in before one that came earlier: cells that it could not use anyway are put to use."""


@dataclass(eq=False)
class Place:
    """One who wants cells. `num_overtaken`: how many that came later were let in meanwhile."""

    num_overtaken: int = 0


class Line:
    """Those that wait, the earliest first."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._places: list[Place] = []

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Until the `with` block ends: let in, or gone."""
        place = Place()
        try:
            yield place
        finally:
            if place in self._places:
                self._places.remove(place)

    def found_too_few(self, place: Place) -> None:
        """It stands in line from now on."""
        if place not in self._places:
            self._places.append(place)

    def was_let_in(self, place: Place) -> None:
        for earlier in self._before(place):
            earlier.num_overtaken += 1

    def wait(self, place: Place, is_cancelled: Callable[[], bool]) -> None:
        """Until nobody stands before it who was overtaken too often, or `is_cancelled`."""
        if self._must_wait(place):
            self._turnstile.wait_for(lambda: is_cancelled() or not self._must_wait(place))

    def _must_wait(self, place: Place) -> bool:
        return any(earlier.num_overtaken >= MAX_OVERTAKEN for earlier in self._before(place))

    def _before(self, place: Place) -> list[Place]:
        return self._places[: self._places.index(place)] if place in self._places else self._places
