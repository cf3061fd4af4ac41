"""Makes layouts, ropes and random rows for the tests of the kv room. Knows no engine."""

from __future__ import annotations

import numpy as np

from kvloom.kv.quantize import NumpyRowCaster
from kvloom.types import F32Array, KVLayout, KVRows, KVType, LayerRope, LayerShape, RopePairing, RopeSpec, U8Array

CASTER = NumpyRowCaster()


def frequencies(num_pairs: int, base: float = 10000.0) -> tuple[float, ...]:
    return tuple(float(base ** (-i / num_pairs)) for i in range(num_pairs))


def layout_of(
    k_type: KVType = KVType.F16,
    v_type: KVType = KVType.F16,
    *,
    layers: tuple[LayerShape, ...] = (LayerShape(2, 64, 64),) * 3,
    hadamard: bool = False,
) -> KVLayout:
    return KVLayout(layers, k_type, v_type, hadamard_k=hadamard, hadamard_v=hadamard)


def rope_of(layout: KVLayout, pairing: RopePairing = RopePairing.NEOX, *, base: float = 10000.0) -> RopeSpec:
    """Every head turns as a whole."""
    return RopeSpec(tuple(LayerRope(pairing, frequencies(s.k_head_dim // 2, base)) for s in layout.layers))


def encode(kv_type: KVType, values: F32Array) -> U8Array:
    """(n, row values) float32 to (n, row bytes)."""
    out = np.empty((len(values), kv_type.row_bytes(values.shape[1])), np.uint8)
    CASTER.from_f32(kv_type, np.ascontiguousarray(values).reshape(-1), out.reshape(-1))
    return out


def decode(kv_type: KVType, rows: U8Array, num_values: int) -> F32Array:
    """(n, row bytes) to (n, num_values) float32."""
    out = np.empty(len(rows) * num_values, np.float32)
    CASTER.to_f32(kv_type, np.ascontiguousarray(rows).reshape(-1), out)
    return out.reshape(len(rows), num_values)


def random_rows(layout: KVLayout, num_tokens: int, rng: np.random.Generator, first_position: int = 1) -> KVRows:
    """Rows of normally distributed values with a strong mean in a few channels, as K has."""
    blocks = []
    for kv_type, dims in (
        (layout.k_type, [s.num_heads * s.k_head_dim for s in layout.layers]),
        (layout.v_type, [s.num_heads * s.v_head_dim for s in layout.layers]),
    ):
        for dim in dims:
            mean = rng.standard_normal(dim) * (rng.random(dim) < 0.1) * 8
            values = (rng.standard_normal((num_tokens, dim)) + mean).astype(np.float32)
            blocks.append(encode(kv_type, values).reshape(-1))
    return KVRows(layout, num_tokens, first_position, np.concatenate(blocks))
