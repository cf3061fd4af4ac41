"""The chunk side of a loom: loading, naming, looking at chunks, and moving their KV between the tiers.

Part of `Loom`, which makes what is declared here. Knows no conversation but for the places where a chunk stands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from kvloom.chunk.catalog import Catalog
from kvloom.context.device import Device
from kvloom.context.manifest import Manifest
from kvloom.engine.base import Engine
from kvloom.errors import AmbiguousChunkError, UnknownChunkError
from kvloom.kv.store import TieredStore
from kvloom.session.log import SessionLog
from kvloom.session.shelf import Shelf
from kvloom.session.values import (
    Chunk,
    ChunkDetail,
    ChunkPart,
    ChunkPlace,
    ChunkStatus,
    Progress,
    ProgressCallback,
    Reloaded,
    VerifyResult,
)
from kvloom.text.counter import TokenCount
from kvloom.text.pieces import PromptBuilder
from kvloom.types import ChunkId, TierName


class LoomChunks(ABC):
    """What a loom knows of chunks, and does with them."""

    engine: Engine
    store: TieredStore
    device: Device
    builder: PromptBuilder
    catalog: Catalog
    shelf: Shelf
    log: SessionLog

    @abstractmethod
    def _check_open(self) -> None:
        """Raises LoomClosedError after `close()`."""

    def load(self, path: str | Path, *, name: str | None = None, repair: bool = False) -> Chunk:
        """A text file as a chunk; its id is the SHA-256 of the file. Loading it again stores nothing twice.

        Raises ContentError saying what is wrong with the file and what to do; `repair` replaces invalid UTF-8.
        """
        self._check_open()
        return self.shelf.load(Path(path).expanduser(), name, repair)

    def load_text(self, text: str, *, name: str) -> Chunk:
        """A text as a chunk under a name."""
        self._check_open()
        return self.shelf.load_text(text, name)

    def load_bytes(self, data: bytes, *, name: str, repair: bool = False) -> Chunk:
        """A text file's bytes, wherever they came from, as a chunk under a name. Raises ContentError as `load`."""
        self._check_open()
        return self.shelf.load_bytes(data, name, repair)

    def resolve(self, ref: str) -> ChunkId:
        """The chunk of a name or of an unambiguous prefix of 6 hex digits or more.

        Raises UnknownChunkError (with near names) and AmbiguousChunkError (with the candidates).
        """
        self._check_open()
        return self.catalog.resolve(ref)

    def chunks(self, *, erased: bool = False) -> list[ChunkStatus]:
        """Every known chunk with its tier and bytes, in the order of loading."""
        self._check_open()
        return self.shelf.statuses(erased=erased)

    def chunk(self, ref: str) -> ChunkDetail:
        """Everything about one chunk."""
        chunk = self.resolve(ref)
        with self.device.lock:
            residents = list(self.device.residents())
        on_device = {resident.entry for _, resident in residents}
        parts = []
        runs = self.shelf.parts(chunk, self.catalog.get(chunk).name)
        for part, entry in self.shelf.entries(chunk):
            cells = {r.position for _, r in residents if r.entry == entry}
            tokens = runs[part].ids if part < len(runs) else ()
            tier = self.shelf.tier(entry, on_device)
            size = len(tokens) * self.engine.layout.token_bytes if tier is not TierName.NONE else 0
            parts.append(ChunkPart(part, entry, len(tokens), tier, size, len(cells) * len(tokens), tokens))
        places = tuple(self._places(chunk))
        return ChunkDetail(self.shelf.status(chunk), tuple(parts), places, len(places), self.catalog.metadata(chunk))

    def set_metadata(self, ref: str, key: str, value: str | None) -> None:
        """Set a chunk's metadata; None or "" takes the key away."""
        self.catalog.set_metadata(self.resolve(ref), key, value or "")

    def reload(self, ref: str | None = None) -> list[Reloaded]:
        """Names whose files changed move to what the files hold now, in the catalog; `Session.reload` swaps them in."""
        self._check_open()
        return self.shelf.reload(None if ref is None else [self.resolve(ref)])

    def offload(self, ref: str) -> int:
        """A chunk's KV from device and RAM to disk; bytes that were moved."""
        entries = [entry for _, entry in self.shelf.entries(self.resolve(ref))]
        with self.device.lock:
            self.device.drop_entries(set(entries))
        return sum(self.store.size_of(entry) for entry in entries if self.store.offload(entry))

    def save(self, ref: str) -> int:
        """A chunk's KV on disk now, synced; bytes."""
        entries = [entry for _, entry in self.shelf.entries(self.resolve(ref))]
        return sum(self.store.size_of(entry) for entry in entries if self.store.save(entry))

    def restore(self, ref: str) -> int:
        """A chunk's KV from disk back into RAM; an erased chunk comes back too. Bytes that are warm now."""
        self._check_open()
        chunk = self._resolve_erased(ref)
        self.catalog.restore(chunk)
        loaded = (self.store.get(entry) for _, entry in self.shelf.entries(chunk))
        return sum(entry.rows.nbytes for entry in loaded if entry is not None)

    def erase(self, ref: str) -> None:
        """Hide a chunk; `restore` (or a session's undo) brings it back. Contexts that hold it keep it."""
        self.catalog.erase(self.resolve(ref))

    def restore_erased(self, chunk: ChunkId) -> None:
        """Undo `erase`."""
        self.catalog.restore(chunk)

    def verify(self, progress: ProgressCallback | None = None) -> Iterator[VerifyResult]:
        """Read and check every stored entry; a damaged one is reported (and becomes a miss when it is wanted)."""
        self._check_open()
        total = len(self.store.ids())
        for number, found in enumerate(self.store.verify(), 1):
            if progress is not None:
                progress(Progress("verify", number, total, "entries"))
            yield VerifyResult(found.entry_id, found.nbytes, found.fault)

    def verify_chunk(self, ref: str) -> list[VerifyResult]:
        """`verify` for one chunk: its text against its id (raises StoreError where they differ), then its entries."""
        chunk = self.resolve(ref)
        self.catalog.content(chunk)
        entries = {entry for _, entry in self.shelf.entries(chunk)}
        return [VerifyResult(found.entry_id, found.nbytes, found.fault) for found in self.store.verify(entries)]

    def count(self, text: str) -> int:
        """The exact number of tokens of `text` under the loaded model, special tokens read as text."""
        self._check_open()
        return len(self.builder.tokenizer.content(text))

    def counted(self, text: str) -> TokenCount:
        """`count`, and whether it is only an estimate: of a model behind an endpoint that counts nothing, it is."""
        return TokenCount(self.count(text), is_estimate=False)

    @property
    def counts_exactly(self) -> bool:
        """Whether numbers of tokens are exact, or estimates that are marked as such."""
        return True

    # -- inside -------------------------------------------------------------------------------------------------

    def _resolve_among(self, ref: str, manifest: Manifest) -> ChunkId:
        """`resolve`, looking first at what a context holds: an erased or renamed chunk may still stand in it."""
        here = {s.ref for s in manifest.chunks if s.name == ref or (len(ref) >= 6 and s.ref.startswith(ref.lower()))}
        if len(here) == 1:
            return ChunkId(here.pop())
        if len(here) > 1:
            names = {s.ref: s.name for s in manifest.chunks}
            listed = ", ".join(f"{chunk[:12]} ({names[chunk]})" for chunk in sorted(here))
            raise AmbiguousChunkError(f"{ref!r} fits {len(here)} chunks here: {listed}", [(c, names[c]) for c in here])
        return self.resolve(ref)

    def _resolve_erased(self, ref: str) -> ChunkId:
        """`resolve`, erased chunks too."""
        self._check_open()
        try:
            return self.catalog.resolve(ref)
        except UnknownChunkError:
            fits = [c for c in self.catalog.ls(erased=True) if ref in c.names or c.id.startswith(ref.lower())]
            if len(fits) != 1 or (len(ref) < 6 and ref not in fits[0].names):
                raise
            return fits[0].id

    def _places(self, chunk: ChunkId) -> Iterator[ChunkPlace]:
        with self.log.snapshot():  # sessions may be deleted at any moment
            records = [record for record in self.log.list() if record.head]
            heads = [Manifest.decode(self.log.manifest(record.head[0]).body, self.log.tokens) for record in records]
        for record, manifest in zip(records, heads, strict=True):
            slots = [slot for slot in manifest.chunks if slot.ref == chunk]
            if slots:
                first = slots[0]
                yield ChunkPlace(record.id, record.name, first.active, first.pinned, first.position, slots[-1].stop)
