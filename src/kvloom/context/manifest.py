"""The manifest: an immutable, ordered list of slots that says exactly what the model sees.

Pure values and edits: every edit returns a new manifest. Knows no engine, no disk, no template.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import msgspec

from kvloom.types import ALONE, ChunkId, EntryId, Fidelity, Lineage, extend_lineage

_LINEAGE_START = hashlib.sha256(b"kvloom-lineage").digest()


class SlotKind(Enum):
    """A prompt is one HEAD, then a block of CHUNKs, then TURNs."""

    HEAD = "head"
    CHUNK = "chunk"
    TURN = "turn"


@dataclass(frozen=True)
class Tokens:
    """A piece's token ids under their own SHA-256, so that manifests can be stored without repeating them."""

    ids: tuple[int, ...] = field(repr=False)
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not self.digest:
            packed = struct.pack(f"<{len(self.ids)}i", *self.ids)
            object.__setattr__(self, "digest", hashlib.sha256(packed).hexdigest())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Slot:
    """One piece in a manifest.

    `lineage` is what the entry that stands here attended to. `seen` names the chunks a turn was computed behind: one
    of them that is off now has left its trace in the turn. `ref` is a chunk id or a turn id, `part` counts the parts
    of a split chunk from 0. `is_summary`: a turn that stands for earlier ones.
    """

    kind: SlotKind
    tokens: Tokens
    position: int
    lineage: Lineage
    fidelity: Fidelity
    ref: str = ""
    name: str = ""
    part: int = 0
    active: bool = True
    pinned: bool = False
    seen: tuple[ChunkId, ...] = ()
    is_summary: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def stop(self) -> int:
        """The position after the slot's last token."""
        return self.position + len(self.tokens)


