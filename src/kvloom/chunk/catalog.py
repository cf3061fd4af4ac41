"""The catalog: every known chunk, the names that point at it, and what is known about it. Knows no KV and no engine.

All methods may be called from any thread, and by two processes on one home; each change is whole or not at all.
Raises StoreError where the database fails.
"""

from __future__ import annotations

import difflib
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from kvloom.chunk.content import Content, Encoding, Source, content_id, decode_content
from kvloom.chunk.database import Database, Row, Value
from kvloom.errors import AmbiguousChunkError, StoreError, UnknownChunkError, UsageError
from kvloom.types import ChunkId, EntryId, ModelFingerprint

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIN_PREFIX = 6
"""Hex digits that a prefix needs at least: shorter ones would soon be ambiguous."""
_ZSTD_LEVEL = 9
_MAX_LISTED = 8
_HEX = re.compile(r"[0-9a-f]+\Z")
_REPAIRED = " (repaired)"
"""Ends the name of a file whose invalid bytes were replaced: its text is not what the file holds."""
_BATCH = 500
"""Ids in one query, under SQLite's limit on parameters."""


@dataclass(frozen=True)
class ChunkRecord:
    """A chunk as the catalog knows it. `names` sorted; times are seconds since the epoch."""

    id: ChunkId
    size_bytes: int
    encoding: Encoding
    created_s: float
    is_erased: bool
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first name, or the id's first digits where no name points at the chunk any more."""
        return self.names[0] if self.names else self.id[:12]


@dataclass(frozen=True)
class NameRecord:
    """A name and what it points at. `former`: the chunks it pointed at before, latest first."""

    name: str
    chunk_id: ChunkId
    source: Source | None
    former: tuple[ChunkId, ...] = ()


class Staleness(Enum):
    """What became of a name's file."""

    CHANGED = "changed"
    MISSING = "missing"


@dataclass(frozen=True)
class StaleName:
    """A name whose file is not what was loaded."""

    name: str
    chunk_id: ChunkId
    path: Path
    staleness: Staleness


@dataclass(frozen=True)
class EntryRecord:
    """A KV entry that holds a part of a chunk under a model."""

    chunk_id: ChunkId
    model: ModelFingerprint
    part: int
    entry_id: EntryId


@dataclass(frozen=True)
class Added:
    """What `add` did. `is_new`: the content was not known; `replaced`: what the name pointed at before."""

    record: ChunkRecord
    name: str
    is_new: bool
    replaced: tuple[ChunkId, ...] = field(default=())


