"""Takes documents into an index, one transaction each, and writes only what differs. Knows no question.

What stands of a document keeps its rows: they are found by text and heading, whatever lines they moved to.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvloom.chunk.content import content_id
from kvloom.index.file import IndexFile
from kvloom.index.passages import Passage, passages
from kvloom.index.values import Progress, Updated
from kvloom.read.document import Document, Reading, Skipped, SkipReason
from kvloom.text.words import spaced

_KEPT = frozenset({SkipReason.LEFT_OUT, SkipReason.REPEATED, SkipReason.UNREADABLE, SkipReason.CHANGING})
"""Reasons for which what the index has of a file stays: it may be read again."""
_SKIPPED_FOR_NS = 24 * 3600 * 10**9
"""A file that gave no text is read again a day later, or when it has changed: a reader may have become better since."""
_UNREADABLE_FOR_NS = 600 * 10**9
"""… and ten minutes later where the reason was time or memory: of those a busy machine has more by then."""
_RACY_NS = 2_000_000_000
"""A file written so shortly before it was read may be written again without a new time; it is read once more."""
_REASONS = frozenset(reason.value for reason in SkipReason)
_ROWS_BETWEEN_LOOKS = 256
"""Passages written before it is asked again whether to stop: some 10 ms."""


class Stopped(Exception):
    """The caller wants no more; the document at hand is rolled back."""


@dataclass
class Update:
    """One update on its way."""

    file: IndexFile
    progress: Callable[[Progress], None]
    is_cancelled: Callable[[], bool]
    seen: set[bytes] = field(default_factory=set)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    num_added: int = 0
    num_changed: int = 0
    num_unchanged: int = 0
    num_removed: int = 0
    num_passages_added: int = 0
    num_passages_kept: int = 0
    num_passages_removed: int = 0
    num_files: int = 0

    def take(self, reading: Reading) -> None:
        self._look()
        if isinstance(reading, Document):
            self.seen.add(os.fsencode(reading.path))
            self.file.execute("DELETE FROM skipped WHERE path = ?", (os.fsencode(reading.path),))
            self._write(reading)
            if reading.note:
                self.notes.append((reading.name, reading.note))
        elif isinstance(reading, Skipped):
            self.skipped.append(reading)
            self._remember(reading)
            if reading.reason not in _KEPT:
                self._remove([os.fsencode(reading.path)])
        else:
            self.seen.add(os.fsencode(reading.path))
            self.num_unchanged += 1
        self.num_files += 1
        self.progress(Progress(reading.name, self.num_files, self.num_passages_added))

    def drop_vanished(self) -> None:
        """Documents that did not come by and whose files are gone. Those that never had one, or lie elsewhere, stay."""
        paths = [path for (path,) in self.file.rows("SELECT path FROM documents WHERE is_file")]
        self._remove([path for path in paths if path not in self.seen and _is_gone(path)])
        self.file.execute("DELETE FROM skipped WHERE read_ns < ?", (time.time_ns() - _SKIPPED_FOR_NS,))

    def done(self, *, is_complete: bool) -> Updated:
        return Updated(
            self.num_added,
            self.num_changed,
            self.num_unchanged,
            self.num_removed,
            self.num_passages_added,
            self.num_passages_kept,
            self.num_passages_removed,
            tuple(self.skipped),
            tuple(self.notes),
            is_complete,
        )

    def _remember(self, skipped: Skipped) -> None:
        """That a file gave no text; where it was not read again, what was said of it stays as it is."""
        path = os.fsencode(skipped.path)
        if skipped.size_bytes is None or skipped.mtime_ns is None:
            return
        if remembered(self.file, path, skipped.size_bytes, skipped.mtime_ns) is None:
            why = skipped.why.encode(errors="replace").decode()
            self.file.execute(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?, ?)",
                (path, why, skipped.reason.value, skipped.size_bytes, skipped.mtime_ns, time.time_ns()),
            )

    def _look(self) -> None:
        if self.is_cancelled():
            raise Stopped

    def _remove(self, paths: Iterable[bytes]) -> None:
        file = self.file
        for path in paths:
            self._look()
            with file.transaction():
                for (number,) in file.rows("SELECT number FROM documents WHERE path = ?", (path,)):
                    self.num_passages_removed += drop_document(self.file, number)
                    self.num_removed += 1

    def _write(self, document: Document) -> None:
        file, path = self.file, os.fsencode(document.path)
        read_ns = time.time_ns()
        rows = file.rows("SELECT digest, kind FROM documents WHERE path = ? AND read_ns >= 0", (path,))
        if rows == [(document.digest, document.kind.value)]:
            file.execute(
                "UPDATE documents SET size_bytes = ?, mtime_ns = ?, read_ns = ? WHERE path = ?",
                (document.size_bytes, document.mtime_ns, read_ns, path),
            )
            self.num_unchanged += 1
            return
        # Cut outside of the transaction: others may search and write meanwhile. Blank passages can be no chunks.
        cut = [passage for passage in passages(document.text, document.kind) if passage.text.strip()]
        self._look()
        with file.transaction():
            known = file.rows("SELECT number FROM documents WHERE path = ?", (path,))
            number = known[0][0] if known else self._new_row(document, path)
            file.execute(
                "UPDATE documents SET digest = ?, kind = ?, size_bytes = ?, mtime_ns = ?, read_ns = ?, note = ?, "
                "num_passages = ? WHERE number = ?",
                (
                    document.digest, document.kind.value, document.size_bytes, document.mtime_ns, read_ns,
                    document.note, len(cut), number,
                ),
            )  # fmt: skip
            num_added, num_removed = self._replace_passages(number, cut)
        self.num_passages_added += num_added
        self.num_passages_removed += num_removed
        if known:
            self.num_changed += 1
            self.num_passages_kept += len(cut) - num_added
        else:
            self.num_added += 1

    def _new_row(self, document: Document, path: bytes) -> int:
        return self.file.insert(
            "INSERT INTO documents (path, name, digest, kind, size_bytes, mtime_ns, read_ns, is_file, note, "
            "num_passages) VALUES (?, ?, '', '', 0, 0, 0, ?, '', 0)",
            (path, self._free_name(document), os.path.lexists(path)),
        )

    def _free_name(self, document: Document) -> str:
        """The document's name, with folders in front where another has it already."""
        parts = document.path.parts
        longer = ("/".join(parts[-n:]).replace("//", "/") for n in range(2, len(parts) + 1))
        names = (document.name, *(name.encode(errors="replace").decode() for name in longer))
        numbered = (f"{document.name} ({n})" for n in range(2, 1_000_000))
        for name in itertools.chain(names, numbered):
            if not self.file.rows("SELECT 1 FROM documents WHERE name = ?", (name,)):
                return name
        raise AssertionError("a million documents of one name")

    def _replace_passages(self, document: int, cut: list[Passage]) -> tuple[int, int]:
        """Writes what differs; a passage that only moved keeps its row. Returns how many came and went."""
        file = self.file
        standing: dict[tuple[bytes, str], list[tuple[int, int, int, int]]] = {}
        for number, key, heading, *place in file.rows(
            "SELECT number, id, heading, position, first_line, last_line FROM passages WHERE document = ? "
            "ORDER BY position DESC",
            (document,),
        ):
            standing.setdefault((key, heading), []).append((number, *place))
        num_added = 0
        for position, passage in enumerate(cut):
            if position % _ROWS_BETWEEN_LOOKS == 0:
                self._look()
            same = standing.get((_passage_key(passage.text), passage.heading))
            if not same:
                _insert_passage(self.file, document, position, passage)
                num_added += 1
                continue
            number, *place = same.pop()
            if place != [position, passage.first_line, passage.last_line]:
                file.execute(
                    "UPDATE passages SET position = ?, first_line = ?, last_line = ? WHERE number = ?",
                    (position, passage.first_line, passage.last_line, number),
                )
        gone = [place[0] for places in standing.values() for place in places]
        drop_passages(self.file, gone)
        return num_added, len(gone)


