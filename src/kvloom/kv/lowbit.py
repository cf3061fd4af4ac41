"""Lossy packing of f16 rows for storage: whitened first, then to few bits (`packing`). Knows no files and no devices.

RoPE spreads each K channel's large, steady mean over a circle, which a quantizer then pays for in every value. So
K is turned back to position 0, the mean of every channel is kept apart in f16, and what is left is spread evenly
by a Walsh–Hadamard turn within each head before it is quantized. V takes the same way without RoPE.

Payload before zstd: the means (f16, all layers' K, then all layers' V), then the packed planes (all K, then all V).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kvloom.kv import hadamard
from kvloom.kv.packing import Packing
from kvloom.kv.quantize import BLOCK_VALUES, NumpyRowCaster, RowCaster
from kvloom.kv.rotate import multiply_heads
from kvloom.types import F32Array, KVLayout, KVRows, KVType, LayerRope, RopePairing, RopeSpec, U8Array

MOST_F16 = 65504.0
"""A value next to it must not come back as infinite."""


def applies_to(layout: KVLayout) -> bool:
    """Whether rows of this layout can be packed: f16 on the device, rows of whole blocks."""
    if layout.k_type is not KVType.F16 or layout.v_type is not KVType.F16:
        return False
    rows = [s.num_heads * dim for s in layout.layers for dim in (s.k_head_dim, s.v_head_dim)]
    return all(row_values % BLOCK_VALUES == 0 for row_values in rows)


@dataclass(frozen=True)
class _Plane:
    """The K or V rows of one layer: how they are shaped, where they lie in the rows and in the payload."""

    is_k: bool
    num_heads: int
    head_dim: int
    rope: LayerRope | None
    rows: slice
    mean: slice
    packed: slice

    @property
    def row_values(self) -> int:
        return self.num_heads * self.head_dim


def payload_bytes(layout: KVLayout, num_tokens: int, packing: Packing) -> int:
    """Bytes of the payload before zstd."""
    return _planes(layout, None, num_tokens, packing)[1]


def pack(rows: KVRows, packing: Packing, rope: RopeSpec, caster: RowCaster | None = None) -> U8Array | None:
    """`rows` (one at least; see `applies_to`) as a payload; None where a value is infinite or none."""
    caster = caster or NumpyRowCaster()
    planes, size = _planes(rows.layout, rope, rows.num_tokens, packing)
    turns = _Turns(rows.first_position, rows.num_tokens)
    out = np.empty(size, np.uint8)
    for plane in planes:
        values = np.empty((rows.num_tokens, plane.row_values), np.float32)
        caster.to_f32(KVType.F16, rows.data[plane.rows], values.reshape(-1))
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite: looked at below
            if plane.rope is not None:
                turns.turn(values, plane, plane.rope, backwards=True)
            mean = values.mean(axis=0, dtype=np.float64).astype(np.float16)
        if not np.isfinite(mean).all():
            return None
        out[plane.mean] = mean.view(np.uint8)
        values -= mean
        turned = np.empty_like(values)
        multiply_heads(values.reshape(-1), _hadamard(plane.head_dim), turned.reshape(-1))
        shape = (rows.num_tokens, plane.num_heads, plane.head_dim)
        packing.pack(turned.reshape(shape), out[plane.packed], caster, is_k=plane.is_k)
    return out


def unpack(
    payload: U8Array,
    packing: Packing,
    like: tuple[KVLayout, int, int],
    rope: RopeSpec,
    caster: RowCaster | None = None,
) -> KVRows:
    """The rows of a payload made by `pack`; `like` is (layout, num_tokens, first_position).

    Raises ValueError when the payload's size does not fit, or holds what no pack has written.
    """
    layout, num_tokens, first_position = like
    caster = caster or NumpyRowCaster()
    planes, size = _planes(layout, rope, num_tokens, packing)
    if payload.size != size:
        raise ValueError(f"{num_tokens} tokens packed as {packing} take {size} bytes, got {payload.size}")
    turns = _Turns(first_position, num_tokens)
    data = np.empty(layout.token_bytes * num_tokens, np.uint8)
    for plane in planes:
        turned = np.empty((num_tokens, plane.row_values), np.float32)
        packing.unpack(payload[plane.packed], turned.reshape(num_tokens, plane.num_heads, plane.head_dim), caster)
        values = np.empty_like(turned)
        multiply_heads(turned.reshape(-1), _hadamard(plane.head_dim), values.reshape(-1))
        values += payload[plane.mean].view(np.float16)
        if plane.rope is not None:
            turns.turn(values, plane, plane.rope, backwards=False)
        np.clip(values, -MOST_F16, MOST_F16, out=values)
        caster.from_f32(KVType.F16, values.reshape(-1), data[plane.rows])
    return KVRows(layout, num_tokens, first_position, data)


def _planes(layout: KVLayout, rope: RopeSpec | None, num_tokens: int, packing: Packing) -> tuple[list[_Plane], int]:
    """All layers' K, then all layers' V; and the size of the payload."""
    ropes: list[LayerRope | None] = list(rope.layers) if rope is not None else [None] * layout.num_layers
    shapes = [(s.num_heads, s.k_head_dim, r) for s, r in zip(layout.layers, ropes, strict=True)]
    shapes += [(s.num_heads, s.v_head_dim, None) for s in layout.layers]
    row_at = mean_at = 0
    packed_at = sum(2 * heads * dim for heads, dim, _ in shapes)
    planes = []
    for number, (heads, dim, layer_rope) in enumerate(shapes):
        row_bytes, mean_bytes = 2 * heads * dim * num_tokens, 2 * heads * dim
        packed_bytes = packing.num_bytes((num_tokens, heads, dim))
        where = (
            slice(row_at, row_at + row_bytes),
            slice(mean_at, mean_at + mean_bytes),
            slice(packed_at, packed_at + packed_bytes),
        )
        planes.append(_Plane(number < layout.num_layers, heads, dim, layer_rope, *where))
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
