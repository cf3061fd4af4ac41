"""Entries in this process's memory. Knows no files.

Rows are shared, not copied: an entry that is also used elsewhere costs its bytes once.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from kvloom.errors import StoreFullError
from kvloom.kv.lru import LruBook
from kvloom.kv.tier import Tier
from kvloom.types import Entry, EntryId, TierName

_TOKEN_BYTES = 36
"""What one token id of a key takes: a reference of 8 bytes and an int object of 28."""


class RamTier(Tier):
    """A dictionary with a budget."""

    name = TierName.RAM

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._book = LruBook()
        self._entries: dict[EntryId, Entry] = {}

    def get(self, entry_id: EntryId) -> Entry | None:
        with self._lock:
            self._book.touch(entry_id)
            return self._entries.get(entry_id)

    def put(self, entry: Entry) -> None:
        entry_id = entry.id  # hashes the whole key: outside of the lock
        entry = _owning(entry)
        size_bytes = entry.rows.nbytes + _TOKEN_BYTES * len(entry.key.tokens)
        with self._lock:
            held = self._entries.get(entry_id)
            if held is not None and (entry.is_lossy or not held.is_lossy):
                self._book.touch(entry_id)
                return
            victims = self._book.victims(entry_id, size_bytes, self._budget_bytes)
            if victims is None:
                raise StoreFullError(
                    f"an entry of {size_bytes} bytes does not fit in RAM: {self._book.total_bytes} of "
                    f"{self._budget_bytes} bytes are taken, too many of them pinned; raise the RAM budget or unpin"
                )
            for victim in victims:
                self._drop(victim)
            self._entries[entry_id] = entry
            self._book.record(entry_id, size_bytes)

    def contains(self, entry_id: EntryId) -> bool:
        with self._lock:
            return entry_id in self._entries

    def delete(self, entry_id: EntryId) -> bool:
        with self._lock:
            was_there = entry_id in self._entries
            self._drop(entry_id)
            return was_there

    def ids(self) -> list[EntryId]:
        with self._lock:
            return self._book.ids()

    def size_of(self, entry_id: EntryId) -> int:
        with self._lock:
            return self._book.size_of(entry_id)

    def pin(self, entry_id: EntryId) -> None:
        with self._lock:
            self._book.pin(entry_id)

    def unpin(self, entry_id: EntryId) -> None:
        with self._lock:
            self._book.unpin(entry_id)

    def is_pinned(self, entry_id: EntryId) -> bool:
        with self._lock:
            return self._book.is_pinned(entry_id)

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._book.total_bytes

    @property
    def budget_bytes(self) -> int:
        return self._budget_bytes

    def set_budget(self, budget_bytes: int) -> None:
        with self._lock:
            self._budget_bytes = budget_bytes
            for entry_id in self._book.ids():
                if self._book.total_bytes <= budget_bytes:
                    break
                if not self._book.is_pinned(entry_id):
                    self._drop(entry_id)

    def close(self) -> None:
        with self._lock:
            for entry_id in self._book.ids():
                self._drop(entry_id)

    def _drop(self, entry_id: EntryId) -> None:
        self._entries.pop(entry_id, None)
        self._book.forget(entry_id)


def _owning(entry: Entry) -> Entry:
    """The same entry, not holding on to a larger buffer that its rows are a part of."""
    base = entry.rows.data.base
    if not isinstance(base, np.ndarray) or base.nbytes <= entry.rows.nbytes:
        return entry
    return replace(entry, rows=replace(entry.rows, data=entry.rows.data.copy()))
