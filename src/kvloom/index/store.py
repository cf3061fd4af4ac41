"""A library's index: documents by path, their passages, and which of them answer a question. Knows no model.

One transaction a document: a stopped or killed update keeps whole documents, and the next goes on behind them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from kvloom.index.file import IndexFile, Row, remove_file
from kvloom.index.search import Search, checked_id
from kvloom.index.update import Stopped, Update, drop_document, drop_passages, is_settled, remembered
from kvloom.index.values import DocumentInfo, Found, Progress, StoredPassage, Updated
from kvloom.index.vectors import Vectors
from kvloom.read.document import DocumentKind, Reading, Skipped, Unchanged
from kvloom.read.walk import FoundFile, canonical
from kvloom.types import ChunkId

_KINDS = frozenset(kind.value for kind in DocumentKind)
_COLUMNS = "p.id, d.name, p.first_line, p.last_line, p.heading, p.text"


class LibraryIndex:
    """Documents and their passages in one file. Every method may be called from any thread.

    Other processes may read and write the same file. Raises StoreError; IndexDamagedError where `delete` and a new
    update are what helps.
    """

    def __init__(self, file: Path) -> None:
        self._file = IndexFile(file)
        self._search = Search(self._file)

    @classmethod
    def open(cls, file: Path | str) -> LibraryIndex:
        """The index in `file`, made where there is none."""
        return cls(Path(file))

    @staticmethod
    def delete(file: Path | str) -> None:
        """Removes an index that nobody has open, damaged or not; its documents stay where they are. Idempotent."""
        remove_file(Path(file))

    @property
    def path(self) -> Path:
        return self._file.path

    # -- writing ------------------------------------------------------------------------------------------------

    def update(
        self,
        found: Iterable[Reading],
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Updated:
        """Takes in what `read` gives; documents whose files are gone leave once it is at its end.

        Passages that did not change keep their rows. `progress` is told after each file. Anything raised on the way
        (Ctrl-C too) undoes the document at hand and nothing before it.
        """
        run = Update(self._file, progress or _untold, is_cancelled or _never)
        try:
            for reading in found:
                run.take(reading)
            run.drop_vanished()
        except Stopped:
            return run.done(is_complete=False)
        return run.done(is_complete=True)

    def remove(self, name: str) -> bool:
        """Takes a document out; False where there is none of that name."""
        with self._file.transaction():
            rows = self._file.rows("SELECT number FROM documents WHERE name = ?", (name,))
            for (number,) in rows:
                drop_document(self._file, number)
        return bool(rows)

    def forget(self, id: ChunkId) -> int:  # noqa: A002 - the field's name
        """Takes every passage with this text out; how many. A file that still holds it brings it back only when it is
        read again, which is when it changes.

        No byte of it stays in the files, of an earlier version that an update took out neither. Raises StoreError where
        another process keeps it from being wiped; the next call goes on from there.
        """
        key = _blob(id)
        with self._file.transaction():
            rows = self._file.rows("SELECT number, document FROM passages WHERE id = ?", (key,))
            drop_passages(self._file, (number for number, _ in rows))
            for _, document in rows:
                self._file.execute("UPDATE documents SET num_passages = num_passages - 1 WHERE number = ?", (document,))
            self._file.execute("DELETE FROM vectors WHERE id = ?", (key,))
            self._file.execute("DELETE FROM skipped")  # a parser's words may quote what it stumbled over
        # Without rows too: an edit may have taken the text out before, or a crash come between the two.
        self._file.scrub()
        return len(rows)

    def add_root(self, path: Path | str) -> None:
        """Remembers a file or folder that was added, for later updates to read it again."""
        self._file.execute("INSERT OR IGNORE INTO roots VALUES (?)", (os.fsencode(canonical(path)),))

    def remove_root(self, path: Path | str) -> bool:
        """Forgets a remembered one; its documents stay until they are removed."""
        return bool(self._file.execute("DELETE FROM roots WHERE path = ?", (os.fsencode(canonical(path)),)))

    # -- reading ------------------------------------------------------------------------------------------------

    def search(self, question: str, limit: int = 10, vectors: Vectors | None = None) -> list[Found]:
        """The passages that have most to do with `question`, best first; none where no word of it is in the library.

        With `vectors`, those near by them come too, and they count beside the words.
        """
        return self._search.find(question, limit, vectors)

    def known(self, found: FoundFile) -> Unchanged | Skipped | None:
        """What is known of the file as it stands, None where it has to be read: what `read` takes as `known`."""
        path, state = os.fsencode(found.path), (found.size_bytes, found.mtime_ns)
        rows = self._file.rows(
            "SELECT read_ns FROM documents WHERE (path, size_bytes, mtime_ns) = (?, ?, ?) AND read_ns >= 0",
            (path, *state),
        )
        if any(is_settled(found.mtime_ns, read_ns) for (read_ns,) in rows):
            return Unchanged(found.name, found.path)
        skipped = remembered(self._file, path, *state)
        return Skipped(found.name, skipped[0], found.path, skipped[1], *state) if skipped is not None else None

    def roots(self) -> tuple[Path, ...]:
        return tuple(Path(os.fsdecode(path)) for (path,) in self._file.rows("SELECT path FROM roots ORDER BY path"))

    def documents(self) -> tuple[DocumentInfo, ...]:
        """By name."""
        rows = self._file.rows(
            "SELECT name, path, digest, kind, size_bytes, num_passages, note FROM documents ORDER BY name"
        )
        if any(row[3] not in _KINDS for row in rows):
            raise self._file.damaged("a document of no known kind")
        return tuple(
            DocumentInfo(name, Path(os.fsdecode(path)), digest, DocumentKind(kind), size_bytes, num_passages, note)
            for name, path, digest, kind, size_bytes, num_passages, note in rows
        )

    def passages(self, document: str | None = None) -> Iterator[StoredPassage]:
        """Every passage, or those of one document, in the documents' order. Holds a few hundred at a time."""
        where = "" if document is None else "AND d.name = ?"
        values = () if document is None else (document,)
        last: tuple[str, int] = ("", -1)
        while True:
            rows = self._file.rows(
                f"SELECT p.position, {_COLUMNS} FROM documents d JOIN passages p ON p.document = d.number "
                f"WHERE (d.name, p.position) > (?, ?) {where} ORDER BY d.name, p.position LIMIT 256",
                (*last, *values),
            )
            if not rows:
                return
            for row in rows:
                yield self._stored(row[1:])
            last = (rows[-1][2], rows[-1][0])

    def passage(self, id: ChunkId) -> StoredPassage | None:  # noqa: A002 - the field's name
        """The passage with this text, the first where several documents hold it."""
        rows = self._file.rows(
            f"SELECT {_COLUMNS} FROM passages p JOIN documents d ON p.document = d.number WHERE p.id = ? "
            "ORDER BY d.name, p.position LIMIT 1",
            (_blob(id),),
        )
        return self._stored(rows[0]) if rows else None

    @property
    def num_documents(self) -> int:
        return int(self._file.row("SELECT count(*) FROM documents")[0])

    @property
    def num_passages(self) -> int:
        return int(self._file.row("SELECT num_passages FROM totals")[0])

    def close(self) -> None:
        """Idempotent."""
        self._search.close()
        self._file.close()

    def __enter__(self) -> LibraryIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _stored(self, row: Row) -> StoredPassage:
        key, name, first_line, last_line, heading, text = row
        checked = checked_id(self._file, key, text)
        return StoredPassage(checked, name, first_line, last_line, heading, text)


def _blob(id: ChunkId) -> bytes:  # noqa: A002
    return bytes.fromhex(id)


def _untold(progress: Progress) -> None:
    pass


def _never() -> bool:
    return False