@dataclass(frozen=True)
class Manifest:
    """Slots in the order of the prompt, and the settings that decide what is placed for them.

    `model` is the fingerprint of the model whose token ids these are: under another one they mean nothing. `window` is
    the session's budget in tokens; `policy` says what leaves it when it overflows, "" is the settings' own.
    `libraries` are searched with every question while it `recalls`. `passages`: chunks that came from them by
    themselves, those that stand here and those that a turn has seen.
    """

    slots: tuple[Slot, ...] = ()
    fidelity: Fidelity = Fidelity.SPLICE
    system: str = ""
    window: int = 0
    model: str = ""
    policy: str = ""
    libraries: tuple[str, ...] = ()
    recalls: bool = True
    passages: tuple[ChunkId, ...] = ()

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def active(self) -> tuple[Slot, ...]:
        """What the model sees, by position."""
        return tuple(slot for slot in self.slots if slot.active)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model sees."""
        return sum(len(slot.tokens) for slot in self.slots if slot.active)

    @property
    def span(self) -> int:
        """The position after the last active token; more than `num_tokens` by the holes."""
        return max((slot.stop for slot in self.slots if slot.active), default=0)

    @property
    def num_hole_tokens(self) -> int:
        return self.span - self.num_tokens

    @property
    def chunks(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.kind is SlotKind.CHUNK)

    @property
    def turns(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.kind is SlotKind.TURN)

    @property
    def chunk_ids(self) -> tuple[ChunkId, ...]:
        """Each chunk once, in the order of the block."""
        return tuple(dict.fromkeys(ChunkId(slot.ref) for slot in self.chunks))

    @property
    def active_chunk_ids(self) -> tuple[ChunkId, ...]:
        return tuple(dict.fromkeys(ChunkId(slot.ref) for slot in self.chunks if slot.active))

    def token_ids(self) -> list[int]:
        """The token ids of the whole context, in order."""
        return [token for slot in self.active for token in slot.tokens.ids]

    def traces(self, slot: Slot) -> tuple[ChunkId, ...]:
        """Chunks that are off (or gone) and that a turn was computed behind. A library's passages come and go with
        every question: they are none."""
        now = {*self.active_chunk_ids, *self.passages}
        return tuple(chunk for chunk in slot.seen if chunk not in now)

    def seen_at(self, position: int) -> tuple[ChunkId, ...]:
        """The chunks that a turn at `position` sees: what is on before it, and what earlier turns carry the trace of.

        Of a plain request chunks stand between its turns, and not in one block before them.
        """
        before = [slot for slot in self.active if slot.stop <= position]
        chunks = (ChunkId(slot.ref) for slot in before if slot.kind is SlotKind.CHUNK)
        traces = (chunk for slot in before if slot.kind is SlotKind.TURN for chunk in slot.seen)
        return tuple(dict.fromkeys((*chunks, *traces)))

    # -- edits --------------------------------------------------------------------------------------------------

    def with_head(self, tokens: Tokens, system: str) -> Manifest:
        """The same context behind another system text. Everything behind it keeps its order."""
        head = Slot(SlotKind.HEAD, tokens, 0, Lineage(_LINEAGE_START.hex()), Fidelity.EXACT, name="system")
        rest = tuple(slot for slot in self.slots if slot.kind is not SlotKind.HEAD)
        return replace(self, slots=(head, *rest), system=system).settled()

    def with_chunk(self, chunk: ChunkId, name: str, parts: Sequence[Tokens], index: int | None = None) -> Manifest:
        """The chunk's parts added, active, at `index` of the block (its end by default)."""
        fresh = tuple(
            Slot(SlotKind.CHUNK, tokens, 0, ALONE, self.fidelity, ref=chunk, name=name, part=part)
            for part, tokens in enumerate(parts)
        )
        return self._with_block(self.chunk_ids, {chunk: fresh}, chunk, index).settled()

    def moved(self, chunk: ChunkId, index: int) -> Manifest:
        """The chunk at another place of the block; holes are closed on the way."""
        return self._with_block(self.chunk_ids, {}, chunk, index).settled(dense=True)

    def switched(self, chunk: ChunkId, active: bool) -> Manifest:
        """The chunk on or off. Off leaves a hole, on fills it again where it still stands."""
        slots = tuple(
            replace(s, active=active) if s.ref == chunk and s.kind is SlotKind.CHUNK else s for s in self.slots
        )
        return replace(self, slots=slots).settled()

    def with_pin(self, ref: str, pinned: bool) -> Manifest:
        return replace(self, slots=tuple(replace(s, pinned=pinned) if s.ref == ref else s for s in self.slots))

    def without(self, refs: set[str]) -> Manifest:
        """Slots of these chunks or turns taken out."""
        return replace(
            self, slots=tuple(s for s in self.slots if s.ref not in refs or s.kind is SlotKind.HEAD)
        ).settled()

    def purged(self, chunk: ChunkId) -> Manifest:
        """As if the chunk had never been: its slots go, and turns do not remember it."""
        slots = (
            replace(slot, seen=tuple(known for known in slot.seen if known != chunk)) if chunk in slot.seen else slot
            for slot in self.slots
        )
        passages = tuple(known for known in self.passages if known != chunk)
        return replace(self, slots=tuple(slots), passages=passages).without({chunk})

    def owned(self, chunks: set[ChunkId]) -> Manifest:
        """These chunks are what somebody wanted here: no question takes them away, or brings back what is off."""
        if chunks.isdisjoint(self.passages):
            return self
        return replace(self, passages=tuple(known for known in self.passages if known not in chunks))

    def with_turn(self, tokens: Tokens, ref: str, position: int | None = None, variant: str = "") -> Manifest:
        """A turn computed behind everything that is active now.

        `variant` names what was recomputed in place before it (blend): such rows are others than the placed ones.
        """
        at = self.span if position is None else position
        lineage = self.lineage_at(at)
        if variant:
            lineage = Lineage(hashlib.sha256(f"{lineage}:{variant}".encode()).hexdigest())
        slot = Slot(SlotKind.TURN, tokens, at, lineage, Fidelity.EXACT, ref=ref, seen=self.seen_at(at))
        return replace(self, slots=(*self.slots, slot))

    def with_turn_again(self, slot: Slot, before: str | None) -> Manifest:
        """A turn that had left, back in front of the turn `before`, or behind all turns.

        It keeps the lineage it was computed with where the mode allows that, and so its KV.
        """
        # It stood at another place then, and holes must not be mistaken for room in the order.
        again = replace(slot, active=True, position=0)
        refs = [s.ref if s.kind is SlotKind.TURN else None for s in self.slots]
        at = len(refs) if before is None else refs.index(before)
        return replace(self, slots=(*self.slots[:at], again, *self.slots[at:])).settled()

    def with_summary(self, tokens: Tokens, ref: str, replaced: set[str]) -> Manifest:
        """A turn that stands for those of `replaced`, in the place of the first of them; nothing is left of these."""
        index = next(number for number, slot in enumerate(self.slots) if slot.ref in replaced)
        summary = Slot(SlotKind.TURN, tokens, 0, ALONE, Fidelity.EXACT, ref=ref, is_summary=True)
        kept = [slot for slot in self.slots if slot.ref not in replaced]
        at = sum(slot.ref not in replaced for slot in self.slots[:index])
        dense = replace(self, slots=(*kept[:at], summary, *kept[at:])).settled(dense=True)
        placed = dense.slots[at]
        own = replace(placed, lineage=dense.lineage_at(placed.position), seen=dense.seen_at(placed.position))
        return replace(dense, slots=(*dense.slots[:at], own, *dense.slots[at + 1 :]))

    def with_fidelity(self, fidelity: Fidelity) -> Manifest:
        """Another mode for what is placed from now on; exact closes the holes."""
        chunk_slots = (replace(s, fidelity=fidelity) if s.kind is SlotKind.CHUNK else s for s in self.slots)
        return replace(self, slots=tuple(chunk_slots), fidelity=fidelity).settled()

    def recomputed(self) -> Manifest:
        """Every turn to be computed again behind what is active now: no trace of what is off remains."""
        return self.settled(dense=True).with_current_lineages(turns=True)

    def settled(self, dense: bool = False) -> Manifest:
        """Positions made valid: strictly in order, no overlap.

        Sparse (the default in splice) moves a slot only where it must, so that holes stay open and nothing behind
        them moves. `dense` leaves no holes, nor do exact and blend: an engine decodes only right behind what a
        sequence holds, so nothing behind a hole could be recomputed in place.
        """
        dense = dense or self.fidelity is not Fidelity.SPLICE
        cursor, slots = 0, []
        for slot in self.slots:
            if not slot.active:
                slots.append(replace(slot, position=cursor) if dense and slot.position != cursor else slot)
                continue
            position = cursor if dense else max(cursor, slot.position)
            slots.append(slot if slot.position == position else replace(slot, position=position))
            cursor = position + len(slot.tokens)
        return replace(self, slots=tuple(slots)).with_current_lineages(turns=self.fidelity is Fidelity.EXACT)

    def with_current_lineages(self, turns: bool) -> Manifest:
        """The manifest with each slot's lineage as if it were computed where it stands now.

        In exact everything gets its Merkle lineage; in blend and splice chunks are ALONE, and turns change only on
        request (`turns`), since what they attended to is history.
        """
        state, slots = _LINEAGE_START, []
        seen: tuple[ChunkId, ...] = ()
        for slot in self.slots:
            if not slot.active:
                slots.append(slot)
                continue
            current = Lineage(state.hex())
            if slot.kind is SlotKind.CHUNK:
                seen = seen if slot.ref in seen else (*seen, ChunkId(slot.ref))
                current = current if self.fidelity is Fidelity.EXACT else ALONE
            if slot.kind is SlotKind.TURN and turns and (slot.lineage, slot.seen) != (current, seen):
                slot = replace(slot, lineage=current, seen=seen)
            elif slot.kind is not SlotKind.TURN and slot.lineage != current:
                slot = replace(slot, lineage=current)
            slots.append(slot)
            state = _step(state, slot, self.fidelity)
        return replace(self, slots=tuple(slots))

    def lineage_at(self, position: int) -> Lineage:
        """Merkle lineage of a piece computed at `position` behind every active slot before it."""
        state = _LINEAGE_START
        for slot in self.active:
            if slot.stop <= position:
                state = _step(state, slot, self.fidelity)
        return Lineage(state.hex())

    # -- storage ------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Bytes for the log. Token ids are left to `tokens_by_digest`, which the log stores once."""
        return msgspec.json.encode(_to_wire(self))

    def tokens_by_digest(self) -> Iterator[Tokens]:
        return iter({slot.tokens.digest: slot.tokens for slot in self.slots}.values())

    @staticmethod
    def named(body: bytes) -> list[Named]:
        """What `encode`d bytes name, without the token ids: one for each turn and chunk. A library's passages are not
        among them: nobody gave them here, and they are always to be had again."""
        found: dict[str, Named] = {}
        wire = msgspec.json.decode(body, type=_WireManifest)
        passages = set(wire.passages)
        for slot in wire.slots:
            if slot.kind == SlotKind.HEAD.value or slot.ref in passages:
                continue
            before = found[slot.ref].num_tokens if slot.ref in found else 0
            found[slot.ref] = Named(SlotKind(slot.kind), slot.ref, slot.name, before + slot.num_tokens, slot.is_summary)
        return list(found.values())

    @staticmethod
    def decode(body: bytes, load: Callable[[str], tuple[int, ...]]) -> Manifest:
        """The manifest of `encode`d bytes; `load` gives the token ids of a digest."""
        return _from_wire(msgspec.json.decode(body, type=_WireManifest), load)

    @staticmethod
    def decode_slots(body: bytes, ref: str, load: Callable[[str], tuple[int, ...]]) -> list[Slot]:
        """Of `encode`d bytes the slots of one turn or chunk: nothing else is loaded."""
        wire = msgspec.json.decode(body, type=_WireManifest)
        return [_slot_of(slot, wire.seen, load) for slot in wire.slots if slot.ref == ref]

    # -- inside -------------------------------------------------------------------------------------------------

    def _with_block(
        self, order: Sequence[ChunkId], fresh: dict[ChunkId, tuple[Slot, ...]], chunk: ChunkId, index: int | None
    ) -> Manifest:
        groups = {known: tuple(s for s in self.chunks if s.ref == known) for known in order} | fresh
        others = [known for known in order if known != chunk]
        at = len(others) if index is None else max(0, min(index, len(others)))
        others.insert(at, chunk)
        block = tuple(slot for known in others for slot in groups[known])
        head = tuple(s for s in self.slots if s.kind is SlotKind.HEAD)
        return replace(self, slots=(*head, *block, *self.turns))


