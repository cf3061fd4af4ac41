"""Documents that were handed over as text or bytes instead of as files: read, named, told apart. Opens no file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from kvloom.errors import ContentError, UsageError
from kvloom.index import DocumentInfo
from kvloom.read import Document, Extract, ReadLimits, extract_plain
from kvloom.read.apart import Apart

MAX_NAME_CHARS = 256
"""Of a document's name: it is shown in every source of a reply."""
_MARK = "\0"
"""In front of the place of a document without a file: no path of any system can hold it, so none is ever taken for it.
"""


def given_texts(texts: Mapping[str, str], limits: ReadLimits | None) -> list[Document]:
    """Texts by name, as they are: of a name only the kind is taken. Raises UsageError, ContentError."""
    limits = limits or ReadLimits()
    found = []
    for name, text in texts.items():
        _check_name(name)
        try:
            data = text.encode()
        except UnicodeEncodeError as exc:
            raise ContentError(f"{name} holds half a surrogate pair at character {exc.start}: it is no text") from exc
        found.append(_document(name, data, extract_plain(data, name, limits)))
    return found


def given_bytes(
    contents: Mapping[str, bytes], limits: ReadLimits | None, apart_s: float | None, is_cancelled: Callable[[], bool]
) -> list[Document]:
    """Files' bytes by name, read as a file of that name would be. `apart_s`: see `Library.add_bytes`.

    Raises UsageError, ContentError, CancelledError.
    """
    found = []
    with Apart(limits or ReadLimits(), is_cancelled, apart_s) as apart:
        for name, data in contents.items():
            _check_name(name)
            found.append(_document(name, data, apart.extract(data, name)))
    return found


def is_given(document: DocumentInfo) -> bool:
    """Whether it was handed over, and no file is behind it."""
    return str(document.path).startswith(_MARK)


def check_free(library: str, given: list[Document], documents: tuple[DocumentInfo, ...]) -> None:
    """Raises UsageError for a name by which a file is known: which of both was meant could not be told any more."""
    names = {one.name for one in given}
    taken = next((one for one in documents if one.name in names and not is_given(one)), None)
    if taken is not None:
        raise UsageError(
            f"library {library} has a document {taken.name!r} already that was read from a file: remove it first, or "
            "choose another name"
        )


def _document(name: str, data: bytes, found: Extract) -> Document:
    digest = hashlib.sha256(data).hexdigest()
    return Document(name, _place(name), found.text, digest, found.kind, len(data), time.time_ns(), found.note)


def _place(name: str) -> Path:
    """What stands for a path: one for each name, so that a name given again is the same document."""
    return Path(_MARK + quote(name, safe=""))


def _check_name(name: str) -> None:
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise UsageError(
            f"{name[:40]!r} cannot be a document's name: it must be one printable line without outer white space"
        )
    if len(name) > MAX_NAME_CHARS:
        raise UsageError(f"a document's name has {len(name)} characters; {MAX_NAME_CHARS} are the most")
