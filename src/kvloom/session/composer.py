"""Turns a manifest into rows on the device: what it wants, weaving it, blending for a question.

Joins context, engine and tiers for one loom. Knows no conversation and no log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from kvloom.context.blend import BlendChunk, select_runs
from kvloom.context.device import Device, Holding
from kvloom.context.manifest import Manifest, Slot, SlotKind, Tokens
from kvloom.context.plan import PRISTINE, Resident, Wanted
from kvloom.context.variants import Span, blended_spans, composition, keep_blended
from kvloom.context.weave import EntriesGoneError, StepCallback, Weave, Weaver
from kvloom.engine.base import Engine, RowLayer
from kvloom.errors import EngineStateError
from kvloom.kv.store import TieredStore
from kvloom.types import EntryId, EntryKey, Fidelity, Lineage, ModelFingerprint, TierName

MAX_REPLANS = 8
"""A weave finds all damaged entries that it wants at once; what replaces them may be damaged, too."""


MAX_KNOWN_IDS = 4096
"""Ids that are remembered, of some 500 bytes each: every request has blocks of its own."""
MAX_KNOWN_PIECES = 512
"""Runs whose tokens' bytes are remembered: a chunk's part of 1,000 tokens takes some 40 kB."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Composed:
    """A manifest as it was woven. It differs from the one asked for where lost turns had to be computed anew."""

    manifest: Manifest
    wanted: tuple[Wanted, ...]
    weave: Weave