@dataclass(frozen=True)
class Named:
    """A turn or chunk that a manifest names."""

    kind: SlotKind
    ref: str
    name: str
    num_tokens: int
    is_summary: bool = False


def _step(state: bytes, slot: Slot, fidelity: Fidelity) -> bytes:
    """The lineage after one more slot. It hashes what is placed: the tokens' digest and their own lineage."""
    placed = hashlib.sha256(slot.tokens.digest.encode() + slot.lineage.encode()).hexdigest()
    mode = slot.fidelity if slot.kind is SlotKind.CHUNK else Fidelity.EXACT
    mode = Fidelity.EXACT if fidelity is Fidelity.EXACT else mode
    return extend_lineage(state, EntryId(placed), slot.position, mode)


class _WireSlot(msgspec.Struct, array_like=True):
    kind: str
    digest: str
    num_tokens: int
    position: int
    lineage: str
    fidelity: str
    ref: str
    name: str
    part: int
    active: bool
    pinned: bool
    seen: list[str | int]
    is_summary: bool = False


class _WireManifest(msgspec.Struct):
    version: int
    fidelity: str
    system: str
    window: int
    slots: list[_WireSlot]
    model: str = ""
    policy: str = ""
    libraries: list[str] = []
    recalls: bool = True
    passages: list[str] = []
    seen: list[str] = []


