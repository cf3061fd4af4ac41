"""One model's part of the folder that all models share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvloom.errors import StoreFullError
from kvloom.kv.disk import DiskCoding, DiskTier
from kvloom.kv.disk_share import HEADER_BYTES, ModelDiskTier
from kvloom.types import ModelFingerprint
from tests.unit.kv.entries import MODEL, entry_of, same

OTHER = ModelFingerprint("cd" * 32)
PLENTY = 1 << 30


def tier_for(folder: Path, num_entries: int) -> ModelDiskTier:
    """A tier in which so many of these entries fit."""
    probe = DiskTier(folder.with_name("probe"), PLENTY)
    probe.put(entry_of(1))
    size = probe.nbytes
    probe.close()
    return ModelDiskTier(folder, PLENTY, DiskCoding(), MODEL, (num_entries - 1) * size + HEADER_BYTES + size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def test_the_oldest_entries_of_the_model_go_and_those_of_others_stay(folder: Path) -> None:
    tier = tier_for(folder, 3)
    foreign = [entry_of(number, model=OTHER) for number in range(100, 106)]
    for entry in foreign:
        tier.put(entry)
    own = [entry_of(number) for number in range(5)]
    for entry in own:
        tier.put(entry)
    assert [tier.contains(entry.id) for entry in own] == [False, False, True, True, True]
    assert all(same(tier.get(entry.id), entry) for entry in foreign)
    tier.close()


def test_what_was_used_last_stays(folder: Path) -> None:
    tier = tier_for(folder, 2)
    tier.put(entry_of(1))
    tier.put(entry_of(2))
    tier.get(entry_of(1).id)
    tier.put(entry_of(3))
    assert [tier.contains(entry_of(number).id) for number in (1, 2, 3)] == [True, False, True]
    tier.close()


def test_entries_of_an_earlier_run_count(folder: Path) -> None:
    before = DiskTier(folder, PLENTY)
    for number in range(4):
        before.put(entry_of(number))
        # A file system may count time in ticks that hold several.
        os.utime(before.path_of(entry_of(number).id), ns=(10**18 + number, 10**18 + number))
    before.put(entry_of(9, model=OTHER))
    before.close()
    tier = tier_for(folder, 2)
    assert tier.own_bytes == sum(tier.size_of(entry_of(number).id) for number in range(4))
    tier.put(entry_of(5))
    held = [number for number in (0, 1, 2, 3, 5) if tier.contains(entry_of(number).id)]
    assert held == [3, 5]
    assert tier.contains(entry_of(9, model=OTHER).id)
    tier.close()


def test_an_entry_that_is_held_already_drives_nothing_out(folder: Path) -> None:
    tier = tier_for(folder, 2)
    for number in (1, 2, 1, 2, 2):
        tier.put(entry_of(number))
    assert tier.contains(entry_of(1).id)
    assert tier.contains(entry_of(2).id)
    tier.close()


def test_what_cannot_fit_is_refused_with_nothing_evicted(folder: Path) -> None:
    tier = tier_for(folder, 2)
    tier.put(entry_of(1))
    tier.pin(entry_of(1).id)
    tier.put(entry_of(2))
    tier.pin(entry_of(2).id)
    with pytest.raises(StoreFullError, match="raise max_ssd_mb or unpin"):
        tier.put(entry_of(3))
    assert tier.contains(entry_of(1).id)
    assert tier.contains(entry_of(2).id)
    tier.close()
