"""State bytes of one sequence <-> canonical K/V rows. Knows the byte layout, and neither model nor context.

All numbers are little endian. As llama.cpp writes it (sequence state version 3, unified cache, flash attention on):

    offset  size        what
    0       4           magic 0xaf143cd8
    4       4           id of the sequence it was taken from (ignored when it is set)
    8       4           number of streams: 1
    12      4           n, the number of cells; when it is 0 nothing follows
    16      12 n        per cell, in CELL order (not in the order of positions):
                          i32 position, u32 number of sequences: 1, i32 sequence id
    …       4           1 if V is stored transposed: 0
    …       4           L, the number of layers that keep a cache
    …       per layer   i32 ggml type of K, u64 bytes of a row, n rows
    …       per layer   i32 ggml type of V, u64 bytes of a row, n rows

There is no checksum and no model id: whoever sets a state has checked both before. Models with two caches (sliding
windows), with recurrent state or with more numbers per cell (M-RoPE) write something else; `parse` refuses it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvloom.engine.base import PlacedRows, RowLayer
from kvloom.errors import EngineStateError
from kvloom.types import I32Array, KVLayout, KVRows, U8Array

__all__ = ["MAGIC", "ParsedState", "RowTable", "StateWriter", "copy_rows", "parse", "rows_of"]

MAGIC = 0xAF143CD8
_HEAD = struct.Struct("<IiII")
_CELL = np.dtype([("position", "<i4"), ("num_sequences", "<u4"), ("sequence", "<i4")])
_DATA_HEAD = struct.Struct("<II")
_ROWS_HEAD = struct.Struct("<iQ")


@dataclass(frozen=True)
class RowTable:
    """One layer's K or V: ggml type, bytes of a row, and where its n rows start."""

    ggml_type: int
    row_bytes: int
    offset: int


@dataclass(frozen=True)
class ParsedState:
    """Where everything lies in a state's bytes. `positions` in cell order."""

    positions: I32Array
    k: tuple[RowTable, ...]
    v: tuple[RowTable, ...]


def parse(data: U8Array) -> ParsedState:
    """Read the structure of a state; EngineStateError when it is not as the table above says."""
    magic, _, num_streams, num_cells = _unpack(_HEAD, data, 0)
    if magic != MAGIC:
        raise EngineStateError(f"state bytes start with {magic:#x} instead of {MAGIC:#x}")
    if num_streams != 1:
        raise EngineStateError(f"state bytes of {num_streams} streams: 1 is needed (a unified cache)")
    offset = _HEAD.size
    if num_cells == 0:
        _check_end(data, offset)
        return ParsedState(np.empty(0, np.int32), (), ())
    end = offset + num_cells * _CELL.itemsize
    if end > data.size:
        raise EngineStateError(f"state bytes end inside the table of {num_cells} cells")
    cells = data[offset:end].view(_CELL)
    if (cells["num_sequences"] != 1).any():
        raise EngineStateError("state bytes hold cells with a number of sequences other than 1, or more per cell")
    transposed, num_layers = _unpack(_DATA_HEAD, data, end)
    if transposed != 0:
        raise EngineStateError("state bytes hold V transposed: flash attention is off")
    if num_layers > 4096:
        raise EngineStateError(f"state bytes claim {num_layers} layers")
    offset = end + _DATA_HEAD.size
    k, offset = _row_tables(data, offset, num_layers, num_cells)
    v, offset = _row_tables(data, offset, num_layers, num_cells)
    _check_end(data, offset)
    return ParsedState(cells["position"].astype(np.int32), k, v)


def rows_of(data: U8Array, state: ParsedState, layout: KVLayout) -> tuple[I32Array, KVRows]:
    """Positions ascending, and the rows in that order, copied out of the state's bytes."""
    positions = state.positions
    count = len(positions)
    if count == 0:
        return positions, KVRows(layout, 0, 0, np.empty(0, np.uint8))
    _check_layout(state, layout)
    in_order = bool((positions[1:] > positions[:-1]).all())
    order = None if in_order else np.argsort(positions, kind="stable")
    target = np.empty(layout.token_bytes * count, np.uint8)
    at = 0
    for table in (*state.k, *state.v):
        size = table.row_bytes * count
        source = data[table.offset : table.offset + size]
        if order is None:
            target[at : at + size] = source
        else:
            rows = target[at : at + size].reshape(count, table.row_bytes)
            np.take(source.reshape(count, table.row_bytes), order, axis=0, out=rows)
        at += size
    positions = positions if order is None else positions[order]
    if (positions[1:] == positions[:-1]).any():
        raise EngineStateError("state bytes hold a position twice")
    return positions, KVRows(layout, count, int(positions[0]), target)