def _is_gone(path: bytes) -> bool:
    """Whether there is no such file: not where it cannot be looked at (no right to, a share that does not answer)."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def is_settled(mtime_ns: int, read_ns: int) -> bool:
    """Whether a file was old enough when it was read for its time to tell of every later change."""
    return mtime_ns < read_ns - _RACY_NS


def remembered(file: IndexFile, path: bytes, size_bytes: int, mtime_ns: int) -> tuple[str, SkipReason] | None:
    """Why a file gave no text as it stands now, while that need not be found out again."""
    for why, reason, read_ns in file.rows(
        "SELECT why, reason, read_ns FROM skipped WHERE (path, size_bytes, mtime_ns) = (?, ?, ?)",
        (path, size_bytes, mtime_ns),
    ):
        if reason not in _REASONS:
            raise file.damaged("a file was skipped for no known reason")
        most_ns = _UNREADABLE_FOR_NS if reason == SkipReason.UNREADABLE else _SKIPPED_FOR_NS
        if is_settled(mtime_ns, read_ns) and time.time_ns() < read_ns + most_ns:
            return why, SkipReason(reason)
    return None


def drop_document(file: IndexFile, document: int) -> int:
    """Takes a document's rows out, inside of a transaction; returns how many passages went."""
    numbers = [n for (n,) in file.rows("SELECT number FROM passages WHERE document = ?", (document,))]
    drop_passages(file, numbers)
    file.execute("DELETE FROM documents WHERE number = ?", (document,))
    return len(numbers)


