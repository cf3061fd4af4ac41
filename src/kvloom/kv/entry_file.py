"""The file of one entry: written whole, and checked whole before a byte of it is handed on. Knows no tiers.

The byte table is in docs/formats.md. All numbers are little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import msgspec
import numpy as np
import xxhash

from kvloom.errors import EntryCorruptError
from kvloom.kv.codec import Codec, EncodedRows, PayloadError, RowsShape, decode, encode
from kvloom.kv.quantize import RowCaster
from kvloom.types import (
    ENTRY_KEY_VERSION,
    Entry,
    EntryId,
    EntryKey,
    KVLayout,
    KVType,
    LayerRope,
    LayerShape,
    Lineage,
    ModelFingerprint,
    RopePairing,
    RopeSpec,
    U8Array,
)

MAGIC = b"\x89kvloom\n"
FORMAT_VERSION = 1
_PREAMBLE = struct.Struct("<8sIIQQQQ16x")
"""magic, format version, header bytes, tokens bytes, payload offset, payload bytes, file bytes, zeros: 64 bytes."""
_DIGEST_BYTES = 16
_PAYLOAD_ALIGNMENT = 4096
"""The payload begins on a page, so that it may be mapped or read past the page cache."""
_MAX_HEADER_BYTES = 1 << 24
"""A larger header is a fault; the largest real one (hundreds of layers, each with RoPE of its own) is below 1 MiB."""
_CHUNK_BYTES = 1 << 22
"""Read and hashed in steps that stay in the cache."""


class _Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_heads: int
    k_head_dim: int
    v_head_dim: int


class _Rope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The RoPE of the layers that are named; layers that no `_Rope` names have none."""

    layers: list[int]
    pairing: RopePairing
    offset: int
    inv_freq: list[float]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON header. `rope` is the key's digest; `ropes` are there for lossy codecs only, which need them."""

    key_version: int
    model: str
    lineage: str
    rope: str
    k_type: KVType
    v_type: KVType
    hadamard_k: bool
    hadamard_v: bool
    layers: list[_Layer]
    num_tokens: int
    first_position: int
    codec: Codec
    is_lossy: bool
    rows_bytes: int
    ropes: list[_Rope]
    provenance: dict[str, str]


@dataclass(frozen=True)
class EntryInfo:
    """What the header of a checked entry file says."""

    key: EntryKey
    shape: RowsShape
    codec: Codec
    is_lossy: bool
    file_bytes: int
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class EntryImage:
    """An entry as the bytes of its file, in three pieces so that the rows are not copied once more."""

    codec: Codec
    head: bytes = field(repr=False)
    payload: U8Array = field(repr=False)
    digest: bytes = field(repr=False)

    @property
    def nbytes(self) -> int:
        return len(self.head) + self.payload.size + len(self.digest)

    def write_to(self, file: BinaryIO) -> None:
        """Write everything to an unbuffered or buffered binary file; OSErrors are the caller's."""
        for piece in (memoryview(self.head), self.payload.data, memoryview(self.digest)):
            rest = piece
            while rest:
                rest = rest[file.write(rest) :]


_NO_PROVENANCE: Mapping[str, str] = MappingProxyType({})


