"""Reads files into documents, one reader a kind, and says of every file that gives none why. Knows no index."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kvloom.chunk.content import read_raw
from kvloom.errors import CancelledError, ContentError
from kvloom.read.apart import Apart
from kvloom.read.document import Document, Reading, ReadLimits, Skipped, SkipReason, Unchanged
from kvloom.read.extract import advice, max_bytes
from kvloom.read.walk import FoundFile, files

Known = Callable[[FoundFile], Unchanged | Skipped | None]
"""What there is to say of a file that need not be read as it stands; None: read it."""


def read(
    paths: Iterable[Path | str],
    limits: ReadLimits | None = None,
    known: Known | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Reading]:
    """What is in the files behind `paths`, in an order that does not change; one file is held at a time.

    Folders are walked. Nothing raises for what a file holds or is: each gives a Document, a Skipped, or what `known`
    says of it. Once it is cancelled, the file at hand is a Skipped and none follows. Raises StoreError where no process
    can be started to read in.
    """
    limits = limits or ReadLimits()
    with Apart(limits, is_cancelled) as apart:
        for found in files(Path(path) for path in paths):
            if isinstance(found, Skipped):
                yield found
            elif known is not None and (remembered := known(found)) is not None:
                yield remembered
            else:
                try:
                    reading = _read_one(found, limits, apart)
                except CancelledError:
                    yield Skipped(found.name, "was not read: it was stopped", found.path, SkipReason.UNREADABLE)
                    return
                yield reading


def num_files(paths: Iterable[Path | str]) -> int:
    """How many files `read` will look into: what progress is measured against. Opens none of them."""
    return sum(isinstance(found, FoundFile) for found in files(Path(path) for path in paths))


def _read_one(found: FoundFile, limits: ReadLimits, apart: Apart) -> Document | Skipped:
    suffix = found.path.suffix.lower()
    most = max_bytes(suffix, limits)
    try:
        data, source = read_raw(found.path, max_bytes=most, advice=advice(suffix))
    except ContentError as exc:
        return Skipped(found.name, _why(exc, str(found.path)), found.path, _reason_unread(exc, found.path, most))
    try:
        extract = apart.extract(data, found.name)
    except ContentError as exc:
        why, reason = _why(exc, found.name), _reason_without_text(exc, data)
        return Skipped(found.name, why, found.path, reason, source.size_bytes, source.mtime_ns)
    digest = hashlib.sha256(data).hexdigest()
    return Document(
        found.name, found.path, extract.text, digest, extract.kind, source.size_bytes, source.mtime_ns, extract.note
    )


def _why(exc: ContentError, name: str) -> str:
    """The error's words behind the name, which whoever shows them writes in front."""
    return str(exc).removeprefix(name).lstrip(": ")


def _reason_without_text(exc: ContentError, data: bytes) -> SkipReason:
    if isinstance(exc.__cause__, TimeoutError | ChildProcessError):  # on a machine that is less busy it may be read
        return SkipReason.UNREADABLE
    return SkipReason.NOT_TEXT if data.strip() else SkipReason.EMPTY


def _reason_unread(exc: ContentError, path: Path, most: int) -> SkipReason:
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
    return SkipReason.TOO_LARGE if found.st_size > most else SkipReason.CHANGING
