"""The home's one SQLite database: opened safely, migrated, shared by threads and processes. Knows no rows.

WAL with synchronous=FULL: a commit is on the disk before it is acknowledged, so that neither `kill -9` nor a power
cut takes it back. It costs one sync a commit (about 1 – 10 ms), and commits are few: one a command or turn.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvloom import sqlite_files
from kvloom.chunk.schema import MIGRATIONS
from kvloom.errors import StoreError

DATABASE_NAME = "catalog.sqlite3"
_WHEN_DAMAGED = (
    "move it away with its -wal and -shm files and load your files again; `sqlite3 FILE .recover` may save some"
)
_CACHE_KIB = 4 * 1024
"""Pages that a connection keeps: it fills them in a long conversation, whatever it needs."""

Value = str | int | float | bytes | None
Row = tuple[Any, ...]


class Database:
    """One connection behind a lock; every method may be called from any thread.

    Raises StoreError: StoreReadOnlyError where the home cannot be written, StoreFullError where the disk is full.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / DATABASE_NAME
        self._lock = threading.RLock()
        self._depth = 0
        sqlite_files.create(self.path)
        with self._mapped():
            self._connection = sqlite_files.connect(self.path)
        try:
            with self._mapped():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is stored whole or not at all. Nested ones join the outer one."""
        with self._begun("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything that is read inside is of one moment, whoever writes meanwhile. For reading only, and briefly:
        other threads wait."""
        with self._begun("BEGIN"):
            yield

    @contextmanager
    def _begun(self, begin: str) -> Iterator[None]:
        with self._lock:
            if self._depth:
                yield
                return
            with self._mapped():
                self._connection.execute(begin)
            self._depth = 1
            try:
                yield
                with self._mapped():
                    self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """One change, its own transaction unless one is open. Returns the number of rows changed."""
        with self.transaction(), self._mapped():
            return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, values: Sequence[Value] = ()) -> int:
        """One INSERT; returns the new row's number."""
        with self.transaction(), self._mapped():
            return self._connection.execute(sql, values).lastrowid or 0

    def execute_many(self, sql: str, rows: Sequence[Sequence[Value]]) -> None:
        with self.transaction(), self._mapped():
            self._connection.executemany(sql, rows)

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        with self._lock, self._mapped():
            return self._connection.execute(sql, values).fetchall()

    def scrub(self) -> bool:
        """Leaves no byte of deleted rows in the files: freed pages are zeroed already, the WAL is emptied here.

        False where another process still reads an older state, so that the WAL could not be emptied: try again.
        """
        with self._lock, self._mapped():
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    def close(self) -> None:
        """Idempotent."""
        with self._lock, self._mapped():
            self._connection.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA cache_size = -{_CACHE_KIB}")
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA secure_delete = ON")
        sqlite_files.to_wal(self._connection)
        run("PRAGMA synchronous = FULL")
        (version,) = run("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} is of version {version}, this kvloom knows {len(MIGRATIONS)}: "
                "use the newer kvloom that wrote it, or another home (KVLOOM_HOME)"
            )
        if version < len(MIGRATIONS):
            self._migrate()

    def _migrate(self) -> None:
        """Takes the write lock first: another process may be doing the same."""
        with self.transaction():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    if statement.strip():
                        self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise sqlite_files.of_sqlite_error(self.path, exc, _WHEN_DAMAGED) from exc
