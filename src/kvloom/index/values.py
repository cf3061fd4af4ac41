"""What an index tells: documents, passages, finds, what an update did. Knows no database."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvloom.read.document import DocumentKind, Skipped
from kvloom.types import ChunkId

CLOSED = "the library was closed or deleted meanwhile: ask again"
"""What a closed index says to whatever it is asked."""


@dataclass(frozen=True)
class DocumentInfo:
    """One document of an index. `name` is unique in it; `digest` is the SHA-256 of the file's bytes."""

    name: str
    path: Path
    digest: str
    kind: DocumentKind
    size_bytes: int
    num_passages: int
    note: str = ""


@dataclass(frozen=True)
class StoredPassage:
    """A passage and where it stands: lines count from 1, both included.

    `id` is the SHA-256 of the text: the id of the chunk that has this very text.
    """

    id: ChunkId
    document: str
    first_line: int
    last_line: int
    heading: str
    text: str = field(repr=False)

    @property
    def label(self) -> str:
        """`book.md:120-180`: how a reply cites it."""
        return f"{self.document}:{self.first_line}-{self.last_line}"


@dataclass(frozen=True)
class Found(StoredPassage):
    """A passage that has to do with a question.

    `score`: 0 … 1, comparable within one search. `words`: those of the question that it holds, as they were asked.
    `coverage`: their share of the question's weight, 0 … 1, rare words weighing more and words that no passage has
    most: comparable between searches, and what tells a find from an accident. Of a question that names documents (by
    `notes.md`) the words beside their names count. `similarity`: the cosine of its vector and the question's, None
    where no vectors were asked. `is_near`: it makes a find of the passage by itself.

    Where no passage of the named documents has such a word, they give their first passages, which hold no `words`:
    `score` falls from 1 to a half by their place, `coverage` is 1 where the question has no word beside the names, and
    a half where it has some: the name is taken for half of what was asked.
    """

    score: float
    words: tuple[str, ...]
    coverage: float
    similarity: float | None = None
    is_near: bool = False


@dataclass(frozen=True)
class Progress:
    """How far an update is. `name`: the file that was last looked at."""

    name: str
    num_files: int
    """Looked at: indexed, unchanged or skipped."""
    num_passages: int
    """Written by this update."""


@dataclass(frozen=True)
class Updated:
    """What an update did. A stopped one keeps what it had done, and the next goes on from there."""

    num_added: int = 0
    num_changed: int = 0
    num_unchanged: int = 0
    num_removed: int = 0
    num_passages_added: int = 0
    num_passages_kept: int = 0
    """Of documents that changed: passages that stand as they stood."""
    num_passages_removed: int = 0
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    """(name, what was done to read it) of documents that were not plain."""
    is_complete: bool = True
