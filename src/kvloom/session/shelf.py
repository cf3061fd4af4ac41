"""The known chunks: loading, naming, looking at them and at where their KV is. Joins catalog, text and tiers.

Knows no conversation; what sessions hold of a chunk is asked through `Loom`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from kvloom.chunk.catalog import Catalog, ChunkRecord, EntryRecord, Staleness
from kvloom.chunk.content import Content, Encoding, read_bytes, read_file, read_text
from kvloom.context.manifest import Manifest, SlotKind, Tokens
from kvloom.errors import ContentError, UnknownChunkError
from kvloom.session.composer import Composer
from kvloom.session.status import coldest
from kvloom.session.traces import Traces, traced_in
from kvloom.session.values import Chunk, ChunkStatus, Reloaded
from kvloom.text.known_texts import KnownSpan, KnownTexts
from kvloom.text.pieces import PromptBuilder
from kvloom.types import ALONE, ChunkId, EntryId, TierName

MAX_CACHED_PARTS = 256
"""Tokenized chunks kept in memory: a chunk of 1,000 tokens takes some 40 kB."""
MAX_KNOWN_RECORDS = 4096
"""Entries that are known to be in the catalog, of some 350 bytes each: exact requests make ever new ones of the same
chunk."""


@dataclass(frozen=True)
class _Seen:
    """What the catalog and the device say of many chunks, read once for all of them."""

    num_tokens: Mapping[ChunkId, int]
    stale: Set[ChunkId]
    entries: Mapping[ChunkId, Sequence[EntryId]]
    sources: Mapping[str, str]
    on_device: Set[EntryId]


class Shelf:
    """All chunks of a home under one loaded model. Thread-safe as its catalog and tiers are."""

    def __init__(self, catalog: Catalog, traces: Traces, builder: PromptBuilder, composer: Composer) -> None:
        self.catalog = catalog
        self.traces = traces
        self._builder = builder
        self._composer = composer
        self._model = composer.engine.fingerprint
        self.counts_exactly = True
        """Whether the model's own tokenizer counts; else its numbers of tokens are estimates, and marked."""
        self._parts: dict[tuple[ChunkId, str], tuple[Tokens, ...]] = {}
        self._recorded: set[tuple[ChunkId, int, EntryId]] = set()
        self._traced: set[tuple[ChunkId, EntryId]] = set()
        self._refused: set[ChunkId] = set()
        self._bare_parts: dict[ChunkId, tuple[tuple[int, ...], ...]] = {}
        self._texts: KnownTexts | None = None
        self._texts_lock = threading.Lock()

    # -- loading ------------------------------------------------------------------------------------------------

    def load(self, path: Path, name: str | None = None, repair: bool = False) -> Chunk:
        """A file as a chunk. Raises ContentError saying what is wrong with it."""
        return self.add(read_file(path, repair=repair), name)

    def load_text(self, text: str, name: str) -> Chunk:
        return self.add(read_text(text, name=name), name)

    def load_bytes(self, data: bytes, name: str, repair: bool = False) -> Chunk:
        return self.add(read_bytes(data, name=name, repair=repair), name)

    def parts(self, chunk: ChunkId, name: str) -> tuple[Tokens, ...]:
        """The token ids of each part of a chunk under a name."""
        known = self._parts.get((chunk, name))
        if known is None:
            known = self._tokenize(self.catalog.text(chunk), chunk, name)
        return known

    def name_for(self, chunk: ChunkId, ref: str) -> str:
        """The name that `ref` is, or the chunk's first."""
        record = self.catalog.get(chunk)
        return ref if ref in record.names else record.name

    def reload(self, chunks: Iterable[ChunkId] | None = None) -> list[Reloaded]:
        """Names whose files changed move to what the files hold now. Raises ContentError where one cannot be read."""
        wanted = None if chunks is None else set(chunks)
        moved = []
        unreadable: ContentError | None = None
        for stale in self.catalog.stale():
            if (wanted is not None and stale.chunk_id not in wanted) or stale.staleness is Staleness.MISSING:
                continue
            is_repaired = self.catalog.get(stale.chunk_id).encoding is Encoding.REPAIRED
            try:
                fresh = self.load(stale.path, stale.name, is_repaired)
            except ContentError as error:
                unreadable = unreadable or error  # the others are read all the same
                continue
            moved.append(self._reloaded(stale.name, stale.chunk_id, fresh.id))
        if unreadable is not None:
            raise unreadable
        return moved

    def moved(self, standing: Iterable[tuple[ChunkId, str]]) -> list[Reloaded]:
        """Which of these chunks stand under names that have moved on to another chunk, whoever moved them."""
        found = []
        for chunk, name in standing:
            now = self._now(chunk, name)
            if now is not None:
                found.append(self._reloaded(name, chunk, now))
        return found

    def stale(self, standing: Iterable[tuple[ChunkId, str]]) -> set[ChunkId]:
        """Those of these chunks, and the names they stand under, that are not what the names or their files hold."""
        named = dict(standing)
        changed = {stale.chunk_id for stale in self.catalog.stale(named.values())} if named else set()
        return changed | {chunk for chunk, name in named.items() if self._now(chunk, name) is not None}

    # -- passages of libraries ----------------------------------------------------------------------------------

    def passage_names(self, passages: Iterable[tuple[ChunkId, str, tuple[int, int]]]) -> dict[ChunkId, str]:
        """`book.md:120-180` for (chunk, document, lines). The name stands in the prompt, so a passage keeps the one
        that it was first known by: lines that an edit elsewhere has moved must not cost its KV. Where another text has
        the name, it gets a mark."""
        wanted = {chunk: (document, f"{document}:{first}-{last}") for chunk, document, (first, last) in passages}
        records = self.catalog.get_many(wanted)
        owners = self.catalog.owners(name for _, name in wanted.values())
        names: dict[ChunkId, str] = {}
        for chunk, (document, name) in wanted.items():
            known = [one for one in records[chunk].names if one.startswith(f"{document}:")] if chunk in records else []
            is_free = owners.setdefault(name, chunk) == chunk
            names[chunk] = known[0] if known else name if is_free else f"{name}~{chunk[:8]}"
        return names

    def passage_parts(self, chunk: ChunkId, name: str, text: str) -> tuple[Tokens, ...]:
        """`parts` of a text that need not be a chunk yet."""
        return self._parts.get((chunk, name)) or self._tokenize(text, chunk, name)

    def add_passage(self, chunk: ChunkId, name: str, text: str) -> None:
        """A passage as a chunk under this name; nothing is written where it is one. Its KV may be packed smaller than
        that of chunks that somebody chose."""
        runs = self.passage_parts(chunk, name, text)
        self._composer.store.pack([self._composer.entry_id(run, ALONE) for run in runs])
        record = self.catalog.get_many([chunk]).get(chunk)
        if record is None or record.is_erased or name not in record.names:
            self.load_text(text, name)

    # -- chunks inside of other texts ---------------------------------------------------------------------------

    def recognised(self, text: str) -> list[KnownSpan]:
        """Where the texts of known chunks stand in `text`, in order, without overlaps."""
        spans = self._known_texts().find(text)
        return [span for span in spans if not self.catalog.get(ChunkId(span.chunk_id)).is_erased]

    def bare_parts(self, chunk: ChunkId) -> tuple[tuple[int, ...], ...]:
        """The ids of a chunk's parts without header or separator: as it stands inside of another text."""
        known = self._bare_parts.get(chunk)
        if known is None:
            known = self._builder.text_pieces(self.catalog.text(chunk))
            if len(self._bare_parts) >= MAX_CACHED_PARTS:
                self._bare_parts.pop(next(iter(self._bare_parts)))
            self._bare_parts[chunk] = known
        return known

    def _known_texts(self) -> KnownTexts:
        with self._texts_lock:
            if self._texts is None:
                self._texts = KnownTexts()
                for record in self.catalog.ls():
                    self._texts.add(record.id, self.catalog.text(record.id))
            return self._texts

    # -- looking ------------------------------------------------------------------------------------------------

    def statuses(self, *, erased: bool = False) -> list[ChunkStatus]:
        """Every known chunk in the order of loading (the erased ones, if asked for)."""
        seen = _Seen(
            self.catalog.num_tokens(self._model),
            {item.chunk_id for item in self.catalog.stale()},
            self.catalog.entries_by_chunk(self._model),
            self.catalog.sources(),
            self._on_device(),
        )
        return [self._status(record, seen) for record in self.catalog.ls(erased=erased)]

    def status(self, chunk: ChunkId) -> ChunkStatus:
        record = self.catalog.get(chunk)
        sources = ((name, self.catalog.name(name).source) for name in record.names)
        seen = _Seen(
            self.catalog.num_tokens(self._model, [chunk]),
            {stale.chunk_id for stale in self.catalog.stale(record.names)} if record.names else set(),
            {chunk: [item.entry_id for item in self.catalog.entries_of(chunk, self._model)]},
            {name: str(source.path) for name, source in sources if source is not None},
            self._on_device(),
        )
        return self._status(record, seen)

    def entries(self, chunk: ChunkId) -> list[tuple[int, EntryId]]:
        """(part, entry) of the loaded model: each part's own entry and every exact one that was computed."""
        known = [(record.part, record.entry_id) for record in self.catalog.entries_of(chunk, self._model)]
        if known:
            return known
        parts = self.parts(chunk, self.catalog.get(chunk).name)
        return [(part, self._composer.entry_id(run, ALONE)) for part, run in enumerate(parts)]

    def entries_anywhere(self, chunk: ChunkId) -> set[EntryId]:
        """Under every model: the chunk's own entries, and what was computed behind it."""
        recorded = {record.entry_id for record in self.catalog.entries_of(chunk)}
        return {*recorded, *(entry for _, entry in self.entries(chunk)), *self.traces.of(chunk)}

    def digests(self, chunk: ChunkId) -> set[str]:
        """The token runs of a chunk that are in memory."""
        return {run.digest for key, parts in list(self._parts.items()) if key[0] == chunk for run in parts}

    def record(self, manifest: Manifest) -> None:
        """Remember which entries hold parts of which chunks, and which stand behind them: a purge must find them all.

        Before anything is stored; durable on return. Raises UnknownChunkError for a chunk that was purged meanwhile.
        """
        named = {chunk for slot in manifest.active for chunk in (slot.ref, *slot.seen)}
        for gone in self._refused & named:
            raise UnknownChunkError(f"chunk {gone[:12]} is being purged")
        keys = [
            (ChunkId(slot.ref), slot.part, self._composer.entry_id(slot.tokens, slot.lineage))
            for slot in manifest.active
            if slot.kind is SlotKind.CHUNK
        ]
        fresh = [key for key in keys if key not in self._recorded]
        behind = [one for one in traced_in(manifest, self._composer.entry_id) if one not in self._traced]
        if not fresh and not behind:
            return
        for chunk in {key[0] for key in fresh}:
            self.catalog.get(chunk)
        with self.traces.together():
            self.catalog.record_entries([EntryRecord(chunk, self._model, part, entry) for chunk, part, entry in fresh])
            self.traces.add(behind)
        if len(self._recorded) + len(self._traced) > MAX_KNOWN_RECORDS:
            self.forget_recorded()
        self._recorded.update(fresh)
        self._traced.update(behind)

    def refuse(self, chunk: ChunkId, *, refused: bool = True) -> None:
        """Nothing is recorded, and so nothing woven, of a chunk that is about to be purged."""
        if refused:
            self._refused.add(chunk)
        else:
            self._refused.discard(chunk)

    def forget_recorded(self) -> None:
        """What was recorded is recorded again when it is next woven, which changes nothing."""
        self._recorded.clear()
        self._traced.clear()

    def forget(self, chunk: ChunkId) -> None:
        """Nothing of a purged chunk stays in memory."""
        for key in [key for key in list(self._parts) if key[0] == chunk]:  # others may add to it meanwhile
            self._parts.pop(key, None)
        self.forget_recorded()
        self._bare_parts.pop(chunk, None)
        if self._texts is not None:
            self._texts.remove(chunk)

    def forget_tokens(self) -> None:
        """Chunks are tokenized anew when they are next asked for."""
        self._parts.clear()
        self._bare_parts.clear()

    # -- inside -------------------------------------------------------------------------------------------------

    def _reloaded(self, name: str, old: ChunkId, new: ChunkId) -> Reloaded:
        before = {run.digest for run in self.parts(old, name)}
        now = self.parts(new, name)
        return Reloaded(name, old, new, sum(run.digest not in before for run in now), len(now))

    def _now(self, chunk: ChunkId, name: str) -> ChunkId | None:
        """The chunk that a name has moved on to from `chunk`."""
        try:
            record = self.catalog.name(name)
        except UnknownChunkError:
            return None
        is_former = record.chunk_id != chunk and chunk in record.former
        return record.chunk_id if is_former and not self.catalog.get(record.chunk_id).is_erased else None

    def add(self, content: Content, name: str | None) -> Chunk:
        """Content as a chunk under a name."""
        added = self.catalog.add(content, name)
        parts = self._tokenize(content.text, content.id, added.name)
        num_tokens = sum(len(run) for run in parts)
        if not num_tokens:
            raise ContentError(f"{added.name} has no tokens under this model: there is nothing to load")
        self.catalog.set_num_tokens(content.id, self._model, num_tokens)
        if self._texts is not None:
            self._texts.add(content.id, content.text)
        source = str(content.source.path) if content.source else ""
        return Chunk(
            content.id, added.name, num_tokens, len(parts), content.size_bytes, source, added.is_new,
            is_estimate=not self.counts_exactly,
        )  # fmt: skip

    def _tokenize(self, text: str, chunk: ChunkId, name: str) -> tuple[Tokens, ...]:
        parts = tuple(Tokens(piece.tokens) for piece in self._builder.chunk_pieces(name, text))
        if len(self._parts) >= MAX_CACHED_PARTS:
            self._parts.pop(next(iter(self._parts)))
        self._parts[chunk, name] = parts
        return parts

    def _on_device(self) -> set[EntryId]:
        device = self._composer.device
        with device.lock:
            return {resident.entry for _, resident in device.residents()}

    def _status(self, record: ChunkRecord, seen: _Seen) -> ChunkStatus:
        num_tokens = seen.num_tokens.get(record.id, 0)
        tiers = [self.tier(entry, seen.on_device) for entry in seen.entries.get(record.id, ())]
        held = [tier for tier in tiers if tier is not TierName.NONE]
        kv_bytes = num_tokens * self._composer.engine.layout.token_bytes if held else 0
        tier = coldest(held) if self._composer.engine.capabilities.kv_types else TierName.UNKNOWN
        source = next((seen.sources[name] for name in record.names if name in seen.sources), "")
        return ChunkStatus(
            record.id, record.name, num_tokens, record.size_bytes, tier, kv_bytes,
            source=source, is_stale=record.id in seen.stale, is_erased=record.is_erased,
            is_estimate=not self.counts_exactly,
        )  # fmt: skip

    def tier(self, entry: EntryId, on_device: Set[EntryId]) -> TierName:
        return TierName.DEVICE if entry in on_device else self._composer.where(entry)