class Composer:
    """Weaves manifests of all sessions of one loom. Callers hold `device.lock` while a holding is in use."""

    def __init__(
        self,
        engine: Engine,
        device: Device,
        store: TieredStore,
        lay: RowLayer,
        alone_prefix: Sequence[int] = (),
        tenant: str = "",
    ) -> None:
        self.engine = engine
        self.device = device
        self.store = store
        self.weaver = Weaver(device, store, lay, self.entry_key, alone_prefix)
        self.before_weave: Callable[[Manifest], None] = lambda _: None
        """Told what is about to be woven, before anything of it is stored; what it raises ends the weave."""
        self._model = _computed_by(engine.fingerprint, alone_prefix, tenant)
        self._layout = engine.layout.canonical()
        self._rope = engine.rope.canonical()
        self._ids: dict[tuple[str, Lineage], EntryId] = {}
        self._token_bytes: dict[str, tuple[bytes, ...]] = {}

    def entry_key(self, wanted: Wanted) -> EntryKey:
        return EntryKey(wanted.tokens, self._model, self._layout, self._rope, wanted.lineage)

    def entry_id(self, tokens: Tokens, lineage: Lineage) -> EntryId:
        """The id of the entry for these tokens behind this lineage, under the loaded model."""
        known = self._ids.get((tokens.digest, lineage))
        if known is None:
            known = EntryKey(tokens.ids, self._model, self._layout, self._rope, lineage).id
            _keep(self._ids, (tokens.digest, lineage), known, MAX_KNOWN_IDS)
        return known

    def wanted(self, manifest: Manifest) -> list[Wanted]:
        """What the manifest wants on the device, by position."""
        return [self.wanted_slot(slot) for slot in manifest.active]

    def wanted_slot(self, slot: Slot) -> Wanted:
        return Wanted(self.entry_id(slot.tokens, slot.lineage), slot.tokens.ids, slot.lineage, slot.position)

    def compose(
        self,
        holding: Holding,
        manifest: Manifest,
        on_step: StepCallback | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        num_to_come: int = 0,
    ) -> Composed:
        """Weave `manifest` into `holding`. Turns whose KV is lost are computed anew behind what stands now.

        `num_to_come` tokens will follow: their cells are kept for `holding` while it is at work.
        """
        num_gone = 0
        for _ in range(MAX_REPLANS):
            manifest, is_whole = self._with_lost_turns_renewed(holding, manifest)
            self.before_weave(manifest)
            wanted = self.wanted(manifest)
            if manifest.fidelity is Fidelity.BLEND and is_whole:
                # Turns that are computed anew must stand behind what their lineage names: rows as they were placed.
                wanted = keep_blended(wanted, holding)
            try:
                woven = self.weaver.weave(
                    holding, wanted, num_to_come=num_to_come, on_step=on_step, is_cancelled=is_cancelled
                )
            except EntriesGoneError as gone:
                num_gone += len(gone.entries)
                continue
            return Composed(manifest, tuple(wanted), woven)
        raise EngineStateError(
            f"{num_gone} stored entries were refused in {MAX_REPLANS} tries: run kvloom chunks verify"
        )

    def variant(self, holding: Holding) -> str:
        """A name for what blend has recomputed in place in `holding`; empty where nothing was."""
        blended = sorted((r.position, r.variant) for r in holding.residents.values() if r.variant != PRISTINE)
        return hashlib.sha256(repr(blended).encode()).hexdigest()[:16] if blended else ""

    def blend(self, holding: Holding, composed: Composed, question: str, budget: float) -> int:
        """Recompute in place what the question touches, within `budget` (share of the chunks' tokens)."""
        wanted = composed.wanted
        chunks = [
            BlendChunk(slot.position, self._pieces(slot.tokens))
            for slot in composed.manifest.active
            if slot.kind is SlotKind.CHUNK
        ]
        runs = select_runs(chunks, question, budget, max(0, self.device.num_free_sequences()))
        fresh = _without_done([Span(run.start, run.stop) for run in runs], tuple(holding.residents.values()))
        fresh = _within(fresh, self.device.num_free_cells() // 2)

        def prefix(position: int) -> str:
            return composition(want for want in wanted if want.position < position)

        return self.weaver.blend(holding, wanted, fresh, prefix)

    def tier(self, slot: Slot, owner: str) -> TierName:
        """Where the slot's entry is now, seen from one session."""
        return self.tier_of(self.entry_id(slot.tokens, slot.lineage), slot.position, owner)

    def tier_of(self, entry: EntryId, position: int, owner: str) -> TierName:
        for holder, resident in self.device.residents():
            if holder == owner and resident.entry == entry and resident.position == position:
                return TierName.DEVICE
        return self.where(entry)

    def where(self, entry: EntryId) -> TierName:
        """The tier of an entry that is not on the device; UNKNOWN where the KV is another server's business."""
        return self.store.where(entry) if self.engine.capabilities.kv_types else TierName.UNKNOWN

    def forget(self, digests: Set[str]) -> None:
        """Nothing of these token runs stays in memory."""
        for key in [key for key in list(self._ids) if key[0] in digests]:  # others may add to it meanwhile
            self._ids.pop(key, None)
        for digest in digests:
            self._token_bytes.pop(digest, None)

    # -- inside -------------------------------------------------------------------------------------------------

    def _pieces(self, tokens: Tokens) -> tuple[bytes, ...]:
        """The bytes of each token; kept, since every question of a blend looks at all of them."""
        known = self._token_bytes.get(tokens.digest)
        if known is None:
            vocabulary = self.engine.vocabulary
            known = tuple(vocabulary.token_bytes(token, special=True) for token in tokens.ids)
            _keep(self._token_bytes, tokens.digest, known, MAX_KNOWN_PIECES)
        return known

    def _with_lost_turns_renewed(self, holding: Holding, manifest: Manifest) -> tuple[Manifest, bool]:
        """A turn whose entry is nowhere gets the lineage of where it stands: it will be computed behind that.

        Under its old key it may not be computed, since what it attended to then may not stand before it now. Nor can
        it be computed behind a hole: these are closed. The second value: no turn has to be computed.
        """
        lost = self._lost_turns(holding, manifest)
        if not lost or manifest.fidelity is Fidelity.EXACT:
            return manifest, not lost
        manifest = manifest.settled(dense=True)
        lost = self._lost_turns(holding, manifest)  # closing holes moves rows that may be on the device only
        for index, slot in enumerate(manifest.slots):
            if slot.kind is SlotKind.TURN and slot.ref in lost:
                fresh = replace(slot, lineage=manifest.lineage_at(slot.position), seen=manifest.seen_at(slot.position))
                manifest = replace(manifest, slots=(*manifest.slots[:index], fresh, *manifest.slots[index + 1 :]))
        return manifest, False

    def _lost_turns(self, holding: Holding, manifest: Manifest) -> set[str]:
        held = {(resident.entry, resident.position) for resident in holding.residents.values()}
        entries = ((slot, self.entry_id(slot.tokens, slot.lineage)) for slot in manifest.turns if slot.active)
        return {s.ref for s, entry in entries if (entry, s.position) not in held and not self.weaver.has(entry)}


def _keep(known: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Remember a value, in place of the oldest ones where there are too many. Safe for several threads."""
    known[key] = value
    while len(known) > most:
        with suppress(RuntimeError, StopIteration):  # another thread was at it
            known.pop(next(iter(known)), None)


def _computed_by(fingerprint: ModelFingerprint, alone_prefix: Sequence[int], tenant: str) -> ModelFingerprint:
    """The model, and what its chunks are computed behind: entries of another prefix are other entries.

    It is in every key and not in the lineage alone, since turns behind such chunks differ with it too. So is the
    tenant: nothing that one computed is ever found by another, not even by how soon a reply comes.
    """
    by = str(fingerprint)
    if len(alone_prefix) > 1:
        by = hashlib.sha256(f"{by}:{list(alone_prefix)}".encode()).hexdigest()
    if tenant:
        by = hashlib.sha256(f"{by}:tenant:{tenant}".encode()).hexdigest()
    return ModelFingerprint(by)


def _without_done(runs: Sequence[Span], residents: Sequence[Resident]) -> list[Span]:
    """Runs less what blend has recomputed already behind the same composition."""
    done = [
        Span(resident.position + span.start, resident.position + span.stop)
        for resident in residents
        for span in blended_spans(resident.variant)
    ]
    fresh: list[Span] = []
    for run in runs:
        pieces = [run]
        for old in done:
            pieces = [part for piece in pieces for part in _subtract(piece, old)]
        fresh += pieces
    return fresh


def _subtract(run: Span, old: Span) -> list[Span]:
    if old.stop <= run.start or old.start >= run.stop:
        return [run]
    parts = [Span(run.start, min(run.stop, old.start)), Span(max(run.start, old.stop), run.stop)]
    return [part for part in parts if part.start < part.stop]


def _within(runs: Sequence[Span], limit: int) -> list[Span]:
    """The first runs that together stay within `limit` tokens."""
    kept, total = [], 0
    for run in runs:
        total += run.stop - run.start
        if total > limit:
            break
        kept.append(run)
    return kept
