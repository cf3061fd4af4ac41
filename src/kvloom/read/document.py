"""What reading a file gives: its text, or why there is none. Knows no disk and no format."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kvloom.errors import UsageError

_MIB = 1024 * 1024


class DocumentKind(StrEnum):
    """What a text is written in; headings are looked for accordingly."""

    MARKDOWN = "markdown"
    CODE = "code"
    PROSE = "prose"
    HTML = "html"
    PDF = "pdf"


class SkipReason(StrEnum):
    """Why a file gave no document, as a countable word."""

    LEFT_OUT = "left out"
    """Hidden, or a folder of tools' own files: name it itself to read it."""
    NOT_TEXT = "not text"
    EMPTY = "empty"
    TOO_LARGE = "too large"
    REPEATED = "repeated"
    """The same file was read already in this run, or a link leads back to where it came from."""
    GONE = "gone"
    UNREADABLE = "unreadable"
    CHANGING = "changing"
    """It was being written. What an index has of it stays until a later run can read it."""


@dataclass(frozen=True)
class ReadLimits:
    """What is refused with words instead of filling the memory: reading takes four to ten times a file's size."""

    max_file_bytes: int = 256 * _MIB
    """Plain text: some 64 million tokens, a minute or two to index."""
    max_html_bytes: int = 32 * _MIB
    max_html_tags: int = 500_000
    """Each takes some 0.6 kB while a page is read: its markup, not its text, is what fills the memory."""
    max_pdf_bytes: int = 256 * _MIB
    """Most of a large PDF are its pictures."""
    max_pdf_pages: int = 10_000
    max_text_chars: int = 32 * _MIB
    """Of the text taken out of a PDF or HTML file, which may be packed."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}: a limit of reading is at least 1")


@dataclass(frozen=True)
class Document:
    """The text of one file. `digest` is the SHA-256 of the file's bytes, `path` is absolute.

    `name` is for people: the file's name, or its way from the folder that was asked for. `note` says what was done to
    read it, where that was not plain.
    """

    name: str
    path: Path
    text: str = field(repr=False)
    digest: str
    kind: DocumentKind
    size_bytes: int
    mtime_ns: int
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that gave no document, and why, in words that follow its name.

    `size_bytes`, `mtime_ns`: of a file whose bytes were looked at, as it stood; else None.
    """

    name: str
    why: str
    path: Path
    reason: SkipReason
    size_bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True)
class Unchanged:
    """A file that was not read, since the caller knows what is in it."""

    name: str
    path: Path


Reading = Document | Unchanged | Skipped
"""What comes of one file."""


@dataclass(frozen=True)
class Extract:
    """What a reader takes out of a file's bytes."""

    text: str = field(repr=False)
    kind: DocumentKind
    note: str = ""
