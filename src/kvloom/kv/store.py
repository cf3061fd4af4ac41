"""Joins tiers into one store, warm to cold. Knows no kind of file and no model.

A cache fault is a miss: an entry that fails its check is deleted, counted by reason and logged, and the caller
computes it again.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from kvloom.errors import EntryCorruptError, StoreError, StoreFullError, StoreReadOnlyError
from kvloom.kv.tier import Removed, Tier, VerifyResult
from kvloom.types import Entry, EntryId, EntryKey, TierName

MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Rows that may wait to be written: what a crash may cost, and what an end of the program has to wait for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TierStats:
    """One tier as it is now; `num_hits` since the store was opened."""

    name: TierName
    num_entries: int
    nbytes: int
    budget_bytes: int
    num_hits: int


@dataclass(frozen=True)
class StoreStats:
    """The whole store as it is now; counts since it was opened. `faults`: reason -> how often."""

    tiers: tuple[TierStats, ...]
    num_misses: int
    faults: Mapping[str, int]
    num_pending: int
    pending_bytes: int


@dataclass(frozen=True)
class _Pending:
    """An entry that waits to be written, and its number in the order of puts."""

    number: int
    entry_id: EntryId
    entry: Entry


class TieredStore:
    """RAM tiers are written at once, colder ones behind by one thread. Thread-safe.

    `tiers` are in order, warm to cold; any may be missing. `close` writes what is pending and closes the tiers. What
    waits to be written stays in the RAM tier and counts there: rows are held within the tiers' budgets only.
    """

    def __init__(self, tiers: Sequence[Tier], *, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self._warm = [tier for tier in tiers if tier.name is TierName.RAM]
        self._cold = [tier for tier in tiers if tier.name is not TierName.RAM]
        self._max_pending_bytes = max_pending_bytes
        # One condition guards everything below. Cold tiers are called without it, except to purge.
        self._changed = threading.Condition()
        self._pending: OrderedDict[EntryId, _Pending] = OrderedDict()
        self._pending_bytes = 0
        self._writing: _Pending | None = None
        self._num_queued = 0
        self._write_error: StoreError | None = None
        self._num_purges = 0
        self._hits: Counter[TierName] = Counter()
        self._num_misses = 0
        self._faults: Counter[str] = Counter()
        self._is_closed = False
        self._writer: threading.Thread | None = None

    def get(self, entry_id: EntryId, *, allow_lossy: bool = True) -> Entry | None:
        """The entry from the warmest tier that has it, or None. What a cold tier gave is put into RAM, too.

        `allow_lossy` False passes over entries that went through a lossy codec. Never raises for what is stored.
        """
        with self._changed:
            num_purges = self._num_purges
        for tier in (*self._warm, None, *self._cold):
            entry = self._pending_entry(entry_id) if tier is None else self._get_from(tier, entry_id)
            if entry is None or (entry.is_lossy and not allow_lossy):
                continue
            with self._changed:
                self._hits[TierName.RAM if tier is None else tier.name] += 1
                # A purge since we began may have removed what we hold: it must not come back.
                if tier not in self._warm and num_purges == self._num_purges and not self._put_warm(entry):
                    self._count_ram_full()
            return entry
        with self._changed:
            self._num_misses += 1
        return None

    def put(self, entry: Entry) -> None:
        """Hold the entry: in RAM at once, in the colder tiers soon (see `flush`). Blocks while too much is pending.

        What does not fit in RAM is written to the colder tiers before this returns; only if these refuse it, too, is
        that raised (StoreFullError, StoreReadOnlyError).
        """
        with self._changed:
            if self._put_in_time(entry):
                return
            self._count_ram_full()
        if not self._cold:
            raise StoreFullError(f"an entry of {entry.rows.nbytes} bytes fits into no tier: raise the RAM budget")
        self._write_cold(entry)

    def contains(self, entry_id: EntryId) -> bool:
        """Whether some tier has it."""
        return self.where(entry_id) is not TierName.NONE

    def where(self, entry_id: EntryId) -> TierName:
        """The warmest tier that has it, NONE if none has."""
        with self._changed:
            if entry_id in self._pending:
                return TierName.RAM
        return next((t.name for t in (*self._warm, *self._cold) if t.contains(entry_id)), TierName.NONE)

    def ids(self) -> list[EntryId]:
        """Every entry of every tier, each once."""
        with self._changed:
            found = dict.fromkeys(self._pending)
        for tier in (*self._cold, *self._warm):
            found.update(dict.fromkeys(tier.ids()))
        return list(found)

    def key_of(self, entry_id: EntryId) -> EntryKey | None:
        """What the entry was made of, not verified; None where no tier can tell."""
        return next(filter(None, (tier.key_of(entry_id) for tier in (*self._warm, *self._cold))), None)

    def size_of(self, entry_id: EntryId) -> int:
        """Bytes that the entry takes over all tiers."""
        return sum(tier.size_of(entry_id) for tier in (*self._warm, *self._cold))

    @property
    def nbytes(self) -> int:
        """Bytes held over all tiers."""
        return sum(tier.nbytes for tier in (*self._warm, *self._cold))

    def save(self, entry_id: EntryId) -> bool:
        """Make sure that a cold tier holds the entry before this returns; False if no tier has it.

        Raises StoreFullError or StoreReadOnlyError if it cannot be written, StoreError if there is no cold tier.
        """
        if not self._cold:
            raise StoreError("there is no disk tier to save to: set a disk budget")
        with self._changed:
            while entry_id in self._pending:
                self._changed.wait()
        entry = next(filter(None, (tier.get(entry_id) for tier in self._warm)), None)
        if entry is None:
            return any(tier.contains(entry_id) for tier in self._cold)
        self._write_cold(entry)  # costs a check where it is held already: what is corrupt is written anew
        return True

    def offload(self, entry_id: EntryId) -> bool:
        """Take the entry out of RAM, saved first; False if no tier has it. Raises as `save`, with RAM untouched."""
        if not self.save(entry_id):
            return False
        for tier in self._warm:
            tier.delete(entry_id)
        return True

    def purge(self, entry_id: EntryId) -> bool:
        """Delete the entry from every tier, pinned or not, durably; whether some tier had it."""
        with self._changed:
            self._num_purges += 1
            while self._writing is not None and self._writing.entry_id == entry_id:
                self._changed.wait()
            was_there = self._unqueue(entry_id)
            for tier in (*self._warm, *self._cold):
                was_there = tier.delete(entry_id) or was_there
            return was_there

    delete = purge

    def pack(self, entries: Collection[EntryId]) -> None:
        """These are written small when they come; those that are stored already stay as they are."""
        for tier in self._cold:
            tier.pack(entries)

    def pin(self, entry_id: EntryId) -> None:
        """Keep an entry from being evicted from any tier; pins count."""
        for tier in (*self._warm, *self._cold):
            tier.pin(entry_id)

    def unpin(self, entry_id: EntryId) -> None:
        """Undo one `pin`. Raises ValueError without one."""
        for tier in (*self._warm, *self._cold):
            tier.unpin(entry_id)

    def gc(self, keep: Set[EntryId]) -> Removed:
        """Delete every entry that is not in `keep` from every tier; what was removed over all of them."""
        with self._changed:
            self._num_purges += 1
            while self._writing is not None and self._writing.entry_id not in keep:
                self._changed.wait()
            for entry_id in [one for one in self._pending if one not in keep]:
                self._unqueue(entry_id)
            removed = [tier.gc(keep) for tier in (*self._warm, *self._cold)]
        return Removed(sum(r.num_entries for r in removed), sum(r.nbytes for r in removed))

    def verify(self, only: Collection[EntryId] | None = None) -> Iterator[VerifyResult]:
        """Check everything that is stored outside of this process's memory, what is pending included, as `Tier`."""
        self._wait_written()
        for tier in self._cold:
            yield from tier.verify(only)

    def flush(self) -> None:
        """Wait until all that was put before is in the cold tiers.

        Raises the first StoreError that writing met since the last flush: then something put before is only in RAM.
        """
        self._wait_written()
        with self._changed:
            error, self._write_error = self._write_error, None
        if error is not None:
            raise error

    def cool(self) -> int:
        """Warm entries that a colder tier holds as well leave RAM, pinned ones excepted; bytes freed.

        What could not be written stays: nothing is lost for memory's sake.
        """
        self._wait_written()
        freed = 0
        for tier in self._warm:
            for entry_id in tier.ids():
                size = tier.size_of(entry_id)
                if not tier.is_pinned(entry_id) and any(cold.contains(entry_id) for cold in self._cold):
                    freed += size if tier.delete(entry_id) else 0
        return freed

    def stats(self) -> StoreStats:
        tiers = [(tier, len(tier.ids())) for tier in (*self._warm, *self._cold)]
        with self._changed:
            return StoreStats(
                tuple(TierStats(t.name, n, t.nbytes, t.budget_bytes, self._hits[t.name]) for t, n in tiers),
                self._num_misses,
                dict(self._faults),
                len(self._pending),
                self._pending_bytes,
            )

    def close(self) -> None:
        """Write what is pending, then close the tiers. Idempotent. A failed write is logged, not raised."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            while self._oldest_unwritten() < math.inf:
                self._changed.wait()
        for tier in (*self._warm, *self._cold):
            tier.close()

    def _wait_written(self) -> None:
        """Until nothing that was queued before this call is pending or being written."""
        with self._changed:
            wanted = self._num_queued
            while self._oldest_unwritten() <= wanted:
                self._changed.wait()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store was closed: nothing can be put into it any more")

    def _put_in_time(self, entry: Entry) -> bool:
        """Holding the condition: into RAM and into the queue, once there is room in both. Whether RAM can take it."""
        self._check_open()
        while self._pending and self._pending_bytes + entry.rows.nbytes > self._max_pending_bytes:
            self._changed.wait()
            self._check_open()
        while not self._put_warm(entry):
            if not self._pending:
                return False
            self._changed.wait()  # what waits to be written may leave RAM then
            self._check_open()
        if self._cold:
            # Of what RAM holds: an entry may come as a part of a larger buffer, which must not wait with it.
            held = next(filter(None, (tier.get(entry.id) for tier in self._warm)), entry)
            self._queue(entry.id, held)
        return True

    def _put_warm(self, entry: Entry) -> bool:
        for tier in self._warm:
            try:
                tier.put(entry)
            except StoreFullError:
                return False
        return bool(self._warm)

    def _count_ram_full(self) -> None:
        """Holding the condition. What only waits to be written makes room by itself: no fault."""
        if self._warm and not self._pending:
            self._faults["ram-full"] += 1

    def _pending_entry(self, entry_id: EntryId) -> Entry | None:
        with self._changed:
            pending = self._pending.get(entry_id)
        return pending.entry if pending is not None else None

    def _get_from(self, tier: Tier, entry_id: EntryId) -> Entry | None:
        try:
            return tier.get(entry_id)
        except EntryCorruptError as exc:
            self._count_fault(exc.reason, tier, exc)
            try:
                tier.delete_corrupt(entry_id)
            except StoreError as cannot:
                _log.warning("the corrupt entry %s stays where it is: %s", entry_id[:12], cannot)
        except StoreError as exc:
            self._count_fault("unreadable", tier, exc)
        return None

    def _count_fault(self, reason: str, tier: Tier, exc: Exception) -> None:
        with self._changed:
            self._faults[reason] += 1
        _log.warning("a fault in the %s tier (%s) counts as a miss: %s", tier.name.value, reason, exc)

    def _write_cold(self, entry: Entry) -> None:
        """Into every cold tier; raises the first error if none took it."""
        first: StoreError | None = None
        num_held = 0
        for tier in self._cold:
            try:
                tier.put(entry)
                num_held += 1
            except StoreError as exc:
                reason = {StoreFullError: "full", StoreReadOnlyError: "read-only"}.get(type(exc), "unwritable")
                with self._changed:
                    self._faults[f"{tier.name.value}-{reason}"] += 1
                _log.warning("entry %s was not written to the %s tier: %s", entry.id[:12], tier.name.value, exc)
                first = first or exc
        if first is not None and not num_held:
            raise first

    def _queue(self, entry_id: EntryId, entry: Entry) -> None:
        """Holding the condition."""
        held = self._pending.get(entry_id)
        if held is not None and (entry.is_lossy or not held.entry.is_lossy):
            return
        self._unqueue(entry_id)
        self._num_queued += 1
        self._pending[entry_id] = _Pending(self._num_queued, entry_id, entry)
        self._pending_bytes += entry.rows.nbytes
        for tier in self._warm:
            tier.pin(entry_id)
        if self._writer is None:
            # Not a daemon, and it ends when nothing is pending: an interpreter that ends without close() neither
            # loses what is pending nor waits for ever.
            self._writer = threading.Thread(target=self._write_behind, name="kvloom-store")
            self._writer.start()

    def _unqueue(self, entry_id: EntryId) -> bool:
        """Holding the condition."""
        pending = self._pending.pop(entry_id, None)
        if pending is None:
            return False
        self._pending_bytes -= pending.entry.rows.nbytes
        for tier in self._warm:
            tier.unpin(entry_id)
        self._changed.notify_all()
        return True

    def _oldest_unwritten(self) -> float:
        """Holding the condition: the number of the oldest entry that is not yet written; infinite if all are."""
        waiting = next((one.number for one in self._pending.values()), math.inf)
        return min(waiting, self._writing.number) if self._writing is not None else waiting

    def _write_behind(self) -> None:
        while True:
            with self._changed:
                pending = next(iter(self._pending.values()), None)
                self._writing = pending
                if pending is None:
                    self._writer = None
                    return
            error: StoreError | None = None
            try:
                self._write_cold(pending.entry)
            except StoreError as exc:
                error = exc
            except Exception as exc:  # noqa: BLE001  # a thread's edge: whoever waits for it must learn of it
                _log.exception("writing entry %s failed", pending.entry_id[:12])
                error = StoreError(f"writing entry {pending.entry_id[:12]} failed: {exc!r}")
            with self._changed:
                self._writing = None
                self._write_error = self._write_error or error
                if self._pending.get(pending.entry_id) is pending:
                    self._unqueue(pending.entry_id)
                self._changed.notify_all()
