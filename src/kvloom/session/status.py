"""What the status shows, read off the manifest, the device's books and the tiers. Changes nothing, costs no context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot
from kvloom.context.weave import Weave
from kvloom.session.values import ContextUsage, Segment, TierStatus
from kvloom.types import ChunkId, EntryId, TierName

if TYPE_CHECKING:
    from kvloom.session.budget import Budget
    from kvloom.session.loom import Loom

COLDNESS = (TierName.DEVICE, TierName.RAM, TierName.DISK, TierName.REMOTE, TierName.NONE)
"""From warm to cold: a chunk of several parts is as cold as its coldest."""

SMOOTHING = 0.3
"""Weight of the newest measurement in a rate: machines are shared, single runs are noisy."""


@dataclass
class Rates:
    """Seconds per token of placing and computing, measured on this machine in this process. None: not yet."""

    place_s: float | None = None
    compute_s: float | None = None

    def note(self, weave: Weave) -> None:
        """Learn from a weave that did one thing only: mixed ones cannot be told apart."""
        if weave.loaded_tokens and not weave.computed_tokens:
            self.place_s = _smooth(self.place_s, weave.seconds / weave.loaded_tokens)
        elif weave.computed_tokens and not weave.loaded_tokens:
            self.compute_s = _smooth(self.compute_s, weave.seconds / weave.computed_tokens)

    def restore_s(self, tier: TierName, num_tokens: int) -> float | None:
        """An estimate for bringing `num_tokens` to the device from `tier`."""
        if tier is TierName.DEVICE:
            return 0.0
        rate = self.compute_s if tier is TierName.NONE else self.place_s
        return None if rate is None else rate * num_tokens


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)


def coldest(tiers: Sequence[TierName]) -> TierName:
    return max(tiers, key=COLDNESS.index, default=TierName.NONE)


def context_usage(loom: Loom, manifest: Manifest, owner: str, budget: Budget) -> ContextUsage:
    """The window by segment; a chunk of several parts is one segment."""
    with loom.device.lock:
        resident = {(r.entry, r.position) for holder, r in loom.device.residents() if holder == owner}
    stale = loom.library.stale((ChunkId(slot.ref), slot.name) for slot in manifest.chunks if not slot.part)
    segments = []
    numbers = {slot.ref: number for number, slot in enumerate(manifest.turns, 1)}
    for _, group in groupby(manifest.slots, key=lambda slot: (slot.kind, slot.ref)):
        segment = _segment(loom, manifest, list(group), resident, stale)
        is_turn = segment.ref in numbers
        segments.append(replace(segment, name=f"turn {numbers[segment.ref]}") if is_turn else segment)
    used = manifest.num_tokens
    return ContextUsage(
        used=used,
        capacity=budget.window(manifest),
        free=budget.window(manifest) - used,
        reserve=budget.reserve(manifest),
        num_hole_tokens=manifest.num_hole_tokens,
        fidelity=manifest.fidelity,
        policy=budget.policy_name(manifest),
        segments=tuple(segments),
        is_estimate=not loom.counts_exactly,
    )


def _segment(
    loom: Loom, manifest: Manifest, slots: list[Slot], resident: set[tuple[EntryId, int]], stale: set[ChunkId]
) -> Segment:
    tiers, restore, first = [], 0.0, slots[0]
    is_known = True
    for slot in slots:
        entry = loom.composer.entry_id(slot.tokens, slot.lineage)
        tier = TierName.DEVICE if (entry, slot.position) in resident else loom.store.where(entry)
        cost = loom.rates.restore_s(tier, slot.num_tokens)
        is_known = is_known and cost is not None
        restore += cost or 0.0
        tiers.append(tier)
    num_tokens = sum(slot.num_tokens for slot in slots)
    return Segment(
        kind=first.kind.value,
        name=first.name,
        ref=first.ref,
        num_tokens=num_tokens,
        start=first.position,
        stop=slots[-1].stop,
        is_active=first.active,
        is_pinned=first.pinned,
        is_stale=first.ref in stale,
        tier=coldest(tiers),
        kv_bytes=num_tokens * loom.engine.layout.token_bytes,
        restore_s=restore if is_known else None,
        traces=manifest.traces(first),
    )


def device_status(loom: Loom) -> TierStatus:
    """The native cells that are in use, as bytes of KV."""
    with loom.device.lock:
        entries = {(r.entry, r.position) for _, r in loom.device.residents()}
        used = loom.engine.used_cells() * loom.engine.layout.token_bytes
    return TierStatus(TierName.DEVICE, len(entries), used, loom.engine.num_cells * loom.engine.layout.token_bytes)
