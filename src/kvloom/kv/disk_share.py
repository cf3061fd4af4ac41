"""A disk tier in which one model's entries have a budget of their own. Knows the model by its fingerprint only.

All models share one folder, so that what is purged is gone under every model; each may be held to a part of it.
"""

from __future__ import annotations

import threading
from pathlib import Path

from kvloom.errors import StoreFullError
from kvloom.kv.disk import DiskCoding, DiskTier
from kvloom.types import Entry, EntryId, ModelFingerprint

HEADER_BYTES = 64 * 1024
"""More than a file has beside its rows; the token ids of a long entry take most of it."""


class ModelDiskTier(DiskTier):
    """`model_bytes`: most that the files of `model` may take, beside the whole folder's budget.

    Before a new one is written, the least recently used unpinned ones of the same model go.
    """

    def __init__(
        self, directory: Path, budget_bytes: int, coding: DiskCoding, model: ModelFingerprint, model_bytes: int
    ) -> None:
        super().__init__(directory, budget_bytes, coding)
        self._model = model
        self._model_bytes = model_bytes
        self._is_own: dict[EntryId, bool] = {}
        self._own_turn = threading.Lock()

    def put(self, entry: Entry) -> None:
        if entry.key.model != self._model:
            super().put(entry)
            return
        with self._own_turn:
            if not self.contains(entry.id):
                self._make_own_room(entry.rows.nbytes + HEADER_BYTES)
            super().put(entry)
            self._is_own[entry.id] = True

    @property
    def own_bytes(self) -> int:
        """What the files of the model take now."""
        return sum(self.size_of(one) for one in self._own_ids())

    def _make_own_room(self, size_bytes: int) -> None:
        """Evict what must go, or raise with nothing evicted."""
        sizes = {one: self.size_of(one) for one in self._own_ids()}
        over = sum(sizes.values()) + size_bytes - self._model_bytes
        victims = []
        for one, held in sizes.items():
            if over <= 0:
                break
            if not self.is_pinned(one):
                victims.append(one)
                over -= held
        if over > 0:
            raise StoreFullError(
                f"an entry of {size_bytes} bytes does not fit into the {self._model_bytes} that this model may take on"
                " disk, too many of them pinned; raise max_ssd_mb or unpin"
            )
        for victim in victims:
            self.delete(victim)
            self._is_own.pop(victim, None)

    def _own_ids(self) -> list[EntryId]:
        """From least to most recently used. Each file's key is read once."""
        found = []
        for one in self.ids():
            if one not in self._is_own:
                key = self.key_of(one)
                self._is_own[one] = key is not None and key.model == self._model
            if self._is_own[one]:
                found.append(one)
        return found
