"""Casts K and V values between their device form (f16, q8_0, q4_0) and float32. Knows no layers, heads or positions.

A quantized row is a run of blocks of 32 values, as ggml lays them out (little-endian):
q8_0  f16 scale d, then 32 × int8 q:    value = q · d
q4_0  f16 scale d, then 16 bytes:       value = (nibble - 8) · d; low nibbles are values 0 – 15, high ones 16 – 31
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kvloom.types import F32Array, KVType, U8Array

BLOCK_VALUES = 32
"""Values per quantized block (ggml's QK8_0 and QK4_0)."""
_Q8_BLOCK_BYTES = 34
_Q4_BLOCK_BYTES = 18


class RowCaster(Protocol):
    """Casts runs of values; an engine may offer its own SIMD routines in this form.

    `source` and `out` are one-dimensional, contiguous, of matching length and do not overlap; byte arrays may be
    unaligned. Thread-safe: it is called from several threads at once, and should release the interpreter lock.
    """

    def to_f32(self, kv_type: KVType, source: U8Array, out: F32Array) -> None:
        """Decode the values in `source` into `out` (num_values,)."""

    def from_f32(self, kv_type: KVType, source: F32Array, out: U8Array) -> None:
        """Encode `source` (num_values,) into `out` (kv_type.row_bytes(num_values),)."""


class NumpyRowCaster:
    """`RowCaster` in numpy, with the arithmetic of ggml's reference quantizers. Works everywhere."""

    def to_f32(self, kv_type: KVType, source: U8Array, out: F32Array) -> None:
        if kv_type is KVType.F16:
            out[:] = source.view(np.float16)
        elif kv_type is KVType.Q8_0:
            _q8_0_to_f32(source, out)
        else:
            _q4_0_to_f32(source, out)

    def from_f32(self, kv_type: KVType, source: F32Array, out: U8Array) -> None:
        if kv_type is KVType.F16:
            with np.errstate(over="ignore"):  # beyond 65504 becomes infinite, as on the device
                out.view(np.float16)[:] = source
        elif kv_type is KVType.Q8_0:
            _f32_to_q8_0(source, out)
        else:
            _f32_to_q4_0(source, out)


def _q8_0_to_f32(source: U8Array, out: F32Array) -> None:
    blocks = source.reshape(-1, _Q8_BLOCK_BYTES)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    np.multiply(blocks[:, 2:].view(np.int8), scale, out=out.reshape(-1, BLOCK_VALUES))


def _q4_0_to_f32(source: U8Array, out: F32Array) -> None:
    blocks = source.reshape(-1, _Q4_BLOCK_BYTES)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    nibbles = np.empty((len(blocks), BLOCK_VALUES), np.int8)
    np.bitwise_and(blocks[:, 2:], 15, out=nibbles[:, :16].view(np.uint8))
    np.right_shift(blocks[:, 2:], 4, out=nibbles[:, 16:].view(np.uint8))
    nibbles -= 8
    np.multiply(nibbles, scale, out=out.reshape(-1, BLOCK_VALUES))


def _inverse(scale: F32Array) -> F32Array:
    """1 / scale; 0 where that is not finite: a block of zeros, or of values (below 1e-38) that f16 cannot tell from 0.

    The reference is undefined for the latter; the stored f16 scale is 0, so they decode to 0 whatever is written.
    """
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _f32_to_q8_0(source: F32Array, out: U8Array) -> None:
    values = source.reshape(-1, BLOCK_VALUES)
    blocks = out.reshape(-1, _Q8_BLOCK_BYTES)
    magnitude = np.abs(values)
    scale = magnitude.max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * _inverse(scale)
    # The reference rounds halves away from zero; numpy's rint rounds them to even.
    np.abs(scaled, out=magnitude)
    rounded = np.floor(magnitude)
    rounded += (magnitude - rounded) >= np.float32(0.5)
    np.copysign(rounded, scaled, out=rounded)
    _store_scale(scale, blocks)
    blocks[:, 2:] = rounded.astype(np.int8).view(np.uint8)


def _f32_to_q4_0(source: F32Array, out: U8Array) -> None:
    values = source.reshape(-1, BLOCK_VALUES)
    blocks = out.reshape(-1, _Q4_BLOCK_BYTES)
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-8)
    # In float64 as the reference's fused multiply-add: the product is not rounded before 8.5 is added.
    shifted = np.multiply(values, _inverse(scale), dtype=np.float64)
    shifted += 8.5
    nibbles = np.minimum(shifted, 15).astype(np.uint8)
    _store_scale(scale, blocks)
    blocks[:, 2:] = nibbles[:, :16] | (nibbles[:, 16:] << 4)


def _store_scale(scale: F32Array, blocks: U8Array) -> None:
    with np.errstate(over="ignore"):
        blocks[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
