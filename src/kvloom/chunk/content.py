"""Reads a file or a text into content that may become a chunk, or says exactly why not. Knows no catalog.

The id is the SHA-256 of the exact bytes of the file, as `sha256sum` prints it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from kvloom.errors import ContentError
from kvloom.types import ChunkId

MAX_CONTENT_BYTES = 16 * 1024 * 1024
"""Default limit of one file: some 4 million tokens, far over any window; larger ones are most often a mistake."""
_NUM_READS = 3
"""How often a file is read again that changes meanwhile."""
_BLOCK_BYTES = 1 << 20
_SNIFF_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"

_ASK_AS_BOOK = 'a chunk is read whole; name it as a book instead, as in kvloom ask FILE "…"'
_ASK_FOR_TEXT = "extract its text first, and load that"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image", "images are not supported: describe it in a text file, and load that"),
    (b"\xff\xd8\xff", "a JPEG image", "images are not supported: describe it in a text file, and load that"),
    (b"GIF87a", "a GIF image", "images are not supported: describe it in a text file, and load that"),
    (b"GIF89a", "a GIF image", "images are not supported: describe it in a text file, and load that"),
    (b"II*\x00", "a TIFF image", "images are not supported: describe it in a text file, and load that"),
    (b"MM\x00*", "a TIFF image", "images are not supported: describe it in a text file, and load that"),
    (
        b"%PDF-",
        "a PDF document",
        f'name it as a book, as in kvloom ask FILE.pdf "…", or {_ASK_FOR_TEXT} (pdftotext FILE.pdf FILE.txt)',
    ),
    (b"PK\x03\x04", "a zip archive or an office document", f"unpack it or {_ASK_FOR_TEXT}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old office document", _ASK_FOR_TEXT),
    (b"\x1f\x8b", "gzip data", "unpack it first (gunzip)"),
    (b"BZh", "bzip2 data", "unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "xz data", "unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it first"),
    (b"\x7fELF", "a program", "load its source instead"),
    (b"SQLite format 3\x00", "an SQLite database", "dump what you need as text (sqlite3 FILE .dump)"),
    (b"GGUF", "a GGUF model", "it is loaded as a model, not as a chunk"),
    (b"\xff\xfe", "UTF-16 text", "convert it first (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "convert it first (iconv -f UTF-16 -t UTF-8)"),
)
"""First bytes, what it is, what to do."""


class Encoding(Enum):
    """How the bytes were read. REPAIRED: invalid bytes were replaced, and the id is that of the repaired text."""

    UTF8 = "utf-8"
    UTF8_BOM = "utf-8-bom"
    REPAIRED = "repaired"


@dataclass(frozen=True)
class Source:
    """Where content came from, and what the file looked like then."""

    path: Path
    mtime_ns: int
    size_bytes: int


@dataclass(frozen=True)
class Content:
    """What a chunk is made of. `data` are the exact bytes that `id` hashes; `text` is what a model reads of them.

    `text` leaves a byte order mark out, and keeps line ends as they are.
    """

    id: ChunkId
    data: bytes = field(repr=False)
    text: str = field(repr=False)
    encoding: Encoding = Encoding.UTF8
    source: Source | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data)


def read_file(path: Path, *, max_bytes: int = MAX_CONTENT_BYTES, repair: bool = False) -> Content:
    """The content of a text file. Raises ContentError, with what to do, for everything that is none.

    The size is checked before anything is read. A file that changes while it is read is read again, three times.
    """
    data, source = read_raw(path, max_bytes=max_bytes, advice=_ASK_AS_BOOK)
    return _content(data, str(path), source, repair)


def read_raw(path: Path, *, max_bytes: int, advice: str) -> tuple[bytes, Source]:
    """The bytes of a regular file as they stood at one moment, whatever they are.

    Raises ContentError, with `advice` for what is too large.
    """
    for _ in range(_NUM_READS):
        before, data, after = _read_once(path, max_bytes, advice)
        if _stamp(before) == _stamp(after) and len(data) == after.st_size:
            return data, Source(path.absolute(), after.st_mtime_ns, after.st_size)
    raise ContentError(f"{path} changes while it is read ({_NUM_READS} tries): load it again when it is written")


def read_text(text: str, *, name: str = "text", max_bytes: int = MAX_CONTENT_BYTES) -> Content:
    """Content of a text that a caller holds. Raises ContentError for an empty one and for lone surrogates."""
    try:
        data = text.encode()
    except UnicodeEncodeError as exc:
        message = f"{name}: character {exc.start} is half of a surrogate pair and stands for nothing: remove it"
        raise ContentError(message) from exc
    _check_size(data, name, max_bytes)
    if not text.strip():
        raise ContentError(f"{name} is empty")
    if "\x00" in text:
        raise ContentError(f"{name} holds a NUL character at {text.index(chr(0))}: only text can be read")
    encoding = Encoding.UTF8_BOM if data.startswith(_BOM) else Encoding.UTF8
    return Content(content_id(data), data, decode_content(data), encoding)


def read_bytes(data: bytes, *, name: str, max_bytes: int = MAX_CONTENT_BYTES, repair: bool = False) -> Content:
    """Content of bytes that came from elsewhere under a label. Raises ContentError as `read_file` does."""
    _check_size(data, name, max_bytes)
    return _content(data, name, None, repair)


def content_id(data: bytes) -> ChunkId:
    """The id of a chunk with these exact bytes."""
    return ChunkId(hashlib.sha256(data).hexdigest())


def decode_content(data: bytes) -> str:
    """The text that a model reads of a chunk's bytes."""
    return data.removeprefix(_BOM).decode()


