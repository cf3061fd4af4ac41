"""In which order the requests of a batch run, so that what their prompts have in common is computed once. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

STEP_CHARS = 1024
"""What prompts have in common counts in steps of this: about a block of 256 tokens, the least that is shared."""


class Schedule:
    """Hands out the numbers of requests. `keys`: by number, how a request's prompt begins, and what it is asked of.

    Of requests that begin alike one runs first, alone; the others follow together when it is done. What is handed out
    next shares most with what was handed out before.
    """

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        order = sorted(range(len(keys)), key=lambda number: keys[number])
        self._order = order
        self._followers: dict[int, list[int]] = {}
        self._ready: list[int] = []
        for place, leader in enumerate(leaders([keys[number] for number in order])):
            if leader is None:
                self._ready.append(place)
            else:
                self._followers.setdefault(leader, []).append(place)
        self._places = {number: place for place, number in enumerate(order)}
        heapq.heapify(self._ready)

    @property
    def has_next(self) -> bool:
        return bool(self._ready)

    def next(self) -> int:
        """The next request's number. There is one."""
        return self._order[heapq.heappop(self._ready)]

    def done(self, number: int) -> None:
        """A request that was handed out has ended: those that waited for it may run."""
        for place in self._followers.pop(self._places[number], ()):
            heapq.heappush(self._ready, place)


def leaders(keys: Sequence[tuple[str, str]]) -> list[int | None]:
    """For each of the sorted keys, the first one that shares as much with it as any before it; None: nothing shared.

    Only texts of the same first part share anything.
    """
    found: list[int | None] = [None] if keys else []
    runs: list[tuple[int, int]] = []  # (the first place that shares so many steps with all up to here, steps), rising
    for place in range(1, len(keys)):
        shared = _common(keys[place - 1], keys[place])
        first = place - 1
        while runs and runs[-1][1] >= shared:
            first = runs.pop()[0]
        runs.append((first, shared))
        found.append(first if shared else None)
    return found


def _common(one: tuple[str, str], other: tuple[str, str]) -> int:
    """Whole steps that both begin with."""
    if one[0] != other[0]:
        return 0
    most = min(len(one[1]), len(other[1])) // STEP_CHARS
    for step in range(most):
        part = slice(step * STEP_CHARS, (step + 1) * STEP_CHARS)
        if one[1][part] != other[1][part]:
            return step
    return most
