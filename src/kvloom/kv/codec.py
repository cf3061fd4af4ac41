"""Compresses the rows of an entry for storage, and brings them back. Knows no files and no tiers.

off       the rows as they are
lossless  f16: the high bytes (sign, exponent, two bits of mantissa) with zstd, the low bytes as they are, which are
          noise (0.99 with zstd); quantized rows: zstd over all
q8_0      whitened (see `lowbit`), 8 bits a value: lossy
low4      whitened, in steps of which a value takes 4 to 5 bits behind zstd: lossy
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from kvloom.kv import lowbit
from kvloom.kv.packing import Blocks, Packing, Steps
from kvloom.kv.quantize import RowCaster
from kvloom.types import KVLayout, KVRows, KVType, RopeSpec, U8Array

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_LEVEL = 1
"""Higher levels gain nothing on this data: 0.701 of the high bytes at level 1, 0.699 at 3 and 6, 6× slower at 6."""
MIN_GAIN = 0.02
"""Lossless compression that saves less than this share is not worth its time: the rows are stored as they are."""
_PART_HEADER = struct.Struct("<B7xQQ")
"""How a part is stored, bytes of its first and of its second stream."""
_PART_RAW, _PART_ZSTD, _PART_PLANES = 0, 1, 2


class Codec(Enum):
    """How rows are stored."""

    OFF = "off"
    LOSSLESS = "lossless"
    Q8_0 = "q8_0"
    LOW4 = "low4"

    @property
    def is_lossy(self) -> bool:
        return self in _PACKINGS


_PACKINGS: dict[Codec, Packing] = {Codec.Q8_0: Blocks(KVType.Q8_0), Codec.LOW4: Steps(k=0.12, v=0.265)}
"""What `low4` loses is K's more than V's: at one size of file, this part between them moves the output least. Finer
steps of both would pass 0.3 of f16's size (docs/formats.md)."""


class PayloadError(ValueError):
    """A payload does not decode to the rows it should."""


@dataclass(frozen=True)
class EncodedRows:
    """`codec` is the one really used, which may be a weaker one than was asked for."""

    codec: Codec
    payload: U8Array = field(repr=False, compare=False)


@dataclass(frozen=True)
class RowsShape:
    """What a payload decodes to."""

    layout: KVLayout
    num_tokens: int
    first_position: int


def encode(rows: KVRows, codec: Codec, rope: RopeSpec | None = None, caster: RowCaster | None = None) -> EncodedRows:
    """Compress `rows` as `codec` says, or less where it cannot be done.

    A lossy codec needs the rows' `rope` and finite f16 rows, else it becomes lossless; a lossless one that gains less
    than `MIN_GAIN` becomes off, which shares `rows.data`.
    """
    if codec.is_lossy and rope is not None and lowbit.applies_to(rows.layout) and rows.num_tokens:
        packed = lowbit.pack(rows, _PACKINGS[codec], rope, caster)
        if packed is not None:
            return EncodedRows(codec, np.frombuffer(zstd.compress(packed.data, ZSTD_LEVEL), np.uint8))
    if codec is not Codec.OFF:
        payload = _compress(rows)
        if payload.size <= rows.nbytes * (1 - MIN_GAIN):
            return EncodedRows(Codec.LOSSLESS, payload)
    return EncodedRows(Codec.OFF, rows.data)


def decode(
    encoded: EncodedRows, shape: RowsShape, rope: RopeSpec | None = None, caster: RowCaster | None = None
) -> KVRows:
    """The rows of a payload; `rope` must be the one of `encode` for a lossy codec.

    Raises PayloadError when the payload does not give rows of that shape.
    """
    try:
        if encoded.codec is Codec.OFF:
            return KVRows(shape.layout, shape.num_tokens, shape.first_position, encoded.payload)
        if encoded.codec is Codec.LOSSLESS:
            return _decompress(encoded.payload, shape)
        if rope is None:
            raise PayloadError(f"rows in {encoded.codec.value} cannot be decoded without their RoPE")
        packing = _PACKINGS[encoded.codec]
        packed = _expand(encoded.payload, lowbit.payload_bytes(shape.layout, shape.num_tokens, packing))
        like = (shape.layout, shape.num_tokens, shape.first_position)
        return lowbit.unpack(packed, packing, like, rope, caster)
    except PayloadError:
        raise
    except ValueError as exc:
        raise PayloadError(f"the payload does not fit its header: {exc}") from exc


def _compress(rows: KVRows) -> U8Array:
    """Two parts, K and V, each behind a part header."""
    k_bytes = rows.layout.k_token_bytes * rows.num_tokens
    parts: list[bytes | U8Array] = []
    for kv_type, data in ((rows.layout.k_type, rows.data[:k_bytes]), (rows.layout.v_type, rows.data[k_bytes:])):
        if kv_type is KVType.F16:
            high, low = zstd.compress(data[1::2].tobytes(), ZSTD_LEVEL), np.ascontiguousarray(data[::2])
            parts += [_PART_HEADER.pack(_PART_PLANES, len(high), low.size), high, low]
            continue
        small = zstd.compress(data.data, ZSTD_LEVEL)
        if len(small) < data.size:
            parts += [_PART_HEADER.pack(_PART_ZSTD, len(small), 0), small]
        else:
            parts += [_PART_HEADER.pack(_PART_RAW, data.size, 0), data]
    return np.concatenate([np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part for part in parts])


def _decompress(payload: U8Array, shape: RowsShape) -> KVRows:
    k_bytes = shape.layout.k_token_bytes * shape.num_tokens
    data = np.empty(shape.layout.token_bytes * shape.num_tokens, np.uint8)
    at = 0
    for out in (data[:k_bytes], data[k_bytes:]):
        if payload.size < at + _PART_HEADER.size:
            raise PayloadError(f"a part header is cut off at byte {at} of {payload.size}")
        kind, first_bytes, second_bytes = _PART_HEADER.unpack_from(payload.data, at)
        at += _PART_HEADER.size
        first, second = payload[at : at + first_bytes], payload[at + first_bytes : at + first_bytes + second_bytes]
        at += first_bytes + second_bytes
        if kind == _PART_PLANES:
            out[1::2] = _expand(first, out.size // 2)
            out[::2] = second
        elif kind == _PART_ZSTD:
            out[:] = _expand(first, out.size)
        elif kind == _PART_RAW:
            out[:] = first
        else:
            raise PayloadError(f"a part of unknown kind {kind}")
    if at != payload.size:
        raise PayloadError(f"{payload.size - at} bytes behind the last part")
    return KVRows(shape.layout, shape.num_tokens, shape.first_position, data)


def _expand(payload: U8Array, num_bytes: int) -> U8Array:
    """zstd to exactly `num_bytes`; never makes more than one byte beyond them."""
    decompressor = zstd.ZstdDecompressor()
    try:
        data = decompressor.decompress(payload.data, num_bytes + 1)
    except zstd.ZstdError as exc:
        raise PayloadError(f"not a zstd frame: {exc}") from exc
    if len(data) != num_bytes or not decompressor.eof or decompressor.unused_data:
        raise PayloadError(f"a zstd frame of {len(data)} bytes where {num_bytes} belong")
    return np.frombuffer(data, np.uint8)
