"""What blend has recomputed of a resident, and behind what: written into its variant, and read from it.

A variant is `<composition>:<start>-<stop>,…`, positions relative to the resident's first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvloom.context.device import Holding
from kvloom.context.plan import PRISTINE, Resident, Wanted


@dataclass(frozen=True)
class Span:
    """Positions start ≤ p < stop."""

    start: int
    stop: int


def composition(wanted: Iterable[Wanted]) -> str:
    """A name for exactly these rows at these positions: the prefix that blended rows were computed behind."""
    digest = hashlib.sha256()
    for want in wanted:
        digest.update(f"{want.entry}@{want.position};".encode())
    return digest.hexdigest()[:16]


def blended_spans(variant: str) -> list[Span]:
    """The runs of a resident that blend has recomputed, relative to its first position."""
    spans = variant.partition(":")[2]
    return [Span(int(a), int(b)) for a, _, b in (item.partition("-") for item in spans.split(",") if item)]


def blended(resident: Resident, runs: Sequence[Span], prefix: str) -> Resident:
    """The resident once `runs` (absolute, each touching it) were recomputed behind the composition `prefix`."""
    # A run may span two chunks: each remembers its own part.
    first, stop = resident.position, resident.stop
    inside = [(max(run.start, first) - first, min(run.stop, stop) - first) for run in runs]
    spans = ",".join(f"{start}-{stop}" for start, stop in inside)
    before = resident.variant.partition(":")[2]
    return replace(resident, variant=f"{prefix}:{before + ',' if before else ''}{spans}")


def keep_blended(wanted: Sequence[Wanted], holding: Holding) -> list[Wanted]:
    """`wanted`, taking over blended rows that are resident behind the very same composition."""
    result: list[Wanted] = []
    for want in wanted:
        resident = holding.residents.get(want.position)
        if resident is not None and resident.entry == want.entry and resident.variant != PRISTINE:
            is_same_before = resident.variant.partition(":")[0] == composition(result)
            want = replace(want, variant=resident.variant) if is_same_before else want
        result.append(want)
    return result
