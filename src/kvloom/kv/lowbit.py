"""Lossy packing of f16 rows for storage: whitened first, then q8_0 or q4_0. Knows no files and no devices.

RoPE spreads each K channel's large, steady mean over a circle, which a block quantizer then pays for in every value. So
K is turned back to position 0, the mean of every channel is kept apart in f16, and what is left is spread evenly
by a Walsh–Hadamard turn within each head before it is quantized. V takes the same way without RoPE.

Payload before zstd: the means (f16, all layers' K, then all layers' V), then the blocks (all layers' K, then V).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kvloom.kv import hadamard
from kvloom.kv.quantize import BLOCK_VALUES, NumpyRowCaster, RowCaster
from kvloom.kv.rotate import multiply_heads
from kvloom.types import F32Array, KVLayout, KVRows, KVType, LayerRope, RopePairing, RopeSpec, U8Array


def applies_to(layout: KVLayout) -> bool:
    """Whether rows of this layout can be packed: f16 on the device, rows of whole blocks."""
    if layout.k_type is not KVType.F16 or layout.v_type is not KVType.F16:
        return False
    rows = [s.num_heads * dim for s in layout.layers for dim in (s.k_head_dim, s.v_head_dim)]
    return all(row_values % BLOCK_VALUES == 0 for row_values in rows)


@dataclass(frozen=True)
class _Plane:
    """The K or V rows of one layer: how they are shaped, where they lie in the rows and in the payload."""

    num_heads: int
    head_dim: int
    rope: LayerRope | None
    rows: slice
    mean: slice
    packed: slice

    @property
    def row_values(self) -> int:
        return self.num_heads * self.head_dim


def payload_bytes(layout: KVLayout, num_tokens: int, kv_type: KVType) -> int:
    """Bytes of the payload before zstd."""
    return _planes(layout, None, num_tokens, kv_type)[1]


def pack(rows: KVRows, kv_type: KVType, rope: RopeSpec, caster: RowCaster | None = None) -> U8Array:
    """`rows` (see `applies_to`) as a payload of blocks of `kv_type`."""
    caster = caster or NumpyRowCaster()
    planes, size = _planes(rows.layout, rope, rows.num_tokens, kv_type)
    turns = _Turns(rows.first_position, rows.num_tokens)
    out = np.empty(size, np.uint8)
    for plane in planes:
        values = np.empty((rows.num_tokens, plane.row_values), np.float32)
        caster.to_f32(KVType.F16, rows.data[plane.rows], values.reshape(-1))
        if plane.rope is not None:
            turns.turn(values, plane, plane.rope, backwards=True)
        mean = values.mean(axis=0, dtype=np.float64).astype(np.float16) if rows.num_tokens else np.zeros(0, np.float16)
        out[plane.mean] = mean.view(np.uint8) if rows.num_tokens else 0
        if rows.num_tokens:
            values -= mean
        flat = np.empty(values.size, np.float32)
        multiply_heads(values.reshape(-1), _hadamard(plane.head_dim), flat)
        caster.from_f32(kv_type, flat, out[plane.packed])
    return out


def unpack(
    payload: U8Array,
    kv_type: KVType,
    like: tuple[KVLayout, int, int],
    rope: RopeSpec,
    caster: RowCaster | None = None,
) -> KVRows:
    """The rows of a payload made by `pack`; `like` is (layout, num_tokens, first_position).

    Raises ValueError when the payload's size does not fit.
    """
    layout, num_tokens, first_position = like
    caster = caster or NumpyRowCaster()
    planes, size = _planes(layout, rope, num_tokens, kv_type)
    if payload.size != size:
        raise ValueError(f"{num_tokens} tokens packed in {kv_type.value} take {size} bytes, got {payload.size}")
    turns = _Turns(first_position, num_tokens)
    data = np.empty(layout.token_bytes * num_tokens, np.uint8)
    for plane in planes:
        flat = np.empty(num_tokens * plane.row_values, np.float32)
        caster.to_f32(kv_type, payload[plane.packed], flat)
        values = np.empty((num_tokens, plane.row_values), np.float32)
        multiply_heads(flat, _hadamard(plane.head_dim), values.reshape(-1))
        values += payload[plane.mean].view(np.float16)
        if plane.rope is not None:
            turns.turn(values, plane, plane.rope, backwards=False)
        caster.from_f32(KVType.F16, values.reshape(-1), data[plane.rows])
    return KVRows(layout, num_tokens, first_position, data)


def _planes(layout: KVLayout, rope: RopeSpec | None, num_tokens: int, kv_type: KVType) -> tuple[list[_Plane], int]:
    """All layers' K, then all layers' V; and the size of the payload."""
    ropes: list[LayerRope | None] = list(rope.layers) if rope is not None else [None] * layout.num_layers
    shapes = [(s.num_heads, s.k_head_dim, r) for s, r in zip(layout.layers, ropes, strict=True)]
    shapes += [(s.num_heads, s.v_head_dim, None) for s in layout.layers]
    row_at = mean_at = 0
    packed_at = sum(2 * heads * dim for heads, dim, _ in shapes)
    planes = []
    for heads, dim, layer_rope in shapes:
        row_bytes, mean_bytes = 2 * heads * dim * num_tokens, 2 * heads * dim
        packed_bytes = kv_type.row_bytes(heads * dim) * num_tokens
        where = (
            slice(row_at, row_at + row_bytes),
            slice(mean_at, mean_at + mean_bytes),
            slice(packed_at, packed_at + packed_bytes),
        )
        planes.append(_Plane(heads, dim, layer_rope, *where))
        row_at, mean_at, packed_at = where[0].stop, where[1].stop, where[2].stop
    return planes, packed_at


@lru_cache(maxsize=16)
def _hadamard(head_dim: int) -> F32Array:
    """Blocks as large as the head allows; a head of an odd size stays as it is (blocks of 1)."""
    matrix = hadamard.matrix(head_dim, head_dim & -head_dim).astype(np.float32)
    matrix.flags.writeable = False  # shared by all callers
    return matrix


class _Turns:
    """Turns every row by its own position; cos and sin are shared by the layers that have the same RoPE."""

    def __init__(self, first_position: int, num_tokens: int) -> None:
        self._positions = np.arange(first_position, first_position + num_tokens, dtype=np.float64)
        self._tables: dict[tuple[float, ...], tuple[F32Array, F32Array]] = {}

    def turn(self, values: F32Array, plane: _Plane, rope: LayerRope, *, backwards: bool) -> None:
        """In place; `values` is (n, row_values)."""
        cos, sin = self._table(rope.inv_freq)
        if backwards:
            sin = -sin
        heads = values.reshape(len(values), plane.num_heads, plane.head_dim)
        num_pairs, at = len(rope.inv_freq), rope.offset
        if rope.pairing is RopePairing.NORM:
            first, second = heads[..., at : at + 2 * num_pairs : 2], heads[..., at + 1 : at + 2 * num_pairs : 2]
        else:
            first, second = heads[..., at : at + num_pairs], heads[..., at + num_pairs : at + 2 * num_pairs]
        turned = first * cos
        turned -= second * sin
        second *= cos
        second += first * sin
        first[...] = turned

    def _table(self, inv_freq: tuple[float, ...]) -> tuple[F32Array, F32Array]:
        if inv_freq not in self._tables:
            angles = (self._positions[:, None] * np.asarray(inv_freq, np.float64))[:, None, :]
            self._tables[inv_freq] = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
        return self._tables[inv_freq]