class Catalog:
    """`clock` gives seconds since the epoch."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = database
        self._clock = clock

    # -- content ------------------------------------------------------------------------------------------------

    def add(self, content: Content, name: str | None = None) -> Added:
        """Store content (once) and let a name point at it; a file keeps the name it already has.

        Without `name`, the shortest end of the path that no other file has. An erased chunk comes back.
        """
        with self._db.transaction():
            name = name or self._name_for(content)
            is_new = self._store(content)
            replaced = self._point(name, content.id, content.source)
            return Added(self.get(content.id), name, is_new, replaced)

    def content(self, chunk_id: ChunkId) -> Content:
        """The chunk's exact bytes and text; its hash is checked. Raises UnknownChunkError, StoreError."""
        rows = self._db.rows("SELECT data, size_bytes, encoding FROM chunks WHERE id = ?", (chunk_id,))
        if not rows:
            raise UnknownChunkError(f"no chunk {chunk_id[:12]} in the catalog: load its file again")
        packed, size_bytes, encoding = rows[0]
        try:
            data = zstd.decompress(packed)
        except zstd.ZstdError as exc:
            raise StoreError(f"the stored text of chunk {chunk_id[:12]} is damaged ({exc}): load it again") from exc
        if content_id(data) != chunk_id or len(data) != size_bytes:
            raise StoreError(f"the stored text of chunk {chunk_id[:12]} is not what was stored: load it again")
        return Content(chunk_id, data, decode_content(data), Encoding(encoding))

    def text(self, chunk_id: ChunkId) -> str:
        """What a model reads of the chunk."""
        return self.content(chunk_id).text

    # -- finding ------------------------------------------------------------------------------------------------

    def resolve(self, ref: str) -> ChunkId:
        """The chunk of an exact name, or of an unambiguous prefix of at least 6 hex digits of its id.

        Raises UnknownChunkError (with near names), AmbiguousChunkError (with the candidates).
        """
        ref = ref.strip()
        named = self._db.rows(
            "SELECT n.chunk_id FROM names n JOIN chunks c ON c.id = n.chunk_id WHERE n.name = ? AND c.erased_s IS NULL",
            (ref,),
        )
        if named:
            return ChunkId(named[0][0])
        prefix = ref.lower()
        if not _HEX.match(prefix):
            raise self._unknown(ref)
        if len(prefix) < MIN_PREFIX:
            raise UnknownChunkError(f"{ref!r} is no name, and an id needs at least {MIN_PREFIX} hex digits")
        found = self._with_prefix(prefix)
        if not found:
            raise self._unknown(ref)
        if len(found) > 1:
            listed = ", ".join(f"{record.id[: len(prefix) + 6]} ({record.name})" for record in found[:_MAX_LISTED])
            message = f"{ref!r} fits {len(found)} chunks: {listed}; give more digits"
            raise AmbiguousChunkError(message, [(record.id, record.name) for record in found])
        return found[0].id

    def get(self, chunk_id: ChunkId) -> ChunkRecord:
        """One record, erased ones too. Raises UnknownChunkError."""
        found = self.get_many([chunk_id])
        if not found:
            raise UnknownChunkError(f"no chunk {chunk_id[:12]} in the catalog")
        return found[chunk_id]

    def get_many(self, chunk_ids: Iterable[ChunkId]) -> dict[ChunkId, ChunkRecord]:
        """The records of these ids that exist; two queries whatever the catalog holds."""
        wanted = list(dict.fromkeys(chunk_ids))
        rows: list[Row] = []
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            rows += self._db.rows(f"{_SELECT} WHERE id IN ({_marks(batch)})", batch)
        return {record.id: record for record in self._records(rows)}

    def ls(self, *, erased: bool = False) -> tuple[ChunkRecord, ...]:
        """All records in the order of loading; the erased ones instead, if asked for."""
        condition = "erased_s IS NOT NULL" if erased else "erased_s IS NULL"
        rows = self._db.rows(f"{_SELECT} WHERE {condition} ORDER BY created_s, id")
        names: dict[str, list[str]] = {}
        for name, chunk_id in self._db.rows("SELECT name, chunk_id FROM names ORDER BY name"):
            names.setdefault(chunk_id, []).append(name)
        return tuple(_record(row, names.get(row[0], [])) for row in rows)

    def num_chunks(self) -> int:
        return int(self._db.rows("SELECT count(*) FROM chunks WHERE erased_s IS NULL")[0][0])

    # -- names --------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """All names of chunks that are not erased, sorted."""
        sql = "SELECT name FROM names JOIN chunks ON id = chunk_id WHERE erased_s IS NULL ORDER BY name"
        return tuple(row[0] for row in self._db.rows(sql))

    def name(self, name: str) -> NameRecord:
        """Raises UnknownChunkError."""
        rows = self._db.rows(f"{_SELECT_NAME} WHERE name = ?", (name,))
        if not rows:
            raise self._unknown(name)
        former = self._db.rows("SELECT chunk_id FROM name_history WHERE name = ? ORDER BY id DESC", (name,))
        record = _name_record(rows[0])
        return NameRecord(name, record.chunk_id, record.source, tuple(ChunkId(row[0]) for row in former))

    def owners(self, names: Iterable[str]) -> dict[str, ChunkId]:
        """What these names point at, as far as they are taken."""
        wanted, found = list(dict.fromkeys(names)), dict[str, ChunkId]()
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            rows = self._db.rows(f"SELECT name, chunk_id FROM names WHERE name IN ({_marks(batch)})", batch)
            found.update({name: ChunkId(chunk_id) for name, chunk_id in rows})
        return found

    def stale(self, names: Iterable[str] | None = None) -> tuple[StaleName, ...]:
        """Names (all by default) whose files differ from what was loaded; content decides, not the time stamp."""
        sql = f"{_SELECT_NAME} JOIN chunks c ON c.id = chunk_id WHERE path IS NOT NULL AND c.erased_s IS NULL"
        if names is None:
            rows = self._db.rows(f"{sql} ORDER BY name")
        else:
            wanted, rows = sorted(set(names)), []
            for start in range(0, len(wanted), _BATCH):
                batch = wanted[start : start + _BATCH]
                rows += self._db.rows(f"{sql} AND name IN ({_marks(batch)}) ORDER BY name", batch)
        found: list[StaleName] = []
        for row in rows:
            record = _name_record(row)
            if record.source is None:
                continue
            staleness = self._staleness(record, record.source)
            if staleness is not None:
                found.append(StaleName(record.name, record.chunk_id, record.source.path, staleness))
        return tuple(found)

    # -- erasing ------------------------------------------------------------------------------------------------

    def erase(self, chunk_id: ChunkId) -> None:
        """Hide a chunk and its names; `restore` brings them back. Raises UnknownChunkError."""
        sql = "UPDATE chunks SET erased_s = ? WHERE id = ? AND erased_s IS NULL"
        if not self._db.execute(sql, (self._clock(), chunk_id)):
            self.get(chunk_id)

    def restore(self, chunk_id: ChunkId) -> None:
        """Undo `erase`. Raises UnknownChunkError."""
        if not self._db.execute("UPDATE chunks SET erased_s = NULL WHERE id = ?", (chunk_id,)):
            self.get(chunk_id)

    def purge(self, chunk_id: ChunkId) -> bool:
        """Remove a chunk, its names, their history and all that is known about it, and the bytes from the files.

        The entries go from the index only: take `entries_of` first and remove them from the tiers. False where
        another process still reads, so that `Database.scrub` must be called again for the bytes to be gone.
        """
        if not self._db.execute("DELETE FROM chunks WHERE id = ?", (chunk_id,)):
            raise UnknownChunkError(f"no chunk {chunk_id[:12]} in the catalog")
        return self._db.scrub()

    # -- what is known about a chunk ----------------------------------------------------------------------------

    def metadata(self, chunk_id: ChunkId) -> dict[str, str]:
        rows = self._db.rows("SELECT key, value FROM metadata WHERE chunk_id = ? ORDER BY key", (chunk_id,))
        return dict(rows)

    def set_metadata(self, chunk_id: ChunkId, key: str, value: str) -> None:
        """An empty value removes the key. Raises UnknownChunkError."""
        if not key:
            raise UsageError("a metadata key must not be empty")
        with self._db.transaction():
            self.get(chunk_id)
            self._db.execute("DELETE FROM metadata WHERE chunk_id = ? AND key = ?", (chunk_id, key))
            if value:
                self._db.execute("INSERT INTO metadata VALUES (?, ?, ?)", (chunk_id, key, value))

    def set_num_tokens(self, chunk_id: ChunkId, model: ModelFingerprint, num_tokens: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO token_counts VALUES (?, ?, ?)", (chunk_id, model, num_tokens))

    def num_tokens(self, model: ModelFingerprint, chunk_ids: Iterable[ChunkId] | None = None) -> dict[ChunkId, int]:
        """Known counts under a model, of these chunks or of all."""
        if chunk_ids is None:
            sql = "SELECT chunk_id, num_tokens FROM token_counts WHERE model = ?"
            return {ChunkId(chunk_id): count for chunk_id, count in self._db.rows(sql, (model,))}
        counts: dict[ChunkId, int] = {}
        wanted = list(chunk_ids)
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            sql = f"SELECT chunk_id, num_tokens FROM token_counts WHERE model = ? AND chunk_id IN ({_marks(batch)})"
            counts.update({ChunkId(chunk_id): count for chunk_id, count in self._db.rows(sql, (model, *batch))})
        return counts

    def record_entry(self, chunk_id: ChunkId, part: int, entry_id: EntryId, model: ModelFingerprint) -> None:
        """Remember that an entry holds a part of a chunk. Idempotent."""
        self.record_entries([EntryRecord(chunk_id, model, part, entry_id)])

    def record_entries(self, entries: Sequence[EntryRecord]) -> None:
        rows = [(e.chunk_id, e.model, e.part, e.entry_id) for e in entries]
        if rows:
            self._db.execute_many("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", rows)

    def entries_of(self, chunk_id: ChunkId, model: ModelFingerprint | None = None) -> tuple[EntryRecord, ...]:
        """Entries of a chunk, under one model or all, by part."""
        condition, values = ("", (chunk_id,)) if model is None else (" AND model = ?", (chunk_id, model))
        sql = f"SELECT chunk_id, model, part, entry_id FROM entries WHERE chunk_id = ?{condition} ORDER BY model, part"
        return tuple(_entry_record(row) for row in self._db.rows(sql, values))

    def entries_by_chunk(self, model: ModelFingerprint) -> dict[ChunkId, list[EntryId]]:
        """The entries of every chunk under one model, by part."""
        found: dict[ChunkId, list[EntryId]] = {}
        sql = "SELECT chunk_id, entry_id FROM entries WHERE model = ? ORDER BY chunk_id, part"
        for chunk, entry in self._db.rows(sql, (model,)):
            found.setdefault(ChunkId(chunk), []).append(EntryId(entry))
        return found

    def sources(self) -> dict[str, str]:
        """The path of every name that came from a file."""
        return dict(self._db.rows("SELECT name, path FROM names WHERE path IS NOT NULL"))

    def all_entries(self) -> set[EntryId]:
        """Every entry that holds a part of some chunk, under any model."""
        return {EntryId(row[0]) for row in self._db.rows("SELECT DISTINCT entry_id FROM entries")}

    def chunks_of(self, entry_id: EntryId) -> tuple[EntryRecord, ...]:
        """The chunks that an entry holds a part of."""
        sql = "SELECT chunk_id, model, part, entry_id FROM entries WHERE entry_id = ?"
        return tuple(_entry_record(row) for row in self._db.rows(sql, (entry_id,)))

    def forget_entries(self, entry_ids: Iterable[EntryId]) -> None:
        """Entries that were removed from every tier."""
        self._db.execute_many("DELETE FROM entries WHERE entry_id = ?", [(entry,) for entry in entry_ids])

    # -- inside -------------------------------------------------------------------------------------------------

    def _store(self, content: Content) -> bool:
        if self._db.execute("UPDATE chunks SET erased_s = NULL WHERE id = ?", (content.id,)):
            return False
        packed = zstd.compress(content.data, level=_ZSTD_LEVEL)
        values: tuple[Value, ...] = (content.id, content.size_bytes, content.encoding.value, packed, self._clock())
        self._db.execute(
            "INSERT INTO chunks (id, size_bytes, encoding, data, created_s) VALUES (?, ?, ?, ?, ?)", values
        )
        return True

    def _point(self, name: str, chunk_id: ChunkId, source: Source | None) -> tuple[ChunkId, ...]:
        if not name.strip() or "\n" in name:
            raise UsageError(f"{name!r} cannot be a name: it must be one line that is not blank")
        before = self._db.rows("SELECT chunk_id FROM names WHERE name = ?", (name,))
        where: tuple[Value, ...] = (None, None, None)
        if source is not None:
            where = (str(source.path), source.mtime_ns, source.size_bytes)
        self._db.execute(
            "INSERT OR REPLACE INTO names (name, chunk_id, path, mtime_ns, size_bytes, updated_s) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (name, chunk_id, *where, self._clock()),
        )
        if not before or before[0][0] == chunk_id:
            return ()
        self._db.execute(
            "INSERT INTO name_history (name, chunk_id, replaced_s) VALUES (?, ?, ?)",
            (name, before[0][0], self._clock()),
        )
        return (ChunkId(before[0][0]),)

    def _name_for(self, content: Content) -> str:
        """The name a file already has, else the shortest end of its path that no other file has."""
        if content.source is None:
            return f"text-{content.id[:8]}"
        suffix = _REPAIRED if content.encoding is Encoding.REPAIRED else ""
        path = content.source.path
        known = self._db.rows("SELECT name FROM names WHERE path = ? ORDER BY name", (str(path),))
        for (name,) in known:
            if str(name).endswith(_REPAIRED) == bool(suffix):
                return str(name)
        parts = [part for part in path.parts if part != path.anchor]
        for length in range(1, len(parts) + 1):
            name = "/".join(parts[-length:]) + suffix
            if not self._db.rows("SELECT 1 FROM names WHERE name = ? AND path IS NOT ?", (name, str(path))):
                return name
        return str(path) + suffix

    def _with_prefix(self, prefix: str) -> list[ChunkRecord]:
        # "g" sorts right behind every hex digit: a range over the primary key.
        sql = f"{_SELECT} WHERE id >= ? AND id < ? AND erased_s IS NULL ORDER BY id LIMIT 100"
        return self._records(self._db.rows(sql, (prefix, prefix + "g")))

    def _records(self, rows: Sequence[Row]) -> list[ChunkRecord]:
        names: dict[str, list[str]] = {}
        for start in range(0, len(rows), _BATCH):
            batch = [str(row[0]) for row in rows[start : start + _BATCH]]
            sql = f"SELECT name, chunk_id FROM names WHERE chunk_id IN ({_marks(batch)}) ORDER BY name"
            for name, chunk_id in self._db.rows(sql, batch):
                names.setdefault(chunk_id, []).append(name)
        return [_record(row, names.get(row[0], [])) for row in rows]

    def _staleness(self, record: NameRecord, source: Source) -> Staleness | None:
        try:
            found = source.path.stat()
            if (found.st_mtime_ns, found.st_size) == (source.mtime_ns, source.size_bytes):
                return None
            if found.st_size == source.size_bytes and content_id(source.path.read_bytes()) == record.chunk_id:
                self._db.execute(
                    "UPDATE names SET mtime_ns = ? WHERE name = ? AND chunk_id = ?",
                    (found.st_mtime_ns, record.name, record.chunk_id),
                )
                return None
        except OSError:
            return Staleness.MISSING
        return Staleness.CHANGED

    def _unknown(self, ref: str) -> UnknownChunkError:
        erased = "SELECT 1 FROM names JOIN chunks ON id = chunk_id WHERE name = ? AND erased_s IS NOT NULL"
        if self._db.rows(erased, (ref,)):
            return UnknownChunkError(f"{ref!r} is erased: restore it, or load it again")
        names = self.names()
        near = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
        near += [name for name in names if name.rsplit("/", 1)[-1] == ref and name not in near]
        hint = f"; did you mean {', '.join(repr(name) for name in near)}?" if near else ""
        return UnknownChunkError(f"no chunk is called {ref!r}, and no id begins so{hint}")


_SELECT = "SELECT id, size_bytes, encoding, created_s, erased_s FROM chunks"
_SELECT_NAME = "SELECT name, chunk_id, path, mtime_ns, n.size_bytes FROM names n"


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _record(row: Row, names: Sequence[str]) -> ChunkRecord:
    return ChunkRecord(ChunkId(row[0]), row[1], Encoding(row[2]), row[3], row[4] is not None, tuple(names))


def _name_record(row: Row) -> NameRecord:
    source = None if row[2] is None else Source(Path(row[2]), row[3], row[4])
    return NameRecord(row[0], ChunkId(row[1]), source)


def _entry_record(row: Row) -> EntryRecord:
    return EntryRecord(ChunkId(row[0]), ModelFingerprint(row[1]), row[2], EntryId(row[3]))
