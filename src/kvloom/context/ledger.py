"""The ledger: what a caller gave that is not in the manifest, why, and how to get it back.

Derived from the log, never written: it is the difference of manifests. Knows no storage and no text.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from kvloom.context.manifest import Named

RESTORE = "restore"
"""First word of the operation that goes back to an earlier state."""

Key = TypeVar("Key")
"""Whatever numbers a log's manifests."""


@dataclass(frozen=True)
class Left(Generic[Key]):
    """A turn or chunk that is not in the manifest.

    `reason` is the operation that took it out, in the log's own words (where a restore only took back that it had come
    back, the one before); `last` the latest manifest that holds it.
    `is_undone`: no manifest before the present one holds it, since what brought it in was taken back.
    """

    named: Named
    reason: str
    last: Key
    is_undone: bool


@dataclass
class _State(Generic[Key]):
    """One manifest, as what it changed of its parent: a long log must not hold its every state.

    `back`: what it brought back, with what was said of that before, so that one can step back.
    """

    parent: Key | None
    operation: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
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
        self._here: set[str] = set()
        """What the manifest `_seat` holds."""
        self._reasons: dict[str, tuple[str, Key]] = {}
        """Of what the manifests up to `_seat` held and it does not: the operation, and the last manifest before it."""

    def note(self, number: Key, parent: Key | None, operation: str, named: Iterable[Named]) -> None:
        """One more manifest. A parent has to be noted before its children."""
        if parent != self._seat:
            self._go_to(parent)
        refs: dict[str, None] = {}
        for one in named:
            known = self._named.get(one.ref, one)
            refs[known.ref] = None  # the same string as ever: each manifest is decoded anew
            self._named[known.ref] = replace(one, ref=known.ref)
            self._last[known.ref] = number
            self._first.setdefault(known.ref, operation)
        added = tuple(ref for ref in refs if ref not in self._here)
        self._states[number] = _State(parent, operation, added, tuple(self._here - refs.keys()))

    def lines(self, head: Key) -> list[Left[Key]]:
        """What was ever given and is not in the manifest `head`, in the order in which it was given."""
        self._go_to(head)
        lines = []
        for ref, named in self._named.items():
            if ref in self._here:
                continue
            reason, last = self._reasons.get(ref, (f"undo {self._first[ref]}", self._last[ref]))
            lines.append(Left(named, reason, last, ref not in self._reasons))
        return lines

    def _go_to(self, head: Key | None) -> None:
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

    def _line_of(self, head: Key | None) -> Container[Key]:
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
        state.back = {ref: self._reasons.pop(ref) for ref in state.added if ref in self._reasons}
        for ref in state.removed:
            assert state.parent is not None
            self._reasons[ref] = (self._reason(ref, state), state.parent)
        self._here.difference_update(state.removed)
        self._here.update(state.added)
        self._seat = number

    def _reason(self, ref: str, state: _State[Key]) -> str:
        """Why `ref` is away behind `state`, which takes it out."""
        if not state.operation.startswith(RESTORE):
            return state.operation
        number = state.parent
        while number is not None and ref not in self._states[number].added:
            number = self._states[number].parent
        before = self._states[number].back.get(ref) if number is not None else None
        return before[0] if before else state.operation

    def _step_back(self) -> None:
        assert self._seat is not None
        state = self._states[self._seat]
        for ref in state.removed:
            del self._reasons[ref]
        self._reasons |= state.back
        self._here.difference_update(state.added)
        self._here.update(state.removed)
        self._seat = state.parent
