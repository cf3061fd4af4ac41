"""The RAM tier: what is special about memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvloom.kv.ram import RamTier
from tests.unit.kv.entries import entry_of, same


def test_an_entry_cut_out_of_a_larger_buffer_does_not_keep_that_buffer() -> None:
    entry = entry_of(1)
    buffer = np.concatenate([entry.rows.data, np.zeros(1 << 20, np.uint8)])
    part = replace(entry, rows=replace(entry.rows, data=buffer[: entry.rows.nbytes]))
    tier = RamTier(1 << 20)
    tier.put(part)
    held = tier.get(entry.id)
    assert same(held, entry)
    assert held is not None
    assert held.rows.data.base is None
    assert not np.shares_memory(held.rows.data, buffer)


def test_rows_that_own_their_buffer_are_shared_not_copied() -> None:
    entry = entry_of(1)
    tier = RamTier(1 << 20)
    tier.put(entry)
    held = tier.get(entry.id)
    assert held is not None
    assert held.rows.data is entry.rows.data


def test_the_token_ids_of_the_key_count_too() -> None:
    entry = entry_of(1, 100)
    tier = RamTier(1 << 20)
    tier.put(entry)
    assert tier.nbytes > entry.rows.nbytes
    assert tier.nbytes == tier.size_of(entry.id)


def test_closing_frees_everything() -> None:
    tier = RamTier(1 << 20)
    tier.put(entry_of(1))
    tier.close()
    assert tier.nbytes == 0
    assert tier.get(entry_of(1).id) is None