def build(
    entry: Entry,
    codec: Codec = Codec.OFF,
    *,
    rope: RopeSpec | None = None,
    caster: RowCaster | None = None,
    provenance: Mapping[str, str] = _NO_PROVENANCE,
) -> EntryImage:
    """The file of `entry`. `rope` must be the one the key names, and is needed for lossy codecs only.

    The same arguments always give the same bytes: `provenance` (library builds and the like) should hold no times.
    """
    layout = entry.rows.layout
    if entry.key.layout != layout.canonical() or len(entry.key.tokens) != entry.rows.num_tokens:
        raise ValueError(f"the key of entry {entry.id[:12]} does not fit its rows")
    if rope is not None and rope.canonical() != entry.key.rope:
        raise ValueError(f"the RoPE given is not the one of entry {entry.id[:12]}")
    encoded = encode(entry.rows, codec, rope, caster)
    header = _Header(
        key_version=ENTRY_KEY_VERSION,
        model=entry.key.model,
        lineage=entry.key.lineage,
        rope=entry.key.rope.hex(),
        k_type=layout.k_type,
        v_type=layout.v_type,
        hadamard_k=layout.hadamard_k,
        hadamard_v=layout.hadamard_v,
        layers=[_Layer(s.num_heads, s.k_head_dim, s.v_head_dim) for s in layout.layers],
        num_tokens=entry.rows.num_tokens,
        first_position=entry.rows.first_position,
        codec=encoded.codec,
        is_lossy=encoded.codec.is_lossy or entry.is_lossy,
        rows_bytes=entry.rows.nbytes,
        ropes=_ropes_to_header(rope) if rope is not None and encoded.codec.is_lossy else [],
        provenance=dict(sorted(provenance.items())),
    )
    text = msgspec.json.encode(header)
    tokens = np.asarray(entry.key.tokens, "<i4").tobytes()
    used = _PREAMBLE.size + len(text) + len(tokens)
    payload_at = -(-used // _PAYLOAD_ALIGNMENT) * _PAYLOAD_ALIGNMENT
    file_bytes = payload_at + encoded.payload.size + _DIGEST_BYTES
    sizes = (len(text), len(tokens), payload_at, encoded.payload.size, file_bytes)
    head = _PREAMBLE.pack(MAGIC, FORMAT_VERSION, *sizes) + text + tokens + bytes(payload_at - used)
    digest = xxhash.xxh3_128(head)
    digest.update(encoded.payload.data)
    return EntryImage(encoded.codec, head, encoded.payload, digest.digest())


def read(path: Path, expected: EntryId, caster: RowCaster | None = None) -> Entry:
    """The entry `expected` out of its file, after every check.

    Raises EntryCorruptError (see `reason`) when anything is not as it was written or belongs to another key, OSError
    when the file cannot be read.
    """
    info, payload, rope = _load(path, expected)
    try:
        rows = decode(EncodedRows(info.codec, payload), info.shape, rope, caster)
    except PayloadError as exc:
        raise EntryCorruptError(f"{path.name}: {exc}", reason="payload") from exc
    return Entry(info.key, rows, is_lossy=info.is_lossy)


def check(path: Path, expected: EntryId) -> EntryInfo:
    """Everything that `read` checks but the decoding. Raises as `read` does."""
    return _load(path, expected)[0]


def read_key(path: Path) -> EntryKey:
    """The key alone, in two small reads. Nothing is verified: not for deciding what may be loaded. Raises as `read`."""
    with path.open("rb", buffering=0) as file:
        actual_bytes = os.fstat(file.fileno()).st_size
        header_bytes, tokens_bytes, _, _ = _check_preamble(path, file.read(_PREAMBLE.size), actual_bytes)
        head = np.empty(header_bytes + tokens_bytes, np.uint8)
        _fill(path, file, head)
    header = _parse_header(path, head[:header_bytes])
    tokens = np.frombuffer(head[header_bytes:].tobytes(), "<i4")
    return _check_header(path, header, tuple(tokens.tolist()), actual_bytes)[0].key


def _load(path: Path, expected: EntryId) -> tuple[EntryInfo, U8Array, RopeSpec | None]:
    with path.open("rb", buffering=0) as file:
        actual_bytes = os.fstat(file.fileno()).st_size
        preamble = file.read(_PREAMBLE.size)
        header_bytes, tokens_bytes, payload_at, payload_bytes = _check_preamble(path, preamble, actual_bytes)
        head = np.empty(payload_at, np.uint8)
        payload = np.empty(payload_bytes, np.uint8)
        digest = np.empty(_DIGEST_BYTES, np.uint8)
        head[: len(preamble)] = np.frombuffer(preamble, np.uint8)
        hasher = xxhash.xxh3_128(preamble)
        for view in (head[len(preamble) :], payload):
            _read_hashed(path, file, view, hasher)
        _fill(path, file, digest)
    if hasher.digest() != digest.tobytes():
        raise EntryCorruptError(f"{path.name}: its checksum does not fit its {actual_bytes} bytes", reason="checksum")
    at = _PREAMBLE.size
    header = _parse_header(path, head[at : at + header_bytes])
    tokens = head[at + header_bytes : at + header_bytes + tokens_bytes].view("<i4")
    info, rope = _check_header(path, header, tuple(tokens.tolist()), actual_bytes)
    if info.key.id != expected:
        raise EntryCorruptError(f"{path.name}: holds the entry {info.key.id[:12]}", reason="foreign")
    return info, payload, rope


def _check_preamble(path: Path, preamble: bytes, actual_bytes: int) -> tuple[int, int, int, int]:
    """Header, tokens, payload offset and payload bytes, all inside the file; nothing is allocated before this."""
    if len(preamble) < _PREAMBLE.size:
        raise EntryCorruptError(f"{path.name}: only {actual_bytes} bytes long", reason="truncated")
    magic, version, header_bytes, tokens_bytes, payload_at, payload_bytes, file_bytes = _PREAMBLE.unpack(preamble)
    if magic != MAGIC:
        raise EntryCorruptError(f"{path.name}: not an entry file", reason="magic")
    if version != FORMAT_VERSION:
        raise EntryCorruptError(
            f"{path.name}: format version {version}, this kvloom reads {FORMAT_VERSION}", reason="version"
        )
    if actual_bytes != file_bytes:
        reason = "truncated" if actual_bytes < file_bytes else "length"
        raise EntryCorruptError(f"{path.name}: {actual_bytes} bytes long, should be {file_bytes}", reason=reason)
    used = _PREAMBLE.size + header_bytes + tokens_bytes
    fits = (
        header_bytes <= _MAX_HEADER_BYTES
        and tokens_bytes % 4 == 0
        and used <= payload_at
        and payload_at + payload_bytes + _DIGEST_BYTES == file_bytes
    )
    if not fits:
        raise EntryCorruptError(f"{path.name}: its sizes contradict each other", reason="sizes")
    return header_bytes, tokens_bytes, payload_at, payload_bytes


def _read_hashed(path: Path, file: BinaryIO, view: U8Array, hasher: xxhash.xxh3_128) -> None:
    for start in range(0, view.size, _CHUNK_BYTES):
        step = view[start : start + _CHUNK_BYTES]
        _fill(path, file, step)
        hasher.update(step.data)


def _fill(path: Path, file: BinaryIO, view: U8Array) -> None:
    rest = view.data
    while rest:
        num_read = file.readinto(rest)  # type: ignore[attr-defined]  # raw files have it, BinaryIO does not say so
        if not num_read:
            raise EntryCorruptError(f"{path.name}: became shorter while it was read", reason="truncated")
        rest = rest[num_read:]


def _parse_header(path: Path, text: U8Array) -> _Header:
    try:
        return msgspec.json.decode(text.tobytes(), type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise EntryCorruptError(f"{path.name}: its header cannot be read: {exc}", reason="header") from exc


def _check_header(
    path: Path, header: _Header, tokens: tuple[int, ...], file_bytes: int
) -> tuple[EntryInfo, RopeSpec | None]:
    if header.key_version != ENTRY_KEY_VERSION:
        raise EntryCorruptError(
            f"{path.name}: key version {header.key_version}, this kvloom reads {ENTRY_KEY_VERSION}", reason="version"
        )
    layers = tuple(LayerShape(s.num_heads, s.k_head_dim, s.v_head_dim) for s in header.layers)
    layout = KVLayout(layers, header.k_type, header.v_type, header.hadamard_k, header.hadamard_v)
    shape = RowsShape(layout, header.num_tokens, header.first_position)
    if header.num_tokens != len(tokens) or header.rows_bytes != layout.token_bytes * len(tokens):
        raise EntryCorruptError(f"{path.name}: its header contradicts its {len(tokens)} tokens", reason="header")
    try:
        rope_digest = bytes.fromhex(header.rope)
        rope = _ropes_from_header(header) if header.codec.is_lossy else None
    except (ValueError, IndexError) as exc:
        raise EntryCorruptError(f"{path.name}: its RoPE cannot be read: {exc}", reason="header") from exc
    if rope is not None and rope.canonical() != rope_digest:
        raise EntryCorruptError(f"{path.name}: its RoPE is not the one of its key", reason="header")
    lineage = Lineage(header.lineage)
    key = EntryKey(tokens, ModelFingerprint(header.model), layout.canonical(), rope_digest, lineage)
    provenance = MappingProxyType(header.provenance)
    return EntryInfo(key, shape, header.codec, header.is_lossy, file_bytes, provenance), rope


def _ropes_to_header(rope: RopeSpec) -> list[_Rope]:
    """One `_Rope` for all the layers that share it, in the order of their first layer."""
    layers_of: dict[LayerRope, list[int]] = {}
    for index, layer in enumerate(rope.layers):
        if layer is not None:
            layers_of.setdefault(layer, []).append(index)
    # float(): whoever made the RoPE may have left numpy's floats in it, which JSON does not know.
    return [_Rope(where, r.pairing, r.offset, [float(f) for f in r.inv_freq]) for r, where in layers_of.items()]


def _ropes_from_header(header: _Header) -> RopeSpec:
    layers: list[LayerRope | None] = [None] * len(header.layers)
    for rope in header.ropes:
        for index in rope.layers:
            layers[index] = LayerRope(rope.pairing, tuple(rope.inv_freq), rope.offset)
    return RopeSpec(tuple(layers))
