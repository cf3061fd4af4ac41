"""Takes the text out of bytes, by the reader of their kind. Opens nothing; knows no disk and no index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

from kvloom.errors import ContentError
from kvloom.read.document import Extract, ReadLimits
from kvloom.read.plain import read_plain

Reader = Callable[[bytes, str, ReadLimits], Extract]

_PDF_MAGIC = b"%PDF-"
_HTML_STARTS = (b"<!doctype html", b"<html")


def extract(data: bytes, name: str, limits: ReadLimits | None = None) -> Extract:
    """The text of bytes under a name, by the reader of its suffix, in this process and however long that takes.

    Raises ContentError for what gives no text, or is larger than the limits.
    """
    limits = limits or ReadLimits()
    suffix = PurePath(name).suffix.lower()
    _check_size(data, name, max_bytes(suffix, limits))
    return _reader(suffix, data)(data, name, limits)


def is_plain(data: bytes, name: str) -> bool:
    """Whether bytes of this name are read as they are, by no parser."""
    return _reader(PurePath(name).suffix.lower(), data) is _plain


def extract_plain(data: bytes, name: str, limits: ReadLimits | None = None) -> Extract:
    """The same for bytes that are the text itself, whatever the name says. Raises ContentError."""
    limits = limits or ReadLimits()
    _check_size(data, name, limits.max_file_bytes)
    return _plain(data, name, limits)


def max_bytes(suffix: str, limits: ReadLimits) -> int:
    """The limit for a file of this (lower) suffix."""
    reader = _READERS.get(suffix, _plain)
    if reader is _html:
        return min(limits.max_html_bytes, limits.max_file_bytes)
    return limits.max_pdf_bytes if reader is _pdf else limits.max_file_bytes


def advice(suffix: str) -> str:
    """What to do about a file of this (lower) suffix that is larger than its limit."""
    return "split it" if suffix in _READERS else "split it, or raise recall.max_file_bytes"


def _check_size(data: bytes, name: str, most: int) -> None:
    if len(data) > most:
        raise ContentError(f"{name} has {len(data):,} bytes, the limit is {most:,}: split it")


def _plain(data: bytes, name: str, _: ReadLimits) -> Extract:
    return read_plain(data, name)


def _html(data: bytes, name: str, limits: ReadLimits) -> Extract:
    from kvloom.read.html import read_html

    _check_size(data, name, max_bytes(".html", limits))  # it may have been told by its first bytes
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