class StateWriter:
    """Assembles the state bytes of a whole sequence in one buffer that is kept and reused."""

    def __init__(self, layout: KVLayout, ggml_types: tuple[int, int]) -> None:
        self._layout = layout
        self._k_type, self._v_type = ggml_types
        self._buffer = np.empty(0, np.uint8)

    def assemble(self, parts: Sequence[PlacedRows], sequence: int, lay: RowLayer | None = None) -> U8Array:
        """The state of the parts in order. The view is valid until the next call."""
        layout = self._layout
        count = sum(part.rows.num_tokens for part in parts)
        size = self._size(count)
        if self._buffer.size < size:
            self._buffer = np.empty(size, np.uint8)
        data = self._buffer[:size]
        _HEAD.pack_into(data.data, 0, MAGIC, sequence, 1, count)
        at = _HEAD.size
        if count == 0:
            return data
        self._write_cells(data[at : at + count * _CELL.itemsize].view(_CELL), parts, sequence)
        at += count * _CELL.itemsize
        _DATA_HEAD.pack_into(data.data, at, 0, layout.num_layers)
        at += _DATA_HEAD.size
        k_blocks: list[U8Array] = []
        v_blocks: list[U8Array] = []
        tables = [(self._k_type, layout.k_row_bytes(i), k_blocks) for i in range(layout.num_layers)]
        tables += [(self._v_type, layout.v_row_bytes(i), v_blocks) for i in range(layout.num_layers)]
        for ggml_type, row_bytes, blocks in tables:
            _ROWS_HEAD.pack_into(data.data, at, ggml_type, row_bytes)
            at += _ROWS_HEAD.size
            blocks.append(data[at : at + count * row_bytes].reshape(count, row_bytes))
            at += count * row_bytes
        (lay or copy_rows)([(part.rows, part.position) for part in parts], k_blocks, v_blocks)
        return data

    def release(self) -> None:
        """Give the buffer's memory back."""
        self._buffer = np.empty(0, np.uint8)

    def _size(self, count: int) -> int:
        if count == 0:
            return _HEAD.size
        per_token = _CELL.itemsize + self._layout.token_bytes
        return _HEAD.size + _DATA_HEAD.size + 2 * self._layout.num_layers * _ROWS_HEAD.size + count * per_token

    @staticmethod
    def _write_cells(cells: np.ndarray, parts: Sequence[PlacedRows], sequence: int) -> None:
        cells["num_sequences"] = 1
        cells["sequence"] = sequence
        first = 0
        for part in parts:
            count = part.rows.num_tokens
            cells["position"][first : first + count] = np.arange(part.position, part.position + count)
            first += count


def copy_rows(parts: Sequence[tuple[KVRows, int]], k_views: Sequence[U8Array], v_views: Sequence[U8Array]) -> None:
    """Lay rows as they are: the `RowLayer` for rows that are at their positions already."""
    start = 0
    for rows, _ in parts:
        stop = start + rows.num_tokens
        at = 0
        for view in (*k_views, *v_views):
            size = rows.num_tokens * view.shape[1]
            view[start:stop].reshape(-1)[:] = rows.data[at : at + size]
            at += size
        start = stop


def _row_tables(data: U8Array, offset: int, num_layers: int, num_cells: int) -> tuple[tuple[RowTable, ...], int]:
    tables: list[RowTable] = []
    for _ in range(num_layers):
        ggml_type, row_bytes = _unpack(_ROWS_HEAD, data, offset)
        offset += _ROWS_HEAD.size
        if offset + row_bytes * num_cells > data.size:
            raise EngineStateError(f"state bytes end inside {num_cells} rows of {row_bytes} bytes")
        tables.append(RowTable(ggml_type, row_bytes, offset))
        offset += row_bytes * num_cells
    return tuple(tables), offset


def _check_layout(state: ParsedState, layout: KVLayout) -> None:
    found = ([table.row_bytes for table in state.k], [table.row_bytes for table in state.v])
    layers = range(layout.num_layers)
    wanted = ([layout.k_row_bytes(i) for i in layers], [layout.v_row_bytes(i) for i in layers])
    if found != wanted:
        raise EngineStateError(f"state bytes hold rows of {found} bytes, the layout says {wanted}")


def _check_end(data: U8Array, offset: int) -> None:
    if offset != data.size:
        raise EngineStateError(f"state bytes go on for {data.size - offset} bytes behind what was expected")


def _unpack(fields: struct.Struct, data: U8Array, offset: int) -> tuple[int, ...]:
    if offset + fields.size > data.size:
        raise EngineStateError(f"state bytes end at {data.size}, inside a header")
    return fields.unpack_from(data.data, offset)
