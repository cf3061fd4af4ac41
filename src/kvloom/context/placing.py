"""Puts a question's passages into a manifest: what stands stays where it is, what is new fills the holes.

Pure: a manifest in, the next one out. Knows no index and no tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvloom.context.manifest import Manifest, Slot, SlotKind, Tokens
from kvloom.types import ALONE, ChunkId, Fidelity


@dataclass(frozen=True)
class Passage:
    """A chunk that a question wants, in parts as any chunk."""

    ref: ChunkId
    name: str
    parts: tuple[Tokens, ...]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.parts))


def standing(manifest: Manifest) -> tuple[ChunkId, ...]:
    """The passages that an earlier question brought in, in the order of the block; pinned ones are somebody's own."""
    brought, pinned = set(manifest.passages), {slot.ref for slot in manifest.chunks if slot.pinned}
    return tuple(chunk for chunk in manifest.chunk_ids if chunk in brought and chunk not in pinned)


def with_passages(manifest: Manifest, passages: Sequence[Passage]) -> Manifest:
    """The manifest with these passages, and none of an earlier question's beside them.

    In splice nothing that stays moves where the new ones fit between it; what fits nowhere comes behind the block, in
    the order given. So does everything in exact and blend, which have no holes: what stands before is still computed
    behind the same.
    """
    wanted = {passage.ref for passage in passages}
    leaving = {str(chunk) for chunk in standing(manifest) if chunk not in wanted}
    kept = manifest.without(leaving) if leaving else manifest
    here = set(kept.chunk_ids)
    fresh = [passage for passage in passages if passage.ref not in here]
    if not leaving and not fresh:
        return manifest
    head = [slot for slot in kept.slots if slot.kind is SlotKind.HEAD]
    block = list(kept.chunks)
    if kept.fidelity is Fidelity.SPLICE:
        # The largest first: small ones find a hole nearly everywhere.
        by_size = sorted(fresh, key=lambda one: (-one.num_tokens, one.ref))
        filled = {passage.ref for passage in by_size if _fill(kept, block, passage)}
        fresh = [passage for passage in fresh if passage.ref not in filled]
    for passage in fresh:
        block += _slots(kept, passage, max((slot.stop for slot in (*head, *block)), default=0))
    brought = {*kept.passages, *wanted - here}
    known = {*(slot.ref for slot in block), *(chunk for slot in kept.turns for chunk in slot.seen)}
    remembered = tuple(sorted(chunk for chunk in brought if chunk in known))
    return replace(kept, slots=(*head, *block, *kept.turns), passages=remembered).settled()


def _fill(manifest: Manifest, block: list[Slot], passage: Passage) -> bool:
    """Into the smallest hole of the block, or between it and the turns, that holds it; whether there was one."""
    start = max((slot.stop for slot in manifest.slots if slot.kind is SlotKind.HEAD), default=0)
    turns = [slot.position for slot in manifest.turns if slot.active]
    holes: list[tuple[int, int, int]] = []  # room, index, position
    for index, slot in enumerate(block):
        holes.append((slot.position - start, index, start))
        start = max(start, slot.stop)
    if turns:
        holes.append((min(turns) - start, len(block), start))
    best = min((hole for hole in holes if hole[0] >= passage.num_tokens), default=None)
    if best is None:
        return False
    block[best[1] : best[1]] = _slots(manifest, passage, best[2])
    return True


def _slots(manifest: Manifest, passage: Passage, position: int) -> list[Slot]:
    slots = []
    for part, tokens in enumerate(passage.parts):
        slots.append(
            Slot(
                SlotKind.CHUNK,
                tokens,
                position,
                ALONE,
                manifest.fidelity,
                ref=passage.ref,
                name=passage.name,
                part=part,
            )
        )
        position += len(tokens)
    return slots
