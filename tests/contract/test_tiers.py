"""Every tier, and the store that joins them, keeps the same promises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from kvloom.errors import StoreFullError
from kvloom.kv.codec import Codec
from kvloom.kv.disk import DiskCoding, DiskTier
from kvloom.kv.ram import RamTier
from kvloom.kv.store import TieredStore
from kvloom.kv.tier import Removed, Tier
from kvloom.types import Entry, EntryId
from tests.unit.kv.entries import entry_of, same

NUM_TOKENS = 32
ENTRY_BYTES = 64 * 1024
"""Above what an entry of NUM_TOKENS takes in any tier (48 KiB of rows), below what one and a half take."""
BUDGET = 4 * ENTRY_BYTES


class Holder(Protocol):
    """What tiers and the store have in common."""

    def get(self, entry_id: EntryId) -> Entry | None: ...
    def put(self, entry: Entry) -> None: ...
    def contains(self, entry_id: EntryId) -> bool: ...
    def delete(self, entry_id: EntryId) -> bool: ...
    def ids(self) -> list[EntryId]: ...
    def size_of(self, entry_id: EntryId) -> int: ...
    def pin(self, entry_id: EntryId) -> None: ...
    def unpin(self, entry_id: EntryId) -> None: ...
    def gc(self, keep: set[EntryId]) -> Removed: ...
    def close(self) -> None: ...
    @property
    def nbytes(self) -> int: ...


def make_ram(directory: Path) -> RamTier:
    return RamTier(BUDGET)


def make_disk(directory: Path) -> DiskTier:
    return DiskTier(directory, BUDGET)


def make_lossless_disk(directory: Path) -> DiskTier:
    return DiskTier(directory, BUDGET, DiskCoding(Codec.LOSSLESS))


def make_store(directory: Path) -> TieredStore:
    return TieredStore([RamTier(BUDGET), DiskTier(directory, BUDGET)])


def make_store_of_disk_only(directory: Path) -> TieredStore:
    return TieredStore([DiskTier(directory, BUDGET)])


TIERS: list[Callable[[Path], Tier]] = [make_ram, make_disk, make_lossless_disk]
HOLDERS: list[Callable[[Path], Holder]] = [*TIERS, make_store, make_store_of_disk_only]


def name_of(make: Callable[[Path], Holder]) -> str:
    return make.__name__.removeprefix("make_")


@pytest.fixture(params=HOLDERS, ids=name_of)
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holder]:
    made: Holder = request.param(tmp_path / "tier")
    yield made
    made.close()


@pytest.fixture(params=TIERS, ids=name_of)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    made: Tier = request.param(tmp_path / "tier")
    yield made
    made.close()


def big(number: int, num_tokens: int = NUM_TOKENS) -> Entry:
    return entry_of(number, num_tokens)


def test_what_was_put_comes_back_whole(holder: Holder) -> None:
    entry = big(1)
    holder.put(entry)
    assert same(holder.get(entry.id), entry)
    assert holder.contains(entry.id)
    assert holder.ids() == [entry.id]
    assert entry.rows.nbytes * 0.5 < holder.size_of(entry.id) <= holder.nbytes


def test_what_was_never_put_is_a_miss(holder: Holder) -> None:
    entry = big(1)
    assert holder.get(entry.id) is None
    assert not holder.contains(entry.id)
    assert not holder.delete(entry.id)
    assert holder.ids() == []
    assert holder.nbytes == 0
    assert holder.size_of(entry.id) == 0


def test_what_was_deleted_is_gone_and_may_come_again(holder: Holder) -> None:
    entry = big(1)
    holder.put(entry)
    assert holder.delete(entry.id)
    assert holder.get(entry.id) is None
    assert holder.nbytes == 0
    assert not holder.delete(entry.id)
    holder.put(entry)
    assert same(holder.get(entry.id), entry)


def test_an_entry_put_twice_is_held_once(tier: Tier) -> None:
    tier.put(big(1))
    before = tier.nbytes
    tier.put(big(1))
    assert tier.nbytes == before
    assert len(tier.ids()) == 1


def test_an_entry_got_before_a_delete_stays_valid(holder: Holder) -> None:
    entry = big(1)
    holder.put(entry)
    got = holder.get(entry.id)
    holder.delete(entry.id)
    for number in range(2, 8):
        holder.put(big(number))
    assert same(got, entry)


def test_the_least_recently_used_entries_make_room(tier: Tier) -> None:
    entries = [big(i) for i in range(1, 7)]
    for entry in entries[:4]:
        tier.put(entry)
    assert same(tier.get(entries[0].id), entries[0])
    tier.put(entries[4])
    tier.put(entries[5])
    held = set(tier.ids())
    assert {entries[0].id, entries[4].id, entries[5].id} <= held
    assert entries[1].id not in held
    assert tier.nbytes <= tier.budget_bytes


def test_ids_go_from_least_to_most_recently_used(tier: Tier) -> None:
    one, two, three = (big(i) for i in range(3))
    for entry in (one, two, three):
        tier.put(entry)
    tier.get(one.id)
    tier.put(two)
    assert tier.ids() == [three.id, one.id, two.id]


def test_an_entry_that_cannot_fit_changes_nothing(tier: Tier) -> None:
    held = [big(i) for i in range(1, 5)]
    for entry in held:
        tier.put(entry)
    before = (tier.ids(), tier.nbytes)
    with pytest.raises(StoreFullError, match=str(BUDGET)):
        tier.put(big(9, NUM_TOKENS * 8))
    assert (tier.ids(), tier.nbytes) == before
    for entry in held:
        assert same(tier.get(entry.id), entry)


def test_an_entry_larger_than_every_budget_is_refused_and_leaves_no_trace(holder: Holder) -> None:
    entry = big(9, NUM_TOKENS * 8)
    with pytest.raises(StoreFullError):
        holder.put(entry)
    assert not holder.contains(entry.id)
    assert holder.ids() == []


def test_pinned_entries_are_never_evicted_until_as_often_unpinned(tier: Tier) -> None:
    pinned = big(0)
    tier.pin(pinned.id)
    tier.pin(pinned.id)
    tier.put(pinned)
    for number in range(1, 9):
        tier.put(big(number))
    assert tier.contains(pinned.id)
    tier.unpin(pinned.id)
    for number in range(11, 19):
        tier.put(big(number))
    assert tier.contains(pinned.id)
    tier.unpin(pinned.id)
    for number in range(21, 29):
        tier.put(big(number))
    assert not tier.contains(pinned.id)


def test_where_pins_leave_no_room_nothing_is_evicted(tier: Tier) -> None:
    held = [big(i) for i in range(5)]
    for entry in held:
        tier.put(entry)
    resident = tier.ids()
    for entry_id in resident[1:]:
        tier.pin(entry_id)
    with pytest.raises(StoreFullError):
        tier.put(big(9, NUM_TOKENS * 2))
    assert tier.ids() == resident


def test_unpinning_what_is_not_pinned_is_an_error(holder: Holder) -> None:
    with pytest.raises(ValueError, match="not pinned"):
        holder.unpin(big(1).id)


def test_a_pinned_entry_can_be_deleted(holder: Holder) -> None:
    entry = big(1)
    holder.put(entry)
    holder.pin(entry.id)
    assert holder.delete(entry.id)
    assert not holder.contains(entry.id)


def test_a_lowered_budget_is_held_at_once_but_for_pins(tier: Tier) -> None:
    entries = [big(i) for i in range(4)]
    for entry in entries:
        tier.put(entry)
    tier.pin(entries[0].id)
    tier.set_budget(2 * ENTRY_BYTES)
    assert tier.budget_bytes == 2 * ENTRY_BYTES
    assert tier.nbytes <= tier.budget_bytes
    assert tier.contains(entries[0].id)
    tier.set_budget(0)
    assert tier.ids() == [entries[0].id]


def test_a_pristine_entry_replaces_a_lossy_one_but_not_the_other_way(tier: Tier) -> None:
    pristine = big(1)
    lossy = replace(
        pristine, rows=replace(pristine.rows, data=np.bitwise_xor(pristine.rows.data, np.uint8(1))), is_lossy=True
    )
    tier.put(lossy)
    got = tier.get(pristine.id)
    assert got is not None
    assert got.is_lossy
    tier.put(pristine)
    tier.put(lossy)
    assert same(tier.get(pristine.id), pristine)
    assert len(tier.ids()) == 1


def test_gc_deletes_exactly_what_is_not_kept(holder: Holder) -> None:
    entries = [big(i) for i in range(3)]
    for entry in entries:
        holder.put(entry)
    removed = holder.gc({entries[1].id, big(7).id})
    assert removed.num_entries >= 2
    assert removed.nbytes > 0
    assert holder.ids() == [entries[1].id]
    assert same(holder.get(entries[1].id), entries[1])
    assert holder.gc({entries[1].id}) == Removed(0, 0)


def test_many_threads_see_whole_entries_or_none(holder: Holder) -> None:
    entries = [big(i, 4 + i) for i in range(12)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        for step in range(30):
            entry = entries[(seed * 7 + step * 5) % len(entries)]
            action = (seed + step) % 4
            if action == 0:
                holder.delete(entry.id)
            elif action == 1:
                holder.put(entry)
            else:
                got = holder.get(entry.id)
                if got is not None and not same(got, entry):
                    wrong.append(entry.id)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for entry in entries:
        holder.delete(entry.id)
    assert holder.nbytes == 0
    assert holder.ids() == []
