"""Takes whitened values (see `lowbit`) to few bits and back: in ggml's blocks, or in even steps for an entropy coder.

Knows no layers and no RoPE. A plane is the K or the V rows of one layer, (num_rows, row_values) float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvloom.kv.quantize import RowCaster
from kvloom.types import F32Array, KVType, U8Array


class Packing(Protocol):
    """How the values of a plane are written."""

    def num_bytes(self, num_rows: int, row_values: int) -> int:
        """Of a packed plane."""

    def pack(self, plane: F32Array, out: U8Array, caster: RowCaster, *, is_k: bool) -> None:
        """`plane` into `out` (num_bytes,); may change `plane`."""

    def unpack(self, packed: U8Array, out: F32Array, caster: RowCaster) -> None:
        """The values of a packed plane into `out` (num_rows, row_values)."""


@dataclass(frozen=True)
class Blocks:
    """ggml's quantized blocks: a scale for every 32 values."""

    kv_type: KVType

    def num_bytes(self, num_rows: int, row_values: int) -> int:
        return self.kv_type.row_bytes(row_values) * num_rows

    def pack(self, plane: F32Array, out: U8Array, caster: RowCaster, *, is_k: bool) -> None:  # noqa: ARG002 - both alike
        caster.from_f32(self.kv_type, plane.reshape(-1), out)

    def unpack(self, packed: U8Array, out: F32Array, caster: RowCaster) -> None:
        caster.to_f32(self.kv_type, packed, out.reshape(-1))


@dataclass(frozen=True)
class Steps:
    """Every value as a whole number of steps, in one signed byte; the entropy coder behind it makes the bits fewer.

    `k` and `v`: the step, as a share of the geometric mean of the rows' root mean squares. One step for a plane costs
    no scales and spends its bits where the values are large, and that mean makes them equally many whatever the rows
    are like. A row with a value beyond 127 steps has steps twice as large, or four times, and so on.

    Layout of a packed plane: step (f32), for each row the power of two of its steps (u8), all values (i8).
    """

    k: float
    v: float

    def num_bytes(self, num_rows: int, row_values: int) -> int:
        return _STEP_BYTES + num_rows + num_rows * row_values

    def pack(self, plane: F32Array, out: U8Array, caster: RowCaster, *, is_k: bool) -> None:  # noqa: ARG002 - none needed
        num_rows = len(plane)
        size = np.sqrt(np.mean(np.square(plane), axis=1, dtype=np.float64))
        # A row of zeros counts as next to nothing, and has none but zeros in whatever steps.
        typical = np.exp(np.log(np.maximum(size, LEAST)).mean())
        step = np.float32(max(typical * (self.k if is_k else self.v), LEAST))
        powers = np.ceil(np.log2(np.maximum(np.abs(plane).max(axis=1) / (MOST_STEPS * step), 1))).astype(np.uint8)
        out[:_STEP_BYTES] = np.array([step], np.float32).view(np.uint8)
        out[_STEP_BYTES:][:num_rows] = powers
        plane /= _steps(step, powers)
        np.rint(plane, out=plane)
        out[_STEP_BYTES + num_rows :].view(np.int8)[:] = plane.reshape(-1)

    def unpack(self, packed: U8Array, out: F32Array, caster: RowCaster) -> None:  # noqa: ARG002 - none needed
        num_rows = len(out)
        step = packed[:_STEP_BYTES].copy().view(np.float32)[0]
        powers = packed[_STEP_BYTES:][:num_rows]
        values = packed[_STEP_BYTES + num_rows :].view(np.int8).reshape(out.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # bytes that no pack of ours wrote
            np.multiply(values, _steps(step, powers), out=out)


MOST_STEPS = 127
LEAST = 1e-8
"""Below the least that f16 tells from 0."""
_STEP_BYTES = 4


def _steps(step: np.float32, powers: U8Array) -> F32Array:
    """(num_rows, 1)."""
    return np.ldexp(step, powers.astype(np.int32)).astype(np.float32)[:, None]
