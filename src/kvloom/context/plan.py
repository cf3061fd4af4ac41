"""The plan: which operations turn what is resident into a manifest. Pure: manifest and residents in, operations out.

Knows no engine and no disk. Four operations only: keep, place, compute, drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvloom.types import ALONE, EntryId, Lineage, SequenceId

PRISTINE = ""
"""Variant of rows as they were computed (rotated or not). Blend's rows carry the digest of what was recomputed."""


@dataclass(frozen=True)
class Wanted:
    """An entry that a manifest wants at a position. `tokens` are there to compute it if no tier has it."""

    entry: EntryId
    tokens: tuple[int, ...]
    lineage: Lineage
    position: int
    variant: str = PRISTINE

    @property
    def stop(self) -> int:
        return self.position + len(self.tokens)


@dataclass(frozen=True)
class Resident:
    """Rows that a native sequence holds now."""

    entry: EntryId
    position: int
    num_tokens: int
    variant: str = PRISTINE

    @property
    def stop(self) -> int:
        return self.position + self.num_tokens


@dataclass(frozen=True)
class Keep:
    """Rows are on the device already: in the session's own sequence, or in `source` to be shared from there."""

    wanted: Wanted
    source: SequenceId | None = None


@dataclass(frozen=True)
class Place:
    """Rows come from a tier and are rotated to `wanted.position`."""

    wanted: Wanted


@dataclass(frozen=True)
class Compute:
    """Rows are prefilled: alone behind the fixed prefix and then placed (`alone`), or where they stand."""

    wanted: Wanted

    @property
    def alone(self) -> bool:
        return self.wanted.lineage == ALONE


@dataclass(frozen=True)
class Drop:
    """Rows leave the session's sequence."""

    resident: Resident


Operation = Keep | Place | Compute


@dataclass(frozen=True)
class Plan:
    """Drops first, then the rest by position."""

    drops: tuple[Drop, ...]
    operations: tuple[Operation, ...]

    @property
    def num_reused_tokens(self) -> int:
        return _count(op.wanted for op in self.operations if isinstance(op, Keep))

    @property
    def num_loaded_tokens(self) -> int:
        return _count(op.wanted for op in self.operations if isinstance(op, Place))

    @property
    def num_computed_tokens(self) -> int:
        return _count(op.wanted for op in self.operations if isinstance(op, Compute))

    @property
    def num_dropped_tokens(self) -> int:
        return sum(drop.resident.num_tokens for drop in self.drops)


def make_plan(
    wanted: Sequence[Wanted],
    own: Sequence[Resident],
    shared: Mapping[Resident, SequenceId],
    has: Callable[[EntryId], bool],
) -> Plan:
    """The cheapest way from `own` (the session's sequence) to `wanted`, ordered by position.

    `shared` maps what other sequences hold to one of them, `has` says whether a tier holds an entry. Rows that stay
    where they are cost nothing, shared ones next to nothing, placed ones a copy, computed ones a prefill.
    """
    held = set(own)
    kept: set[Resident] = set()
    operations: list[Operation] = []
    for want in wanted:
        resident = Resident(want.entry, want.position, len(want.tokens), want.variant)
        if resident in held:
            kept.add(resident)
            operations.append(Keep(want))
        elif resident in shared:
            operations.append(Keep(want, shared[resident]))
        elif has(want.entry):
            operations.append(Place(want))
        else:
            operations.append(Compute(want))
    drops = tuple(Drop(resident) for resident in own if resident not in kept)
    return Plan(drops, tuple(operations))


def _count(wanted: Iterable[Wanted]) -> int:
    return sum(len(want.tokens) for want in wanted)
