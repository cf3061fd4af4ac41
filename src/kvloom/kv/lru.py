"""The books of a bounded cache: sizes, order of use, pins, and what to evict. Knows no bytes and no files."""

from __future__ import annotations

from collections import OrderedDict

from kvloom.types import EntryId


class LruBook:
    """Sizes of entries from least to most recently used. Not thread-safe: the tier that owns it locks."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[EntryId, int] = OrderedDict()
        self._pins: dict[EntryId, int] = {}
        self.total_bytes = 0

    def __contains__(self, entry: EntryId) -> bool:
        return entry in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def ids(self) -> list[EntryId]:
        """From least to most recently used."""
        return list(self._sizes)

    def record(self, entry: EntryId, size_bytes: int) -> None:
        """Note an entry as the most recently used one, of this size."""
        self.total_bytes += size_bytes - self._sizes.pop(entry, 0)
        self._sizes[entry] = size_bytes

    def touch(self, entry: EntryId) -> None:
        """Note a use; an entry that is not there is left out."""
        if entry in self._sizes:
            self._sizes.move_to_end(entry)

    def forget(self, entry: EntryId) -> int:
        """Take an entry out; its size, or 0 if it was not there. Its pins stay: it may come back."""
        size_bytes = self._sizes.pop(entry, 0)
        self.total_bytes -= size_bytes
        return size_bytes

    def size_of(self, entry: EntryId) -> int:
        return self._sizes.get(entry, 0)

    def pin(self, entry: EntryId) -> None:
        """Keep an entry from being evicted until `unpin` was called as often as this."""
        self._pins[entry] = self._pins.get(entry, 0) + 1

    def unpin(self, entry: EntryId) -> None:
        """Undo one `pin`. Raises ValueError without one."""
        if entry not in self._pins:
            raise ValueError(f"entry {entry[:12]} is not pinned")
        self._pins[entry] -= 1
        if not self._pins[entry]:
            del self._pins[entry]

    def is_pinned(self, entry: EntryId) -> bool:
        return entry in self._pins

    def victims(self, entry: EntryId, size_bytes: int, budget_bytes: int) -> list[EntryId] | None:
        """Which unpinned entries must go, oldest first, so that `entry` fits; None if it cannot be made to fit."""
        over = self.total_bytes - self.size_of(entry) + size_bytes - budget_bytes
        chosen: list[EntryId] = []
        for candidate, candidate_bytes in self._sizes.items():
            if over <= 0:
                break
            if candidate != entry and candidate not in self._pins:
                chosen.append(candidate)
                over -= candidate_bytes
        return chosen if over <= 0 else None
