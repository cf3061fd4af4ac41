"""Takes whitened values (see `lowbit`) to few bits and back: in ggml's blocks, or in even steps for an entropy coder.

Knows no layers and no RoPE. A plane is the K or the V rows of one layer, (num_rows, num_heads, head_dim) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvloom.kv.quantize import RowCaster
from kvloom.types import F32Array, KVType, U8Array

I8Array = NDArray[np.int8]


Shape = tuple[int, int, int]


class Packing(Protocol):
    """How the values of a plane are written."""

    def num_bytes(self, shape: Shape) -> int:
        """Of a packed plane."""

    def pack(self, plane: F32Array, out: U8Array, caster: RowCaster, *, is_k: bool) -> None:
        """`plane` into `out` (num_bytes,); may change `plane`."""

    def unpack(self, packed: U8Array, out: F32Array, caster: RowCaster) -> None:
        """The values of a packed plane into `out`, contiguous. Raises ValueError for what no pack has written."""


@dataclass(frozen=True)
class Blocks:
    """ggml's quantized blocks: a scale for every 32 values."""

    kv_type: KVType

    def num_bytes(self, shape: Shape) -> int:
        num_rows, num_heads, head_dim = shape
        return self.kv_type.row_bytes(num_heads * head_dim) * num_rows

    def pack(self, plane: F32Array, out: U8Array, caster: RowCaster, *, is_k: bool) -> None:  # noqa: ARG002 - both alike
        caster.from_f32(self.kv_type, plane.reshape(-1), out)

    def unpack(self, packed: U8Array, out: F32Array, caster: RowCaster) -> None:
        caster.to_f32(self.kv_type, packed, out.reshape(-1))


@dataclass(frozen=True)
class Steps:
    """Every value as a whole number of steps, in one signed byte; the entropy coder behind it makes the bits fewer.

    `k` and `v`: the step, as a share of the geometric mean of the root mean squares that a head's rows have. One step
    for all rows of a head spends its bits where the values are large, and that mean makes them equally many whatever
    the rows are like. A row with a value beyond 127 steps has steps twice as large in that head, or four times, and so
    on.

    Layout of a packed plane: for each head its step (f32), for each row and head the power of two of its steps (u8),
    all values (i8).
    """

    k: float
    v: float

    def num_bytes(self, shape: Shape) -> int:
        num_rows, num_heads, head_dim = shape
        return num_heads * _STEP_BYTES + num_rows * num_heads * (1 + head_dim)

    def pack(self, plane: F32Array, out: U8Array, caster: RowCaster, *, is_k: bool) -> None:  # noqa: ARG002 - none needed
        steps_out, powers_out, values_out = _parts(out, plane.shape)
        size = np.sqrt(np.mean(np.square(plane), axis=2, dtype=np.float64))
        # A row of zeros counts as next to nothing, and has none but zeros in whatever steps.
        typical = np.exp(np.log(np.maximum(size, LEAST)).mean(axis=0))
        steps = np.maximum(typical * (self.k if is_k else self.v), LEAST).astype(np.float32)
        powers = np.ceil(np.log2(np.maximum(np.abs(plane).max(axis=2) / (MOST_STEPS * steps), 1))).astype(np.uint8)
        steps_out[:] = steps.view(np.uint8)
        powers_out[:] = powers
        plane /= _row_steps(steps, powers)
        np.rint(plane, out=plane)
        values_out[:] = plane

    def unpack(self, packed: U8Array, out: F32Array, caster: RowCaster) -> None:  # noqa: ARG002 - none needed
        steps_part, powers, values = _parts(packed, out.shape)
        steps = steps_part.copy().view(np.float32)
        if not (np.isfinite(steps) & (steps > 0)).all() or powers.max(initial=0) > MOST_POWERS:
            raise ValueError(f"steps of {steps.min()} to {steps.max()}, doubled {powers.max(initial=0)} times")
        np.multiply(values, _row_steps(steps, powers), out=out)


MOST_STEPS = 127
MOST_POWERS = 64
"""f16's largest value is 2^42 times `LEAST`."""
LEAST = 1e-8
"""Below the least that f16 tells from 0."""
_STEP_BYTES = 4


def _parts(packed: U8Array, shape: Shape) -> tuple[U8Array, U8Array, I8Array]:
    """Views of the steps (as bytes), the powers (num_rows, num_heads) and the values (`shape`)."""
    num_rows, num_heads, _ = shape
    powers_at = num_heads * _STEP_BYTES
    values_at = powers_at + num_rows * num_heads
    powers = packed[powers_at:values_at].reshape(num_rows, num_heads)
    return packed[:powers_at], powers, packed[values_at:].view(np.int8).reshape(shape)


def _row_steps(steps: F32Array, powers: U8Array) -> F32Array:
    """(num_rows, num_heads, 1)."""
    return np.ldexp(steps, powers.astype(np.int32)).astype(np.float32)[:, :, None]
