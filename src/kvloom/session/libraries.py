"""A library: documents that were read, cut and indexed, to be searched with questions. What `loom.library` returns.

Joins reading and index; a loom only to compute passages ahead. Knows no conversation.
"""

from __future__ import annotations

import hashlib
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from kvloom.errors import ContentError, UsageError
from kvloom.index import DocumentInfo, Found, LibraryIndex, StoredPassage, Updated
from kvloom.index import Progress as IndexProgress
from kvloom.read import Document, Reading, ReadLimits, num_files, read
from kvloom.session.given import check_free, given_bytes, given_texts, is_given
from kvloom.session.precompute import Precomputed, precompute
from kvloom.session.values import Progress, ProgressCallback
from kvloom.session.vectors import LibraryVectors
from kvloom.types import ChunkId

if TYPE_CHECKING:
    from kvloom.config import RecallSettings
    from kvloom.session.loom import Loom

__all__ = [
    "DocumentInfo",
    "Found",
    "Hit",
    "Library",
    "LibraryInfo",
    "ReadLimits",
    "StoredLibrary",
    "Updated",
    "adhoc_name",
    "file_of",
    "is_adhoc",
    "is_given",
    "meant_by",
    "names_in",
    "read_limits",
]

FOLDER = "libraries"
SUFFIX = ".sqlite3"
MAX_NAME_BYTES = 180
"""Of a library's name as a file's: file systems take 255, and the database has files of its own beside it."""
ADHOC = "~"
"""Between the first file's name and the digest in the name of a library that a question made by itself."""
ADHOC_DIGITS = 10

Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class LibraryInfo:
    """A library as it stands on disk. `is_adhoc`: made by a question about files, not by name."""

    name: str
    num_documents: int
    num_passages: int
    size_bytes: int
    is_adhoc: bool


@dataclass(frozen=True)
class Hit:
    """A passage of a library that has to do with a question.

    `relevance` compares it with those of other libraries too: a score does not, since a word that is rare in one
    library may be in every passage of another.
    """

    library: str
    found: Found
    relevance: float

    @property
    def chunk(self) -> ChunkId:
        return self.found.id

    @property
    def lines(self) -> tuple[int, int]:
        return self.found.first_line, self.found.last_line


