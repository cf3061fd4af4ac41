"""Which entries the passages of libraries have, so that nobody tokenizes a passage to learn that it is stored.

Rows of the home's database, which leave with their chunk. Knows no KV and no tier: whether an entry is still stored is
to be asked there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvloom.chunk.database import Database
from kvloom.types import ChunkId, EntryId

_BATCH = 500
"""Ids in one query, under SQLite's limit on parameters."""


class PassageEntries:
    """The entries under one setting: whatever an entry's id depends on beside the passage and its name."""

    def __init__(self, database: Database, setting: str) -> None:
        self._db = database
        self._setting = setting

    def of(self, names: Mapping[ChunkId, str]) -> dict[ChunkId, tuple[EntryId, ...]]:
        """The entries of these passages' parts under these names, as far as they are known."""
        wanted, found = list(names), dict[ChunkId, tuple[EntryId, ...]]()
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            marks = ", ".join("?" * len(batch))
            sql = f"SELECT chunk_id, name, entries FROM passage_entries WHERE setting = ? AND chunk_id IN ({marks})"
            for chunk, name, entries in self._db.rows(sql, (self._setting, *batch)):
                if names[chunk] == name:
                    found[chunk] = tuple(map(EntryId, entries.split()))
        return found

    def add(self, known: Iterable[tuple[ChunkId, str, Sequence[EntryId]]]) -> None:
        """(passage, its name, the entries of its parts); one that is no chunk (any more) is passed over."""
        rows = [(self._setting, name, " ".join(entries), chunk) for chunk, name, entries in known]
        if rows:
            self._db.execute_many(
                "INSERT OR IGNORE INTO passage_entries (chunk_id, setting, name, entries) "
                "SELECT id, ?, ?, ? FROM chunks WHERE id = ?",
                rows,
            )
