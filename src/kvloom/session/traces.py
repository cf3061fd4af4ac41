"""Which entries were computed behind which chunks, under whatever model: their KV carries the chunks' trace.

Rows of the home's database. Knows no KV and no tier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from kvloom.chunk.database import Database
from kvloom.context.manifest import Manifest, SlotKind
from kvloom.types import ALONE, ChunkId, EntryId

KEPT_S = 3600.0
"""A trace is written before its entry is stored; this long after, an entry that is nowhere will not come."""
_FORGOTTEN_AT_ONCE = 1000
"""Rows deleted in one transaction: others write between two of them."""


class Traces:
    """The traces of one home. Safe for several threads and processes."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = database
        self._clock = clock

    def together(self) -> AbstractContextManager[None]:
        """What is written to the home inside is one transaction."""
        return self._db.transaction()

    def add(self, traced: Iterable[tuple[ChunkId, EntryId]]) -> None:
        """Remember; durable on return. A chunk that the catalog does not know (any more) is passed over."""
        now = self._clock()
        self._db.execute_many(
            "INSERT INTO traces (chunk_id, entry_id, created_s) SELECT id, ?, ? FROM chunks WHERE id = ? "
            "ON CONFLICT DO UPDATE SET created_s = excluded.created_s",
            [(entry, now, chunk) for chunk, entry in traced],
        )

    def of(self, chunk: ChunkId) -> set[EntryId]:
        """Every entry that was computed behind a chunk."""
        return {EntryId(row[0]) for row in self._db.rows("SELECT entry_id FROM traces WHERE chunk_id = ?", (chunk,))}

    def num_traces(self) -> int:
        return int(self._db.rows("SELECT count(*) FROM traces")[0][0])

    def prune(self, is_held: Callable[[EntryId], bool]) -> int:
        """Forget entries that are held nowhere any more; how many. Young ones stay: they may be about to come."""
        until = self._clock() - KEPT_S
        rows = self._db.rows("SELECT chunk_id, entry_id FROM traces WHERE created_s < ?", (until,))
        held: dict[str, bool] = {}
        gone = [row for row in rows if not held.setdefault(row[1], is_held(row[1]))]
        for start in range(0, len(gone), _FORGOTTEN_AT_ONCE):
            self._db.execute_many(
                "DELETE FROM traces WHERE chunk_id = ? AND entry_id = ? AND created_s < ?",
                [(*row, until) for row in gone[start : start + _FORGOTTEN_AT_ONCE]],
            )
        return len(gone)


def traced_in(manifest: Manifest, entry_of: Callable[..., EntryId]) -> list[tuple[ChunkId, EntryId]]:
    """(chunk, entry) for what a manifest has computed behind its chunks. `entry_of`: (tokens, lineage) -> id."""
    found: list[tuple[ChunkId, EntryId]] = []
    before: dict[ChunkId, None] = {}
    for slot in manifest.active:
        if slot.lineage != ALONE:
            # A turn knows what it was computed behind; what else depends on its place stands behind all before it.
            seen = slot.seen if slot.kind is SlotKind.TURN else [chunk for chunk in before if chunk != slot.ref]
            if seen:
                entry = entry_of(slot.tokens, slot.lineage)
                found += [(chunk, entry) for chunk in seen]
        if slot.kind is SlotKind.CHUNK:
            before[ChunkId(slot.ref)] = None
    return found
