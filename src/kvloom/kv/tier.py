"""What every tier promises. Knows no kind of tier.

A new tier is one new file that implements `Tier`; tests/contract/test_tiers.py then holds it to these promises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import dataclass

from kvloom.types import Entry, EntryId, EntryKey, TierName


@dataclass(frozen=True)
class VerifyResult:
    """What a check of one stored entry found; `fault` is empty, or the countable reason, explained by `detail`."""

    entry_id: EntryId
    nbytes: int
    fault: str = ""
    detail: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.fault


@dataclass(frozen=True)
class Removed:
    """What a clean-up took away."""

    num_entries: int
    nbytes: int


class Tier(ABC):
    """A place for whole entries, found by id, within a budget.

    Every method may be called from any thread at any time. An entry is there whole or not at all, for every observer.
    Entries are immutable: what `get` returns is shared, never written to, and stays valid after a `delete`.
    """

    name: TierName

    @abstractmethod
    def get(self, entry_id: EntryId) -> Entry | None:
        """The entry, or None. Counts as a use.

        Raises EntryCorruptError when something is there but fails its check (it stays there: the caller decides), and
        StoreError when it could not be read for a reason that says nothing of the entry.
        """

    @abstractmethod
    def put(self, entry: Entry) -> None:
        """Hold the entry when this returns; evicts least recently used, unpinned entries if needed.

        All or nothing: raises StoreFullError or StoreReadOnlyError with nothing half-written. Nothing is evicted for an
        entry that the budget cannot take; for one that it can, room is made first, whether or not the system then lets
        it be written. An entry that is already held counts as used; it is replaced only where the new one is pristine
        and the held one is lossy.
        """

    @abstractmethod
    def contains(self, entry_id: EntryId) -> bool:
        """Whether `get` would find something, as far as is known without reading it. No use is counted."""

    @abstractmethod
    def delete(self, entry_id: EntryId) -> bool:
        """Take an entry out, pinned or not. Whether it was there."""

    @abstractmethod
    def ids(self) -> list[EntryId]:
        """All entries, from least to most recently used."""

    @abstractmethod
    def size_of(self, entry_id: EntryId) -> int:
        """Bytes that the entry takes in this tier; 0 if it is not there."""

    @abstractmethod
    def pin(self, entry_id: EntryId) -> None:
        """Keep an entry from being evicted; pins count, and may be set before the entry comes."""

    @abstractmethod
    def unpin(self, entry_id: EntryId) -> None:
        """Undo one `pin`. Raises ValueError without one."""

    @abstractmethod
    def is_pinned(self, entry_id: EntryId) -> bool: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held; never above `budget_bytes`, except that pins may hold a lowered budget up."""

    @property
    @abstractmethod
    def budget_bytes(self) -> int: ...

    @abstractmethod
    def set_budget(self, budget_bytes: int) -> None:
        """Change the budget; evicts at once what is above it and not pinned."""

    def pack(self, entries: Iterable[EntryId]) -> None:  # noqa: B027 - most tiers hold rows as they are
        """Write these, when they come, as what can be had again: with the codec that is kept for such."""

    def key_of(self, entry_id: EntryId) -> EntryKey | None:
        """What the entry was made of, None where it is not there or cannot be told. Not verified, and no use."""
        entry = self.get(entry_id) if self.contains(entry_id) else None
        return None if entry is None else entry.key

    def delete_corrupt(self, entry_id: EntryId) -> bool:
        """Take an entry out that failed its check, unless somebody has put a whole one there since."""
        return self.delete(entry_id)

    def gc(self, keep: Set[EntryId]) -> Removed:
        """Delete every entry that is not in `keep`, pinned or not."""
        removed = [(self.size_of(entry_id), self.delete(entry_id)) for entry_id in self.ids() if entry_id not in keep]
        return Removed(sum(was_there for _, was_there in removed), sum(size for size, _ in removed))

    def verify(self, only: Collection[EntryId] | None = None) -> Iterator[VerifyResult]:  # noqa: ARG002
        """Check every entry that is stored outside of this process's memory, or `only` these. Nothing is deleted."""
        return iter(())

    def close(self) -> None:
        """Free what the tier holds on to. Idempotent; not needed for durability."""
        return
