"""What the status shows, read off the manifest, the device's books and the tiers. Changes nothing, costs no context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Slot
from kvloom.session.values import ContextUsage, Segment, TierStatus
from kvloom.types import ChunkId, EntryId, TierName

if TYPE_CHECKING:
    from kvloom.session.budget import Budget
    from kvloom.session.loom import Loom

COLDNESS = (TierName.DEVICE, TierName.RAM, TierName.DISK, TierName.REMOTE, TierName.NONE, TierName.UNKNOWN)
"""From warm to cold: a chunk of several parts is as cold as its coldest."""


def coldest(tiers: Sequence[TierName]) -> TierName:
    return max(tiers, key=COLDNESS.index, default=TierName.NONE)


def context_usage(loom: Loom, manifest: Manifest, owner: str, budget: Budget) -> ContextUsage:
    """The window by segment; a chunk of several parts is one segment."""
    with loom.device.lock:
        resident = {(r.entry, r.position) for holder, r in loom.device.residents() if holder == owner}
    stale = loom.shelf.stale((ChunkId(slot.ref), slot.name) for slot in manifest.chunks if not slot.part)
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
        tier = TierName.DEVICE if (entry, slot.position) in resident else loom.composer.where(entry)
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
        is_estimate=not loom.counts_exactly,
    )


def device_status(loom: Loom) -> TierStatus:
    """The native cells that are in use, as bytes of KV."""
    with loom.device.lock:
        entries = {(r.entry, r.position) for _, r in loom.device.residents()}
        used = loom.engine.used_cells() * loom.engine.layout.token_bytes
    return TierStatus(TierName.DEVICE, len(entries), used, loom.engine.num_cells * loom.engine.layout.token_bytes)
