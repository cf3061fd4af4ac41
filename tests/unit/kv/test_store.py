"""The store joins tiers: promotion, write-behind, faults that become misses, purges that stay purged."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvloom.errors import StoreError, StoreFullError
from kvloom.kv.codec import Codec
from kvloom.kv.disk import DiskCoding, DiskTier
from kvloom.kv.ram import RamTier
from kvloom.kv.store import TieredStore, TierStats
from kvloom.types import Entry, TierName
from tests.unit.kv.entries import ROPE, entry_of, same

BUDGET = 1 << 20


class GatedDisk(DiskTier):
    """A disk that writes only while its gate is open."""

    def __init__(self, directory: Path, budget_bytes: int = BUDGET) -> None:
        super().__init__(directory, budget_bytes)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def put(self, entry: Entry) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        super().put(entry)


@pytest.fixture
def disk(tmp_path: Path) -> DiskTier:
    return DiskTier(tmp_path, BUDGET)


@pytest.fixture
def ram() -> RamTier:
    return RamTier(BUDGET)


@pytest.fixture
def store(ram: RamTier, disk: DiskTier) -> Iterator[TieredStore]:
    made = TieredStore([ram, disk])
    yield made
    made.close()


def test_what_was_put_is_in_ram_at_once_and_on_disk_after_a_flush(
    store: TieredStore, ram: RamTier, disk: DiskTier
) -> None:
    entry = entry_of(1)
    store.put(entry)
    assert store.where(entry.id) is TierName.RAM
    store.flush()
    assert same(disk.get(entry.id), entry)
    ram.delete(entry.id)
    assert store.where(entry.id) is TierName.DISK


def test_a_cold_entry_is_promoted_on_use_and_hits_are_counted_per_tier(store: TieredStore, disk: DiskTier) -> None:
    entry = entry_of(1)
    disk.put(entry)
    assert store.where(entry.id) is TierName.DISK
    assert same(store.get(entry.id), entry)
    assert store.where(entry.id) is TierName.RAM
    assert same(store.get(entry.id), entry)
    assert store.get(entry_of(2).id) is None
    stats = store.stats()
    hits = {tier.name: tier.num_hits for tier in stats.tiers}
    assert hits == {TierName.RAM: 1, TierName.DISK: 1}
    assert stats.num_misses == 1
    assert stats.tiers[0] == TierStats(TierName.RAM, 1, stats.tiers[0].nbytes, BUDGET, 1)
    assert stats.tiers[1].nbytes == disk.nbytes > 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_corrupt_entry_is_a_counted_logged_miss_and_is_gone(
    store: TieredStore, disk: DiskTier, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = entry_of(1)
    disk.put(entry)
    disk.put(entry_of(2))
    path = disk.path_of(entry.id)
    whole = path.read_bytes()
    broken = {
        "flip": whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:],
        "cut": whole[:-5],
        "empty": b"",
        "foreign": disk.path_of(entry_of(2).id).read_bytes(),
    }
    path.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        assert store.get(entry.id) is None
    reason = {"flip": "checksum", "cut": "truncated", "empty": "truncated", "foreign": "foreign"}[damage]
    assert store.stats().faults == {reason: 1}
    assert store.stats().num_misses == 1
    assert reason in caplog.text
    assert not path.exists()
    store.put(entry)
    store.flush()
    assert same(disk.get(entry.id), entry)


def test_save_returns_only_when_the_entry_is_on_disk(store: TieredStore, ram: RamTier, disk: DiskTier) -> None:
    entry = entry_of(1)
    store.put(entry)
    assert store.save(entry.id)
    assert disk.contains(entry.id)
    assert ram.contains(entry.id)
    assert not store.save(entry_of(2).id)


def test_save_heals_what_is_corrupt_on_disk(store: TieredStore, disk: DiskTier) -> None:
    entry = entry_of(1)
    store.put(entry)
    store.flush()
    disk.path_of(entry.id).write_bytes(b"rubbish")
    assert store.save(entry.id)
    assert same(disk.get(entry.id), entry)


def test_offload_frees_ram_and_keeps_the_entry(store: TieredStore, ram: RamTier) -> None:
    entry = entry_of(1)
    store.put(entry)
    assert store.offload(entry.id)
    assert not ram.contains(entry.id)
    assert ram.nbytes == 0
    assert store.where(entry.id) is TierName.DISK
    assert same(store.get(entry.id), entry)
    assert not store.offload(entry_of(2).id)


def test_without_a_disk_nothing_can_be_saved(ram: RamTier) -> None:
    store = TieredStore([ram])
    store.put(entry_of(1))
    store.flush()
    with pytest.raises(StoreError, match="disk"):
        store.save(entry_of(1).id)
    with pytest.raises(StoreError):
        store.offload(entry_of(1).id)
    assert ram.contains(entry_of(1).id)
    store.close()


def test_a_purged_entry_does_not_come_back_from_a_write_that_was_under_way(tmp_path: Path, ram: RamTier) -> None:
    disk = GatedDisk(tmp_path)
    store = TieredStore([ram, disk])
    first, second = entry_of(1), entry_of(2)
    store.put(first)
    store.put(second)
    assert disk.entered.wait(30)  # the writer is inside the put of `first`
    assert store.purge(second.id)
    purging = threading.Thread(target=store.purge, args=(first.id,))
    purging.start()
    disk.gate.set()
    purging.join()
    store.flush()
    for entry in (first, second):
        assert store.where(entry.id) is TierName.NONE
        assert store.get(entry.id) is None
        assert not disk.path_of(entry.id).exists()
    assert not store.purge(first.id)
    store.close()


def test_a_flush_waits_for_all_that_was_put_before_even_when_later_puts_are_purged(
    tmp_path: Path, ram: RamTier
) -> None:
    disk = GatedDisk(tmp_path)
    store = TieredStore([ram, disk])
    for number in (1, 2):
        store.put(entry_of(number))
    assert disk.entered.wait(30)
    flushed = threading.Event()

    def flush() -> None:
        store.flush()
        assert all(disk.contains(entry_of(number).id) for number in (1, 2))
        flushed.set()

    flushing = threading.Thread(target=flush)
    flushing.start()
    for number in (3, 4):
        store.put(entry_of(number))
        store.purge(entry_of(number).id)
    assert not flushed.is_set()
    disk.gate.set()
    flushing.join()
    assert flushed.is_set()
    store.close()


def test_what_waits_to_be_written_stays_in_ram_and_in_its_budget(tmp_path: Path) -> None:
    disk = GatedDisk(tmp_path)
    entries = [entry_of(i) for i in range(3)]
    ram = RamTier(int(entries[0].rows.nbytes * 2.8))
    store = TieredStore([ram, disk])
    store.put(entries[0])
    store.put(entries[1])
    third = threading.Thread(target=store.put, args=(entries[2],))
    third.start()
    third.join(0.1)
    assert third.is_alive(), "it would have to push out what is not written yet"
    assert ram.ids() == [entries[0].id, entries[1].id]
    assert store.stats().num_pending == 2
    disk.gate.set()
    third.join()
    assert ram.nbytes <= ram.budget_bytes
    assert all(same(store.get(entry.id), entry) for entry in entries)
    store.close()
    assert all(disk.contains(e.id) for e in entries)


def test_a_part_of_a_larger_buffer_does_not_wait_with_all_of_it(tmp_path: Path, ram: RamTier) -> None:
    disk = GatedDisk(tmp_path)
    entry = entry_of(1)
    buffer = np.zeros(10 * entry.rows.nbytes, np.uint8)
    buffer[: entry.rows.nbytes] = entry.rows.data
    is_freed = threading.Event()
    weakref.finalize(buffer, is_freed.set)
    store = TieredStore([ram, disk])
    store.put(replace(entry, rows=replace(entry.rows, data=buffer[: entry.rows.nbytes])))
    assert disk.entered.wait(30)
    del buffer
    gc.collect()
    assert is_freed.is_set()
    assert store.stats().num_pending == 1
    disk.gate.set()
    store.close()
    assert same(disk.get(entry.id), entry)


def test_a_put_waits_while_too_much_is_pending(tmp_path: Path, ram: RamTier) -> None:
    disk = GatedDisk(tmp_path)
    entries = [entry_of(i) for i in range(3)]
    store = TieredStore([ram, disk], max_pending_bytes=2 * entries[0].rows.nbytes)
    store.put(entries[0])
    store.put(entries[1])
    third = threading.Thread(target=store.put, args=(entries[2],))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    assert store.stats().num_pending == 2
    disk.gate.set()
    third.join()
    store.flush()
    assert all(disk.contains(e.id) for e in entries)
    store.close()


def test_a_full_disk_is_reported_by_flush_and_the_entry_stays_in_ram(tmp_path: Path, ram: RamTier) -> None:
    store = TieredStore([ram, DiskTier(tmp_path, 100)])
    entry = entry_of(1)
    store.put(entry)
    assert list(store.verify()) == []
    with pytest.raises(StoreFullError):
        store.flush()
    store.flush()  # reported once
    assert same(store.get(entry.id), entry)
    assert store.stats().faults == {"disk-full": 1}
    with pytest.raises(StoreFullError):
        store.offload(entry.id)
    assert store.where(entry.id) is TierName.RAM
    store.close()


def test_what_does_not_fit_in_ram_goes_to_disk_before_put_returns(tmp_path: Path, disk: DiskTier) -> None:
    store = TieredStore([RamTier(100), disk])
    entry = entry_of(1)
    store.put(entry)
    assert disk.contains(entry.id)
    assert store.where(entry.id) is TierName.DISK
    assert same(store.get(entry.id), entry)
    store.close()


def test_an_exact_caller_is_never_given_lossy_rows(tmp_path: Path, ram: RamTier) -> None:
    store = TieredStore([ram, DiskTier(tmp_path, BUDGET, DiskCoding(Codec.Q8_0, (ROPE,)))])
    entry = entry_of(1, 40)
    store.put(entry)
    assert same(store.get(entry.id, allow_lossy=False), entry)
    store.offload(entry.id)
    assert store.get(entry.id, allow_lossy=False) is None
    lossy = store.get(entry.id)
    assert lossy is not None
    assert lossy.is_lossy
    assert store.get(entry.id, allow_lossy=False) is None
    store.put(entry)
    assert same(store.get(entry.id, allow_lossy=False), entry)
    store.close()


def test_gc_takes_pending_entries_too(tmp_path: Path, ram: RamTier) -> None:
    disk = GatedDisk(tmp_path)
    disk.gate.set()
    store = TieredStore([ram, disk])
    for number in range(4):
        store.put(entry_of(number))
    store.gc({entry_of(2).id})
    store.flush()
    assert store.ids() == [entry_of(2).id]
    assert disk.ids() == [entry_of(2).id]
    store.close()


def test_verify_covers_what_was_just_put(store: TieredStore, disk: DiskTier) -> None:
    store.put(entry_of(1))
    store.put(entry_of(2))
    assert {r.entry_id for r in store.verify() if r.is_whole} == {entry_of(1).id, entry_of(2).id}
    disk.path_of(entry_of(1).id).write_bytes(b"x")
    assert [r.fault for r in store.verify() if not r.is_whole] == ["truncated"]


def test_a_closed_store_takes_nothing_more(store: TieredStore, disk: DiskTier) -> None:
    store.put(entry_of(1))
    store.close()
    assert disk.contains(entry_of(1).id)
    with pytest.raises(StoreError, match="closed"):
        store.put(entry_of(2))
    store.close()


def test_a_program_that_ends_without_close_ends_and_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kvloom.kv.disk import DiskTier; from kvloom.kv.ram import RamTier\n"
        "from kvloom.kv.store import TieredStore; from tests.unit.kv.entries import entry_of\n"
        "store = TieredStore([RamTier(1 << 20), DiskTier(Path(sys.argv[1]), 1 << 20)])\n"
        "for number in range(8): store.put(entry_of(number))\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60, cwd=root)
    assert len(DiskTier(tmp_path, BUDGET).ids()) == 8
