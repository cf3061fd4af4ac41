"""Makes small entries for the tests of tiers and files. Knows no engine."""

from __future__ import annotations

import numpy as np

from kvloom.types import ALONE, Entry, EntryKey, KVLayout, KVRows, Lineage, ModelFingerprint, RopeSpec
from tests.unit.kv.rows import layout_of, random_rows, rope_of

LAYOUT = layout_of()
ROPE = rope_of(LAYOUT)
MODEL = ModelFingerprint("ab" * 32)


def entry_of(
    number: int,
    num_tokens: int = 8,
    *,
    layout: KVLayout = LAYOUT,
    rope: RopeSpec = ROPE,
    lineage: Lineage = ALONE,
    model: ModelFingerprint = MODEL,
) -> Entry:
    """Entry `number`: equal numbers give equal entries."""
    tokens = tuple(range(number * 1000, number * 1000 + num_tokens))
    rows = random_rows(layout, num_tokens, np.random.default_rng(number))
    return Entry(EntryKey(tokens, model, layout.canonical(), rope.canonical(), lineage), rows)


def same(entry: Entry | None, other: Entry) -> bool:
    """Whether key and every byte of the rows are equal."""
    return (
        entry is not None
        and entry.key == other.key
        and entry.rows.first_position == other.rows.first_position
        and np.array_equal(entry.rows.data, other.rows.data)
    )


def rows_error(entry: Entry, other: Entry) -> float:
    """Relative error of f16 rows, over everything that is not a channel's mean."""
    values, wanted = (rows_values(e.rows) for e in (entry, other))
    centred = wanted - wanted.mean(axis=1, keepdims=True)
    return float(np.sqrt(((values - wanted) ** 2).sum() / (centred**2).sum()))


def rows_values(rows: KVRows) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Rows of one shape in all layers, (2 · layers, n, row values)."""
    return rows.data.view(np.float16).astype(np.float32).reshape(2 * rows.layout.num_layers, rows.num_tokens, -1)
