"""The one SQLite file of a library's index: opened safely, of a known version, its errors as ours. Knows no rows.

An index can be built again from its documents, so a commit waits for no disk (WAL with synchronous=NORMAL): a power cut
may take the last documents back, and never leaves half of one.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvloom import sqlite_files
from kvloom.errors import IndexDamagedError, StoreError
from kvloom.index.values import CLOSED
from kvloom.text.words import TOKENIZER

FORMAT_VERSION = 4
"""Raised with every change of the tables, of the passages' sizes, or of how texts are taken out of files and words are
cut: the rows would not fit."""

_APPLICATION_ID = 0x6B766C69
"""`kvli`, in SQLite's header: another program's database is not taken for ours."""
_WHEN_DAMAGED = "remove it and add the documents again; only the index is lost, no document"
_CACHE_KIB = 16 * 1024
"""Pages a connection keeps: the words' index of 100,000 passages mostly fits."""
_SUFFIXES = ("-wal", "-shm", "-journal", "")
"""What SQLite keeps beside a database, which goes last: a new one must not find what was written for the old."""

_BETWEEN_CHECKPOINTS_S = 0.05
"""SQLite waits for readers by itself, and not for another process that is at the same work: some milliseconds."""

# Files that gave no text: finding that out may take a minute, and they are most likely the same next time.
_SKIPPED = (
    "CREATE TABLE skipped (path BLOB PRIMARY KEY, why TEXT NOT NULL, reason TEXT NOT NULL, "
    "size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, read_ns INTEGER NOT NULL) WITHOUT ROWID"
)
_TABLES = (
    "CREATE TABLE documents (number INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, "
    "digest TEXT NOT NULL, kind TEXT NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, "
    "read_ns INTEGER NOT NULL, is_file INTEGER NOT NULL, note TEXT NOT NULL, num_passages INTEGER NOT NULL)",
    "CREATE TABLE passages (number INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents, "
    "position INTEGER NOT NULL, id BLOB NOT NULL, first_line INTEGER NOT NULL, last_line INTEGER NOT NULL, "
    "heading TEXT NOT NULL, text TEXT NOT NULL)",
    "CREATE INDEX passages_by_place ON passages (document, position)",
    "CREATE INDEX passages_by_id ON passages (id)",
    _SKIPPED,
    "CREATE TABLE roots (path BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE totals (num_passages INTEGER NOT NULL, num_chars INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    "CREATE TABLE vectors (embedder TEXT NOT NULL, id BLOB NOT NULL, vector BLOB NOT NULL, "
    "PRIMARY KEY (embedder, id)) WITHOUT ROWID",
    # Without content: the passages' texts are kept once, as they are, and the index only of their words.
    f"CREATE VIRTUAL TABLE words USING fts5(heading, body, content = '', tokenize = '{TOKENIZER}')",
    "INSERT INTO words (words, rank) VALUES ('rank', 'bm25(0.5, 1.0)')",
    "CREATE VIRTUAL TABLE vocabulary USING fts5vocab(words, row)",
)

_CUT_ANEW = "UPDATE documents SET read_ns = -1"
"""With the next update every file is read again, and a text that is handed over again is cut again; until then their
passages stand as they were. A purged passage comes back in a larger one, as with any file that is read again."""
_TAKEN_ANEW = "UPDATE documents SET read_ns = -1 WHERE kind IN ('pdf', 'html')"
_UPGRADES = {1: (_SKIPPED, _CUT_ANEW), 2: (_CUT_ANEW,), 3: (_TAKEN_ANEW,)}
"""By version: what makes an index of it one of `FORMAT_VERSION`. Texts that were handed over have no file to be read
again from."""

Value = str | int | float | bytes | None
Row = tuple[Any, ...]


class IndexFile:
    """One connection behind a lock; every method may be called from any thread.

    Raises StoreError: IndexDamagedError where only building it anew helps, StoreReadOnlyError, StoreFullError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        sqlite_files.create(path)
        with self._mapped():
            self._connection = sqlite_files.connect(path)
        try:
            with self._mapped():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is stored whole or not at all. Nested ones join the outer one."""
        with self.lock, self._mapped():
            if self._is_inside():
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._is_inside():
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is of one moment, whatever other processes write."""
        with self.lock, self._mapped():
            if self._is_inside():
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._is_inside():
                    self._connection.execute("ROLLBACK")

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Returns the number of rows changed."""
        with self.lock, self._mapped():
            return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Returns the new row's number."""
        with self.lock, self._mapped():
            return self._connection.execute(sql, values).lastrowid or 0

    def execute_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        with self.lock, self._mapped():
            self._connection.executemany(sql, rows)

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        with self.lock, self._mapped():
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Value] = ()) -> Row:
        """The one row that a sound index has there."""
        rows = self.rows(sql, values)
        if len(rows) != 1:
            raise self.damaged(f"{len(rows)} rows where there is one")
        return rows[0]

    def damaged(self, why: str) -> IndexDamagedError:
        return _damaged(self.path, why)

    def version_of_data(self) -> tuple[int, int]:
        """Differs once anything was written, by this connection or another."""
        with self.lock, self._mapped():
            (others,) = self._connection.execute("PRAGMA data_version").fetchone()
            return others, self._connection.total_changes

    def scrub(self) -> None:
        """Leaves no byte of rows that were ever deleted in the files.

        Rows are zeroed as they go; the words' index forgets what it holds of them only when it is written anew. Raises
        StoreError where another process goes on reading an older state: the bytes are still there then.
        """
        self.execute("INSERT INTO words (words) VALUES ('optimize')")
        end = time.monotonic() + sqlite_files.BUSY_TIMEOUT_S
        while self.row("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
            if time.monotonic() > end:
                raise StoreError(
                    f"{self.path}: what was removed is found no more, but its bytes are still in the file, since "
                    f"another process has been reading it for over {sqlite_files.BUSY_TIMEOUT_S:.0f} s: end it and "
                    "purge again"
                )
            time.sleep(_BETWEEN_CHECKPOINTS_S)

    def close(self) -> None:
        """Idempotent."""
        with self.lock, self._mapped():
            self._connection.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA cache_size = -{_CACHE_KIB}")
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA secure_delete = ON")
        self._check_version()
        sqlite_files.to_wal(self._connection)
        run("PRAGMA synchronous = NORMAL")
        if not self._is_built():
            self._build()
        # A damaged page of the schema shows here and not at the first question.
        run("SELECT num_passages FROM totals").fetchone()
        run("SELECT rowid FROM words WHERE words MATCH 'a' LIMIT 1").fetchone()

    def _is_inside(self) -> bool:
        return self._connection.in_transaction

    def _is_built(self) -> bool:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return bool(version == FORMAT_VERSION)

    def _check_version(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (num_tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and (application or num_tables):
            raise StoreError(f"{self.path} is a database of another program, not the index of a library: move it away")
        if version > FORMAT_VERSION:
            raise StoreError(
                f"{self.path} is an index of version {version}, this kvloom knows {FORMAT_VERSION}: use the "
                "newer kvloom that wrote it, or remove it and add the documents again"
            )

    def _build(self) -> None:
        """Takes the write lock first: another process may be doing the same."""
        with self.transaction():
            if self._is_built():
                return
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            for statement in _UPGRADES.get(version, _TABLES):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as exc:
            raise _of_sqlite_error(self.path, exc) from exc
        except UnicodeDecodeError as exc:
            raise self.damaged("a text in it is no UTF-8") from exc


def remove_file(path: Path) -> None:
    """Removes an index, damaged or not, with what SQLite keeps beside it; nothing but the index is lost. Idempotent."""
    for suffix in _SUFFIXES:
        try:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        except OSError as exc:
            raise sqlite_files.of_os_error(path, exc) from exc


def _damaged(path: Path, why: str) -> IndexDamagedError:
    return IndexDamagedError(f"{path} is damaged ({why}): {_WHEN_DAMAGED}")


def _of_sqlite_error(path: Path, exc: sqlite3.Error) -> StoreError:
    code = getattr(exc, "sqlite_errorname", "") or ""
    if isinstance(exc, sqlite3.ProgrammingError) and "closed" in str(exc):
        return StoreError(CLOSED)
    if sqlite_files.is_damage(exc) or code.startswith("SQLITE_ERROR"):
        return _damaged(path, str(exc))
    if not code and "decode" in str(exc):
        return _damaged(path, "a text in it is no UTF-8")
    return sqlite_files.of_sqlite_error(path, exc, _WHEN_DAMAGED)