class StoredLibrary:
    """Documents under a name, in one file of the home, for which no model is needed. Safe for several threads and
    processes, as its index is. `limits`: of what is read into it, where nothing else is said."""

    def __init__(self, name: str, file: Path, limits: ReadLimits | None = None) -> None:
        self.name = name
        self._limits = limits
        self._index = LibraryIndex.open(file)
        weakref.finalize(self, self._index.close)

    def add(
        self,
        paths: Paths,
        progress: ProgressCallback | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Updated:
        """Read these files and folders into the library; what is known and unchanged is not read again, what has gone
        from them leaves.

        Durable document by document: what was stopped goes on from there. Raises UsageError for what is no name,
        ContentError for one behind which nothing is.
        """
        wanted = _named(paths)
        for path in wanted:
            if not path.exists():
                raise ContentError(f"{path}: no such file or folder")
        total = num_files(wanted) if progress is not None else 0

        def tell(at: IndexProgress) -> None:
            if progress is not None:
                progress(Progress("indexing", at.num_files, total, "files"))

        for path in wanted:
            self._index.add_root(path)
        return self._updated(read(wanted, self._limits, self._index.known, is_cancelled), tell, progress, is_cancelled)

    def add_texts(
        self,
        texts: Mapping[str, str],
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        limits: ReadLimits | None = None,
    ) -> Updated:
        """Texts by name into the library, as they are. They have no file behind them, and `refresh` keeps them.

        A name that was given before gets the new text. Raises UsageError for what cannot be a name or is a file's,
        ContentError for what is no text; nothing is added then.
        """
        return self._add_given(given_texts(texts, limits or self._limits), is_cancelled)

    def add_bytes(
        self,
        contents: Mapping[str, bytes],
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        limits: ReadLimits | None = None,
        apart_s: float | None = None,
    ) -> Updated:
        """`add_texts` for the bytes of files that lie elsewhere: PDF, HTML and text, told by name and content.

        `apart_s`: PDF and HTML are read in a process of their own, each at most so long; None gives them what their
        size may need. Raises CancelledError where it is cancelled meanwhile.
        """
        return self._add_given(given_bytes(contents, limits or self._limits, apart_s, is_cancelled), is_cancelled)

    def _add_given(self, given: list[Document], is_cancelled: Callable[[], bool]) -> Updated:
        check_free(self.name, given, self._index.documents())
        return self._updated(given, None, None, is_cancelled)

    def refresh(
        self, progress: ProgressCallback | None = None, is_cancelled: Callable[[], bool] = lambda: False
    ) -> Updated:
        """`add` for everything that was ever added here: what changed since is read again, what has gone leaves."""
        total = len(self._index.documents())

        def tell(at: IndexProgress) -> None:
            if progress is not None:
                progress(Progress("indexing", at.num_files, max(total, at.num_files), "files"))

        found = read(self._index.roots(), self._limits, self._index.known, is_cancelled)
        return self._updated(found, tell, progress, is_cancelled)

    def _updated(
        self,
        found: Iterable[Reading],
        tell: Callable[[IndexProgress], None] | None,
        progress: ProgressCallback | None,  # noqa: ARG002 - told by those that do more than this
        is_cancelled: Callable[[], bool],
    ) -> Updated:
        return self._index.update(found, tell, is_cancelled)

    @property
    def num_passages(self) -> int:
        return self._index.num_passages

    def documents(self) -> Sequence[DocumentInfo]:
        """By name."""
        return self._index.documents()

    def roots(self) -> Sequence[Path]:
        """The files and folders that were added: what `refresh` reads."""
        return self._index.roots()

    def search(self, question: str, limit: int = 8) -> list[Found]:
        """The passages that have most to do with the question, the best first; none where they have no word of it."""
        return self._index.search(question, limit)

    def hits(self, question: str, limit: int) -> list[Hit]:
        """`search`, comparable with other libraries': the best is worth the most of the question that any has."""
        found = self.search(question, limit)
        best = max((one.score for one in found), default=0.0)
        share = max((_worth(one) for one in found), default=0.0)
        return [Hit(self.name, one, share * one.score / best) for one in found if one.score > 0]

    def passages(self) -> Iterator[StoredPassage]:
        """All of them, document by document."""
        yield from self._index.passages()  # by this object, which closes its index when nobody holds it

    def remove(self, document: str) -> None:
        """A document out of the library; its file is untouched. Raises UsageError with what there is.

        A file that was added by itself is not read again by `refresh`; one of a folder that was added is.
        """
        for path in (one.path for one in self._index.documents() if one.name == document and not is_given(one)):
            self._index.remove_root(path)
        if not self._index.remove(document):
            few = ", ".join(one.name for one in self._index.documents()[:5]) or "it is empty"
            raise UsageError(f"library {self.name} has no document {document!r}; it has: {few}")

    def forget(self, chunk: ChunkId) -> None:
        """A passage that was purged is not found any more."""
        self._index.forget(chunk)

    def info(self) -> LibraryInfo:
        index = self._index
        return LibraryInfo(self.name, index.num_documents, index.num_passages, _size(index.path), is_adhoc(self.name))

    def close(self) -> None:
        """Idempotent."""
        self._index.close()


class Library(StoredLibrary):
    """A library of an open loom, which can compute its passages ahead."""

    def __init__(self, loom: Loom, name: str, file: Path) -> None:
        super().__init__(name, file, read_limits(loom.settings.recall))
        self._loom = loom
        self._vectors = LibraryVectors(self._index, loom.embedders)

    def search(self, question: str, limit: int = 8) -> list[Found]:
        """As in a library without a model, and ordered by vectors too where `recall.vectors` asks for them."""
        return self._vectors.search(question, limit)

    def take_notices(self) -> tuple[str, ...]:
        """What was wrong with the vectors since this was last asked; searches went by words alone then."""
        return self._vectors.take_notices()

    def _updated(
        self,
        found: Iterable[Reading],
        tell: Callable[[IndexProgress], None] | None,
        progress: ProgressCallback | None,
        is_cancelled: Callable[[], bool],
    ) -> Updated:
        updated = super()._updated(found, tell, progress, is_cancelled)
        if not updated.is_complete:
            return updated
        return replace(updated, is_complete=self._vectors.fill(progress, is_cancelled))

    def precompute(
        self,
        progress: ProgressCallback | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        max_tokens: int | None = None,
        on_computed: Callable[[int], None] = lambda _: None,
    ) -> Precomputed:
        """Compute the KV of every passage that has none, so that no question waits for it.

        What was stopped goes on from there; with `max_tokens` it stops by itself before it would compute more;
        `on_computed` is told the tokens of each batch that is kept. Raises EngineUnsupportedError where the model's KV
        cannot be placed.
        """
        return precompute(self._loom, list(self._index.passages()), progress, is_cancelled, max_tokens, on_computed)


def _named(paths: Paths) -> list[Path]:
    """Raises UsageError for what names no file or folder: the path of an empty name is that of the current folder."""
    each: Iterable[object] = paths if isinstance(paths, Iterable) and not isinstance(paths, str | Path) else [paths]
    wanted = []
    for path in each:
        if not isinstance(path, str | Path):
            raise UsageError(f"{path!r} is no file or folder: name them by str or Path")
        if not str(path):
            raise UsageError("an empty name is no file or folder")
        wanted.append(Path(path).expanduser())
    if not wanted:
        raise UsageError("name at least one file or folder to add to the library")
    return wanted


def _worth(found: Found) -> float:
    """The share of the question that a passage has, by its words or by its vector alone."""
    return max(found.coverage, (found.similarity or 0.0) if found.is_near else 0.0)


def read_limits(settings: RecallSettings) -> ReadLimits:
    """What the settings let be read."""
    return ReadLimits(max_file_bytes=int(settings.max_file_bytes))


def file_of(home: Path, name: str) -> Path:
    """Where a library of this name lies. Raises UsageError for what cannot be a name."""
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise UsageError(
            f"{name!r} cannot be a library's name: it must be one printable line without outer white space"
        )
    packed = quote(name, safe=" ~+@=,()", errors="replace").replace(".", "%2E")
    if len(packed.encode()) > MAX_NAME_BYTES:
        raise UsageError(f"the name {name[:20]!r}… is too long for a library: {MAX_NAME_BYTES} bytes at most")
    return home / FOLDER / f"{packed}{SUFFIX}"


def names_in(home: Path) -> list[str]:
    """The libraries of a home."""
    return sorted(unquote(file.name.removesuffix(SUFFIX)) for file in (home / FOLDER).glob(f"*{SUFFIX}"))


def is_adhoc(name: str) -> bool:
    """Whether a question about files made the library by itself."""
    return re.search(f"{ADHOC}[0-9a-f]{{{ADHOC_DIGITS}}}$", name) is not None


def adhoc_name(paths: Sequence[Path]) -> str:
    """The name of the library that belongs to exactly these files, in whatever order and however they are written."""
    places = sorted({os.path.abspath(path.expanduser()) for path in paths})  # noqa: PTH100 - as the index stores them
    digest = hashlib.sha256("\0".join(places).encode(errors="surrogatepass")).hexdigest()
    first = "".join(c if c.isprintable() else "_" for c in Path(places[0]).name) or "root"
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{first[:40].strip()}{more}{ADHOC}{digest[:ADHOC_DIGITS]}"


def meant_by(word: str, names: Iterable[str]) -> list[str]:
    """Which of these libraries a word means: the one of this name, or else those that were made for this file alone,
    by its path or by its name without folders."""
    path = Path(os.path.abspath(os.path.expanduser(word)))  # noqa: PTH100, PTH111 - Path raises for an unknown ~user
    exact = adhoc_name([path])
    found = [name for name in names if name in (word, exact)]
    if found or path.name != word:
        return found
    title, _, _ = exact.rpartition(ADHOC)
    return [name for name in names if is_adhoc(name) and name.rpartition(ADHOC)[0] == title]


def _size(file: Path) -> int:
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
