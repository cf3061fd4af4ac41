"""The ledger: what a caller gave that is not in the manifest, why, and how to get it back.

Derived from the log, never written: it is the difference of manifests. Knows no storage and no text.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvloom.context.manifest import Named

Key = TypeVar("Key")
"""Whatever numbers a log's manifests."""


@dataclass(frozen=True)
class Left(Generic[Key]):
    """A turn or chunk that is not in the manifest.

    `reason` is the operation that took it out, in the log's own words; `last` the latest manifest that holds it.
    `is_undone`: no manifest before the present one holds it, since what brought it in was taken back.
    """

    named: Named
    reason: str
    last: Key
    is_undone: bool


@dataclass
class _State(Generic[Key]):
    """One manifest. `back`: what it brought back, with what was said of that before, so that one can step back."""

    parent: Key | None
    operation: str
    refs: frozenset[str]
    back: dict[str, tuple[str, Key]] = field(default_factory=dict)


class Ledger(Generic[Key]):
    """The manifests of one log, as far as they were noted. Not for several threads at once.

    Its cost follows what changed since the last look, not the length of the log.
    """

    def __init__(self) -> None:
        self._states: dict[Key, _State[Key]] = {}
        self._named: dict[str, Named] = {}
        self._last: dict[str, Key] = {}
        self._first: dict[str, str] = {}
        self._seat: Key | None = None
        self._reasons: dict[str, tuple[str, Key]] = {}
        """Of what the manifests up to `_seat` held and it does not: the operation, and the last manifest before it."""

    def note(self, number: Key, parent: Key | None, operation: str, named: Iterable[Named]) -> None:
        """One more manifest. A parent has to be noted before its children."""
        refs = set()
        for one in named:
            refs.add(one.ref)
            self._named[one.ref] = one
            self._last[one.ref] = number
            self._first.setdefault(one.ref, operation)
        self._states[number] = _State(parent, operation, frozenset(refs))

    def lines(self, head: Key) -> list[Left[Key]]:
        """What was ever given and is not in the manifest `head`, in the order in which it was given."""
        self._go_to(head)
        here = self._states[head].refs
        lines = []
        for ref, named in self._named.items():
            if ref in here:
                continue
            reason, last = self._reasons.get(ref, (f"undo {self._first[ref]}", self._last[ref]))
            lines.append(Left(named, reason, last, ref not in self._reasons))
        return lines

    def _go_to(self, head: Key) -> None:
        """Take the seat at `head`: back to where the two ways part, and on from there."""
        if self._seat is not None and self._states[self._seat].parent == head:  # an undo
            self._step_back()
            return
        way, there = [], self._line_of(head)
        while self._seat is not None and self._seat not in there:
            self._step_back()
        number: Key | None = head
        while number is not None and number != self._seat:
            way.append(number)
            number = self._states[number].parent
        for number in reversed(way):
            self._step_on(number)

    def _line_of(self, head: Key) -> Container[Key]:
        """The manifests up to `head`. Most often only the seat is asked for, and it is near."""
        found: set[Key] = set()
        number: Key | None = head
        while number is not None and number in self._states:
            found.add(number)
            if number == self._seat:
                break
            number = self._states[number].parent
        return found

    def _step_on(self, number: Key) -> None:
        state = self._states[number]
        before = self._states[state.parent].refs if state.parent is not None else frozenset[str]()
        state.back = {ref: self._reasons.pop(ref) for ref in state.refs - before if ref in self._reasons}
        for ref in before - state.refs:
            assert state.parent is not None
            self._reasons[ref] = (state.operation, state.parent)
        self._seat = number

    def _step_back(self) -> None:
        assert self._seat is not None
        state = self._states[self._seat]
        if state.parent is not None:
            for ref in self._states[state.parent].refs - state.refs:
                del self._reasons[ref]
        self._reasons |= state.back
        self._seat = state.parent
