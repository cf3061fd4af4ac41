"""Reads files into documents, one reader a kind, and says of every file that gives none why. Knows no index."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from kvloom.chunk.content import read_raw
from kvloom.errors import ContentError
from kvloom.read.document import Document, Extract, Reading, ReadLimits, Skipped, SkipReason, Unchanged
from kvloom.read.plain import read_plain
from kvloom.read.walk import FoundFile, files

Reader = Callable[[bytes, str, ReadLimits], Extract]
Known = Callable[[Path, int, int], bool]
"""Whether a file with this path, size and time of change (ns) need not be read."""

_PDF_MAGIC = b"%PDF-"
_HTML_STARTS = (b"<!doctype html", b"<html")


def read(
    paths: Iterable[Path | str], limits: ReadLimits | None = None, known: Known | None = None
) -> Iterator[Reading]:
    """What is in the files behind `paths`, in an order that does not change; one file is held at a time.

    Folders are walked. Nothing raises for what a file holds or is: each gives a Document, an Unchanged (where `known`
    says so) or a Skipped.
    """
    limits = limits or ReadLimits()
    for found in files(Path(path) for path in paths):
        if isinstance(found, Skipped):
            yield found
        elif known is not None and known(found.path, found.size_bytes, found.mtime_ns):
            yield Unchanged(found.name, found.path)
        else:
            yield _read_one(found, limits)


def extract(data: bytes, name: str, limits: ReadLimits | None = None) -> Extract:
    """The text of bytes that came from elsewhere under a name, by the reader of its suffix. Nothing is opened by it.

    Raises ContentError for what gives no text, or is larger than the limits.
    """
    limits = limits or ReadLimits()
    suffix = PurePath(name).suffix.lower()
    _check_size(data, name, _max_bytes(suffix, limits))
    return _reader(suffix, data)(data, name, limits)


def is_plain(data: bytes, name: str) -> bool:
    """Whether bytes of this name are read as they are, by no parser."""
    return _reader(PurePath(name).suffix.lower(), data) is _plain


def extract_plain(data: bytes, name: str, limits: ReadLimits | None = None) -> Extract:
    """The same for bytes that are the text itself, whatever the name says. Raises ContentError."""
    limits = limits or ReadLimits()
    _check_size(data, name, limits.max_file_bytes)
    return _plain(data, name, limits)


def num_files(paths: Iterable[Path | str]) -> int:
    """How many files `read` will look into: what progress is measured against. Opens none of them."""
    return sum(isinstance(found, FoundFile) for found in files(Path(path) for path in paths))


def _read_one(found: FoundFile, limits: ReadLimits) -> Document | Skipped:
    suffix = found.path.suffix.lower()
    max_bytes = _max_bytes(suffix, limits)
    try:
        data, source = read_raw(found.path, max_bytes=max_bytes)
    except ContentError as exc:
        return Skipped(found.name, _why(exc, str(found.path)), found.path, _reason_unread(exc, found.path, max_bytes))
    try:
        extract = _reader(suffix, data)(data, found.name, limits)
    except ContentError as exc:
        reason = SkipReason.NOT_TEXT if data.strip() else SkipReason.EMPTY
        return Skipped(found.name, _why(exc, found.name), found.path, reason)
    digest = hashlib.sha256(data).hexdigest()
    return Document(
        found.name, found.path, extract.text, digest, extract.kind, source.size_bytes, source.mtime_ns, extract.note
    )


def _max_bytes(suffix: str, limits: ReadLimits) -> int:
    return limits.max_pdf_bytes if suffix == ".pdf" else limits.max_file_bytes


def _check_size(data: bytes, name: str, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise ContentError(f"{name} has {len(data):,} bytes, the limit is {max_bytes:,}: split it")


def _plain(data: bytes, name: str, limits: ReadLimits) -> Extract:
    return read_plain(data, name, limits.max_text_chars)


def _html(data: bytes, name: str, limits: ReadLimits) -> Extract:
    from kvloom.read.html import read_html

    return read_html(data, name, limits)


def _pdf(data: bytes, name: str, limits: ReadLimits) -> Extract:
    from kvloom.read.pdf import read_pdf

    return read_pdf(data, name, limits)


_READERS: dict[str, Reader] = {".pdf": _pdf, ".html": _html, ".htm": _html, ".xhtml": _html}
"""By suffix; anything else is plain text or nothing. A new format is one module and one line here."""


def _reader(suffix: str, data: bytes) -> Reader:
    if data.startswith(_PDF_MAGIC):
        return _pdf
    reader = _READERS.get(suffix, _plain)
    if reader is _pdf:
        return _plain  # It says what it is not: the file's first bytes are no PDF's.
    if not suffix and data[:256].lstrip().lower().startswith(_HTML_STARTS):
        return _html
    if reader is _html and b"\x00" in data[:1024] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _plain
    return reader


def _why(exc: ContentError, name: str) -> str:
    """The error's words behind the name, which whoever shows them writes in front."""
    return str(exc).removeprefix(name).lstrip(": ")


def _reason_unread(exc: ContentError, path: Path, max_bytes: int) -> SkipReason:
    cause = exc.__cause__
    if isinstance(cause, FileNotFoundError | NotADirectoryError):
        return SkipReason.GONE
    if cause is not None:
        return SkipReason.UNREADABLE
    try:
        found = path.stat()
    except OSError:
        return SkipReason.GONE
    if not stat.S_ISREG(found.st_mode):
        return SkipReason.NOT_TEXT
    return SkipReason.TOO_LARGE if found.st_size > max_bytes else SkipReason.CHANGING