def drop_passages(file: IndexFile, numbers: Iterable[int]) -> None:
    """Takes passages out of every table, inside of a transaction."""
    embedders: list[str] | None = None
    for number in numbers:
        embedders = _embedders(file) if embedders is None else embedders
        key, heading, text = file.row("SELECT id, heading, text FROM passages WHERE number = ?", (number,))
        # An FTS table without content has to be told what it is to forget.
        file.execute(
            "INSERT INTO words (words, rowid, heading, body) VALUES ('delete', ?, ?, ?)",
            (number, spaced(heading), spaced(text)),
        )
        file.execute("DELETE FROM passages WHERE number = ?", (number,))
        file.execute("UPDATE totals SET num_passages = num_passages - 1, num_chars = num_chars - ?", (len(text),))
        for embedder in embedders:
            file.execute(
                "DELETE FROM vectors WHERE embedder = ?1 AND id = ?2 AND NOT EXISTS "
                "(SELECT 1 FROM passages WHERE id = ?2)",
                (embedder, key),
            )


def _embedders(file: IndexFile) -> list[str]:
    """Whose vectors there are: a jump in the table for each, not a walk through it."""
    found: list[str] = []
    while rows := file.rows("SELECT embedder FROM vectors WHERE embedder > ? LIMIT 1", (found[-1] if found else "",)):
        found.append(rows[0][0])
    return found


def _insert_passage(file: IndexFile, document: int, position: int, passage: Passage) -> None:
    number = file.insert(
        "INSERT INTO passages (document, position, id, first_line, last_line, heading, text) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            document,
            position,
            _passage_key(passage.text),
            passage.first_line,
            passage.last_line,
            passage.heading,
            passage.text,
        ),
    )
    file.insert(
        "INSERT INTO words (rowid, heading, body) VALUES (?, ?, ?)",
        (number, spaced(passage.heading), spaced(passage.text)),
    )
    file.execute("UPDATE totals SET num_passages = num_passages + 1, num_chars = num_chars + ?", (len(passage.text),))


def _passage_key(text: str) -> bytes:
    """The id of the chunk with this text, as the file keeps it."""
    return bytes.fromhex(content_id(text.encode()))