def _read_once(path: Path, max_bytes: int, advice: str) -> tuple[os.stat_result, bytes, os.stat_result]:
    try:
        # Not blocking, so that a pipe without a writer cannot hang us; regular files do not care.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc
    try:
        before = os.fstat(handle)
        _check_kind(path, before, max_bytes, advice)
        blocks, size = [], 0
        while size <= max_bytes and (block := os.read(handle, _BLOCK_BYTES)):
            blocks.append(block)
            size += len(block)
        if size > max_bytes:
            raise _too_large(path, size, max_bytes, advice)
        return before, b"".join(blocks), os.fstat(handle)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    finally:
        os.close(handle)


def _check_kind(path: Path, found: os.stat_result, max_bytes: int, advice: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise ContentError(f"{path} is a directory: name its files, as in {path}/*.py")
    if not stat.S_ISREG(found.st_mode):
        raise ContentError(f"{path} is a device, pipe or socket: only regular files can be loaded")
    if found.st_size > max_bytes:
        raise _too_large(path, found.st_size, max_bytes, advice)


def _check_size(data: bytes, name: str, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise ContentError(
            f"{name} has {len(data):,} bytes, the limit is {max_bytes:,}: split it, or add it to a library"
        )


def _too_large(path: Path, size: int, max_bytes: int, advice: str) -> ContentError:
    return ContentError(f"{path} has {size:,} bytes, the limit for one file is {max_bytes:,}: {advice}")


def _unreadable(path: Path, exc: OSError | ValueError) -> ContentError:
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        return ContentError(f"{path}: no such file")
    if isinstance(exc, IsADirectoryError):
        return ContentError(f"{path} is a directory: name its files, as in {path}/*.py")
    if isinstance(exc, PermissionError):
        return ContentError(f"{path} may not be read: check its permissions")
    if isinstance(exc, OSError) and exc.errno == errno.ENXIO:
        return ContentError(f"{path} is a device, pipe or socket: only regular files can be loaded")
    return ContentError(f"{path} cannot be read: {exc}")


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _content(data: bytes, label: str, source: Source | None, repair: bool) -> Content:
    _check_is_text(data, label)
    try:
        text = decode_content(data)
        encoding = Encoding.UTF8_BOM if data.startswith(_BOM) else Encoding.UTF8
    except UnicodeDecodeError as exc:
        offset = exc.start + (len(_BOM) if data.startswith(_BOM) else 0)
        if not repair:
            raise ContentError(
                f"{label} is not valid UTF-8 at byte {offset} (0x{data[offset]:02x}): convert it "
                f"(iconv -f LATIN1 -t UTF-8), or load it repaired, with U+FFFD in place of such bytes"
            ) from exc
        # The repaired text is content of its own: one text never has two ids.
        text = data.removeprefix(_BOM).decode(errors="replace")
        data, encoding = text.encode(), Encoding.REPAIRED
    if not text.strip():
        raise ContentError(f"{label} holds only white space ({len(data):,} bytes)")
    return Content(content_id(data), data, text, encoding, source)


def _check_is_text(data: bytes, label: str) -> None:
    if not data:
        raise ContentError(f"{label} is empty (0 bytes)")
    for magic, what, advice in _MAGIC:
        # "BZh" and "GGUF" could open a prose text; then there are no control bytes behind it.
        if data.startswith(magic) and (magic[0] > 0x7E or magic[0] < 0x20 or _has_control(data) or magic == b"%PDF-"):
            raise ContentError(f"{label} is {what}, which cannot be loaded as text: {advice}")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        raise ContentError(f"{label} is a WebP image: images are not supported, describe it in a text file")
    at = data.find(b"\x00")
    if at >= 0:
        raise ContentError(f"{label} is binary (a NUL byte at {at}): only text can be read")


def _has_control(data: bytes) -> bool:
    """Whether the first bytes hold control characters that no text has."""
    return any(byte < 9 or 13 < byte < 27 for byte in data[:_SNIFF_BYTES])
