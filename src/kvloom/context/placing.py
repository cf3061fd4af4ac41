"""Puts a question's passages into a manifest, in the order given, with as little moved as that takes.

Pure: a manifest in, the next one out. Knows no index and no tier.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

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
    """The manifest with these passages in this order, and none of an earlier question's beside them.

    Those that stand in this order stay, and the others go between them, into holes where there are any; or all of them
    are placed anew, whichever moves fewer tokens. In exact all that stands stays, and new ones come behind the block:
    what stands before is still computed behind the same.
    """
    brought, active = standing(manifest), set(manifest.active_chunk_ids)
    own = set(manifest.chunk_ids).difference(brought)
    ordered = [passage for passage in passages if passage.ref not in own]
    refs = [passage.ref for passage in ordered]
    # One that a policy switched off is placed again, as if it were new.
    seen = [chunk for chunk in brought if chunk in active]
    is_exact = manifest.fidelity is Fidelity.EXACT
    staying = set(seen).intersection(refs) if is_exact else _in_order(seen, refs)
    if len(staying) == len(brought) == len(refs):
        return manifest
    placed = _placed(manifest, ordered, staying)
    if is_exact or not staying:
        return placed
    return min(placed, _placed(manifest, ordered, set()), key=lambda way: _num_moved_tokens(manifest, way))


def _placed(manifest: Manifest, ordered: Sequence[Passage], staying: set[ChunkId]) -> Manifest:
    """With all of `ordered`, in this order; of what an earlier question brought, `staying` does not move by itself."""
    refs = [passage.ref for passage in ordered]
    kept = manifest.without({str(chunk) for chunk in standing(manifest) if chunk not in staying})
    head = [slot for slot in kept.slots if slot.kind is SlotKind.HEAD]
    block = list(kept.chunks)
    for number, passage in enumerate(ordered):
        if passage.ref not in staying:
            after, before = set(refs[:number]), staying.intersection(refs[number + 1 :])
            index, position = _place_for(kept, block, passage.num_tokens, after, before)
            block[index:index] = _slots(kept, passage, position)
    known = {*(slot.ref for slot in block), *(chunk for slot in kept.turns for chunk in slot.seen)}
    remembered = tuple(sorted({*kept.passages, *refs} & known))
    return replace(kept, slots=(*head, *block, *kept.turns), passages=remembered).settled()


def _num_moved_tokens(before: Manifest, after: Manifest) -> int:
    """Tokens that stand elsewhere than before."""
    stood = {(slot.ref, slot.part): slot.position for slot in before.active}
    return sum(
        slot.num_tokens for slot in after.active if stood.get((slot.ref, slot.part), slot.position) != slot.position
    )


def _in_order(seen: Sequence[ChunkId], wanted: Sequence[ChunkId]) -> set[ChunkId]:
    """As many as can be of those that stand in the order in which they are wanted."""
    place = {ref: number for number, ref in enumerate(seen)}
    nothing: list[ChunkId] = []
    chains: list[list[ChunkId]] = []
    for ref in wanted:
        if ref in place:
            longest = max([nothing, *(one for one in chains if place[one[-1]] < place[ref])], key=len)
            chains.append([*longest, ref])
    longest = max([nothing, *chains], key=len)
    return set(longest)


def _place_for(
    manifest: Manifest, block: Sequence[Slot], num_tokens: int, after: set[ChunkId], before: set[ChunkId]
) -> tuple[int, int]:
    """Index in the block and position: the first hole behind `after` and before `before` that holds so many tokens.

    Where there is none, the end of that range: what stands behind it makes room.
    """
    low = max((index + 1 for index, slot in enumerate(block) if slot.ref in after), default=0)
    high = min((index for index, slot in enumerate(block) if slot.ref in before), default=len(block))
    if manifest.fidelity is Fidelity.EXACT:
        low = high = len(block)
    stops = [0, *(slot.stop for slot in manifest.slots if slot.kind is SlotKind.HEAD)]
    starts = list(accumulate((slot.stop for slot in block), max, initial=max(stops)))
    turns = min((slot.position for slot in manifest.turns if slot.active), default=sys.maxsize)
    ends = [*(slot.position for slot in block), turns]
    for index in range(low, high + 1):
        if ends[index] - starts[index] >= num_tokens:
            return index, starts[index]
    return high, starts[high]


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
