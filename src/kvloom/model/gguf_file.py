"""Reads a GGUF file's metadata and tensor list, within bounds, without its weights. Knows no architecture.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` library reads the same, but builds an
array per token of the vocabulary: seconds for what takes a tenth of one here, and it trusts every declared count.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvloom.errors import ModelFormatError, ModelNotFoundError

__all__ = ["TENSOR_TYPES", "GgufFile", "MetadataValue", "TensorInfo", "read_gguf"]

Scalar = int | float | bool | str
MetadataValue = Scalar | tuple[Scalar, ...]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
READ_BYTES = 8 * 1024**2
"""Read ahead in such steps: one covers the header of most models."""
MAX_HEADER_BYTES = 256 * 1024**2
"""A vocabulary of a million tokens with merges takes about 50 MB; past this it is no header."""
MAX_STRING_BYTES = 8 * 1024**2
"""The longest value of interest is a chat template: some 10 kB."""
MAX_KEPT_ARRAY = 4096
"""Arrays per layer are kept; arrays per token of the vocabulary only counted."""
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
MIN_ENTRY_BYTES = 8 + 4 + 1
"""A metadata entry takes at least a key's length, a type and a byte: bounds a declared count before it is believed."""

# GGUF's scalar types by number; 8 is a string, 9 an array.
SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
STRING, ARRAY = 8, 9
LENGTH = struct.Struct("<Q")

# ggml's tensor types by number: name, values per block, bytes per block.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its dimensions (innermost first), its type's name and its size in the file."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int

    @property
    def num_values(self) -> int:
        count = 1
        for dim in self.dims:
            count *= dim
        return count


@dataclass(frozen=True)
class GgufFile:
    """`metadata` holds what is short; of long arrays (the vocabulary) only `array_lengths` tells."""

    path: Path
    file_bytes: int
    version: int
    metadata: dict[str, MetadataValue]
    array_lengths: dict[str, int]
    tensors: tuple[TensorInfo, ...]
    data_start: int

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