_WIRE_VERSION = 3
"""1: `window` was always written, whether or not the session had one of its own. 2: every turn wrote the ids of what it
has seen; they are numbers in the manifest's own list since then, as turns behind a library have seen hundreds."""


def _to_wire(manifest: Manifest) -> _WireManifest:
    numbers: dict[str, int] = {}
    for slot in manifest.slots:
        for chunk in slot.seen:
            numbers.setdefault(chunk, len(numbers))
    slots = [
        _WireSlot(
            s.kind.value, s.tokens.digest, len(s.tokens), s.position, s.lineage, s.fidelity.value,
            s.ref, s.name, s.part, s.active, s.pinned, [numbers[c] for c in s.seen], s.is_summary,
        )
        for s in manifest.slots
    ]  # fmt: skip
    return _WireManifest(
        _WIRE_VERSION, manifest.fidelity.value, manifest.system, manifest.window, slots, manifest.model,
        manifest.policy, list(manifest.libraries), manifest.recalls, [str(chunk) for chunk in manifest.passages],
        list(numbers),
    )  # fmt: skip


def _slot_of(s: _WireSlot, known: Sequence[str], load: Callable[[str], tuple[int, ...]]) -> Slot:
    seen = tuple(ChunkId(known[one] if isinstance(one, int) else one) for one in s.seen)
    return Slot(
        SlotKind(s.kind), Tokens(load(s.digest), s.digest), s.position, Lineage(s.lineage), Fidelity(s.fidelity),
        s.ref, s.name, s.part, s.active, s.pinned, seen, s.is_summary,
    )  # fmt: skip


def _from_wire(wire: _WireManifest, load: Callable[[str], tuple[int, ...]]) -> Manifest:
    slots = tuple(_slot_of(slot, wire.seen, load) for slot in wire.slots)
    window = wire.window if wire.version > 1 else 0
    passages = tuple(ChunkId(chunk) for chunk in wire.passages)
    return Manifest(
        slots, Fidelity(wire.fidelity), wire.system, window, wire.model, wire.policy,
        tuple(wire.libraries), wire.recalls, passages,
    )  # fmt: skip
