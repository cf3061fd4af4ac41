"""The codec of state bytes: what is written is read again, and nothing broken gets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.engine.base import PlacedRows
from kvloom.engine.llamacpp.state import StateWriter, copy_rows, parse, rows_of
from kvloom.errors import EngineStateError
from kvloom.types import KVLayout, KVRows, KVType, LayerShape, U8Array

GGML = {KVType.F16: 1, KVType.Q8_0: 8, KVType.Q4_0: 2}

layouts = st.builds(
    KVLayout,
    st.lists(st.builds(LayerShape, st.integers(1, 3), st.just(32), st.just(64)), min_size=1, max_size=4).map(tuple),
    st.sampled_from(KVType),
    st.sampled_from(KVType),
)


def random_rows(layout: KVLayout, count: int, seed: int) -> KVRows:
    data = np.random.default_rng(seed).integers(0, 256, layout.token_bytes * count, dtype=np.uint8)
    return KVRows(layout, count, 0, data)


def writer_for(layout: KVLayout) -> StateWriter:
    return StateWriter(layout, (GGML[layout.k_type], GGML[layout.v_type]))


@settings(max_examples=60, deadline=None)
@given(layouts, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), max_size=4), st.randoms())
def test_parts_come_back_at_their_positions(layout: KVLayout, sizes: list[tuple[int, int]], random: object) -> None:
    parts: list[PlacedRows] = []
    at = 0
    for index, (count, gap) in enumerate(sizes):
        at += gap
        parts.append(PlacedRows(random_rows(layout, count, index), at))
        at += count
    data = writer_for(layout).assemble(parts, 3)
    positions, rows = rows_of(data, parse(data), layout)
    assert positions.tolist() == [p.position + i for p in parts for i in range(p.rows.num_tokens)]
    start = 0
    for part in parts:
        stop = start + part.rows.num_tokens
        assert np.array_equal(rows.slice(start, stop).data, part.rows.data)
        start = stop


def test_cells_out_of_order_come_back_by_position() -> None:
    layout = KVLayout((LayerShape(1, 32, 32),) * 2, KVType.F16, KVType.F16)
    first, second = random_rows(layout, 3, 1), random_rows(layout, 2, 2)
    # The writer keeps the order that it is given, as llama.cpp keeps that of its cells.
    data = writer_for(layout).assemble([PlacedRows(second, 10), PlacedRows(first, 4)], 0)
    positions, rows = rows_of(data, parse(data), layout)
    assert positions.tolist() == [4, 5, 6, 10, 11]
    assert rows.first_position == 4
    assert np.array_equal(rows.slice(0, 3).data, first.data)
    assert np.array_equal(rows.slice(3, 5).data, second.data)


def sample() -> tuple[KVLayout, U8Array]:
    layout = KVLayout((LayerShape(2, 32, 32),) * 2, KVType.F16, KVType.Q8_0)
    return layout, writer_for(layout).assemble([PlacedRows(random_rows(layout, 4, 0), 7)], 1).copy()


def test_every_truncation_is_refused() -> None:
    layout, data = sample()
    for size in range(data.size):
        with pytest.raises(EngineStateError):
            rows_of(data[:size], parse(data[:size]), layout)
    longer = np.append(data, np.uint8(0))
    with pytest.raises(EngineStateError, match="go on"):
        parse(longer)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 200), st.integers(1, 255))
def test_a_broken_header_never_gives_rows_of_another_shape(at: int, flip: int) -> None:
    layout, data = sample()
    data[at] ^= flip
    try:
        positions, rows = rows_of(data, parse(data), layout)
    except EngineStateError:
        return
    assert rows.layout == layout
    assert len(positions) == rows.num_tokens == 4


def test_a_position_that_is_there_twice_is_refused() -> None:
    layout = KVLayout((LayerShape(1, 32, 32),), KVType.F16, KVType.F16)
    rows = random_rows(layout, 2, 0)
    data = writer_for(layout).assemble([PlacedRows(rows, 5), PlacedRows(rows, 6)], 0)
    with pytest.raises(EngineStateError, match="twice"):
        rows_of(data, parse(data), layout)


def test_the_buffer_is_kept_between_calls_and_rows_are_laid_by_whom_we_say() -> None:
    layout = KVLayout((LayerShape(1, 32, 32),), KVType.F16, KVType.F16)
    writer = writer_for(layout)
    large = writer.assemble([PlacedRows(random_rows(layout, 50, 0), 0)], 0)
    seen: list[int] = []

    def lay(parts: object, k: list[U8Array], v: list[U8Array]) -> None:
        seen.extend((len(k), len(v), k[0].shape[0]))
        assert all(view.flags.c_contiguous and view.flags.writeable for view in (*k, *v))
        k[0][:], v[0][:] = 1, 2

    small = writer.assemble([PlacedRows(random_rows(layout, 5, 1), 0)], 0, lay)  # type: ignore[arg-type]
    assert np.shares_memory(large, small)
    assert seen == [1, 1, 5]
    _, rows = rows_of(small, parse(small), layout)
    assert set(rows.k(0).reshape(-1)) == {1}
    assert set(rows.v(0).reshape(-1)) == {2}
    assert copy_rows is not lay