class _Reader:
    """A forward reader that keeps what it has read so far, and refuses to go past the file or the bound."""

    def __init__(self, source: BinaryIO, path: Path, file_bytes: int) -> None:
        self.source = source
        self.path = path
        self.file_bytes = file_bytes
        self.buffer = bytearray()
        self.pos = 0

    def fail(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path} is not a usable GGUF file: {what}")

    def need(self, size: int) -> None:
        """Make `size` more bytes readable at `pos`."""
        end = self.pos + size
        if end <= len(self.buffer):
            return
        if end > self.file_bytes:
            raise self.fail(
                f"it is truncated: its header goes on past its end at byte {self.file_bytes:,}; fetch it again"
            )
        if end > MAX_HEADER_BYTES:
            raise self.fail(f"its header claims more than {MAX_HEADER_BYTES:,} bytes")
        missing = max(end - len(self.buffer), min(READ_BYTES, self.file_bytes - len(self.buffer)))
        more = self.source.read(missing)
        if len(more) < end - len(self.buffer):
            raise self.fail("it became shorter while it was read")
        self.buffer += more

    def unpack(self, form: struct.Struct) -> Scalar:
        self.need(form.size)
        (value,) = form.unpack_from(self.buffer, self.pos)
        self.pos += form.size
        return value  # type: ignore[no-any-return]

    def count(self) -> int:
        return int(self.unpack(LENGTH))

    def text(self) -> str:
        size = self.count()
        if size > MAX_STRING_BYTES:
            raise self.fail(f"a string of {size:,} bytes at byte {self.pos:,}")
        self.need(size)
        raw = self.buffer[self.pos : self.pos + size]
        self.pos += size
        return raw.decode("utf-8", "replace")

    def skip(self, size: int) -> None:
        self.need(size)
        self.pos += size

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings: the hot loop, some 300,000 turns for a large vocabulary."""
        unpack, pos, end = LENGTH.unpack_from, self.pos, len(self.buffer)
        for _ in range(count):
            if pos + LENGTH.size > end:
                self.pos = pos
                self.need(LENGTH.size)
                end = len(self.buffer)
            pos += LENGTH.size + unpack(self.buffer, pos)[0]
        self.pos = pos
        self.need(0)


def read_gguf(path: Path) -> GgufFile:
    """The header of `path`. Raises ModelNotFoundError, ModelFormatError.

    Every declared count and length is checked against the file's size first: a damaged or hostile file costs neither
    much memory nor much time. That all tensors lie inside the file is checked, too.
    """
    try:
        file_bytes = path.stat().st_size
        if path.is_dir():
            raise ModelFormatError(f"{path} is a folder, not a GGUF file")
        with path.open("rb", buffering=0) as source:
            return _read(_Reader(source, path, file_bytes))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(reader: _Reader) -> GgufFile:
    if reader.file_bytes == 0:
        raise reader.fail("it is empty")
    magic = bytes(reader.source.read(4))
    if magic != MAGIC:
        raise reader.fail(f"it begins with {magic!r}, not with {MAGIC!r}")
    reader.buffer += magic
    reader.pos = 4
    version = int(reader.unpack(SCALARS[4]))
    if version not in VERSIONS:
        raise reader.fail(f"its format version is {version}, versions 2 and 3 are understood")
    num_tensors, num_entries = reader.count(), reader.count()
    if num_entries > reader.file_bytes // MIN_ENTRY_BYTES or num_tensors > reader.file_bytes // MIN_ENTRY_BYTES:
        raise reader.fail(
            f"it declares {num_entries:,} metadata entries and {num_tensors:,} tensors in {reader.file_bytes:,} bytes"
        )
    metadata: dict[str, MetadataValue] = {}
    lengths: dict[str, int] = {}
    for _ in range(num_entries):
        key = reader.text()
        if key in metadata or key in lengths:
            raise reader.fail(f"the key {key!r} occurs twice")
        _read_value(reader, key, metadata, lengths)
    tensors = tuple(_read_tensor(reader) for _ in range(num_tensors))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
        raise reader.fail(f"its alignment is {alignment!r}")
    data_start = -(-reader.pos // alignment) * alignment
    needed = max((data_start + tensor.offset + tensor.size_bytes for tensor in tensors), default=reader.pos)
    if needed > reader.file_bytes:
        raise reader.fail(f"it is truncated: {reader.file_bytes:,} bytes of {needed:,}; fetch it again")
    return GgufFile(reader.path, reader.file_bytes, version, metadata, lengths, tensors, data_start)


def _read_value(reader: _Reader, key: str, metadata: dict[str, MetadataValue], lengths: dict[str, int]) -> None:
    kind = int(reader.unpack(SCALARS[4]))
    if kind != ARRAY:
        metadata[key] = _read_scalar(reader, kind, key)
        return
    item_kind, length = int(reader.unpack(SCALARS[4])), reader.count()
    lengths[key] = length
    item_bytes = LENGTH.size if item_kind == STRING else _form(reader, item_kind, key).size
    if length * item_bytes > reader.file_bytes:
        raise reader.fail(f"the array {key!r} declares {length:,} items in {reader.file_bytes:,} bytes")
    if length <= MAX_KEPT_ARRAY:
        metadata[key] = tuple(_read_scalar(reader, item_kind, key) for _ in range(length))
    elif item_kind == STRING:
        reader.skip_strings(length)
    else:
        reader.skip(length * item_bytes)


def _form(reader: _Reader, kind: int, key: str) -> struct.Struct:
    form = SCALARS.get(kind)
    if form is None:
        raise reader.fail(f"the value of {key!r} is of the unknown type {kind}")
    return form


def _read_scalar(reader: _Reader, kind: int, key: str) -> Scalar:
    return reader.text() if kind == STRING else reader.unpack(_form(reader, kind, key))


def _read_tensor(reader: _Reader) -> TensorInfo:
    name = reader.text()
    num_dims = int(reader.unpack(SCALARS[4]))
    if num_dims > MAX_DIMS:
        raise reader.fail(f"the tensor {name!r} has {num_dims} dimensions, {MAX_DIMS} are the most")
    dims = tuple(reader.count() for _ in range(num_dims))
    kind, offset = int(reader.unpack(SCALARS[4])), reader.count()
    if kind not in TENSOR_TYPES:
        raise reader.fail(f"the tensor {name!r} is of type {kind}, which is not known; a newer kvloom may know it")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    info = TensorInfo(name, dims, type_name, offset, 0)
    if dims and dims[0] % block:
        raise reader.fail(f"the rows of the tensor {name!r} are no whole blocks of {block} values")
    return TensorInfo(name, dims, type_name, offset, info.num_values // block * block_bytes)
