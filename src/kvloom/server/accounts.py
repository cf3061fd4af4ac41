"""The home's file of accounts, `accounts.sqlite`: opened safely, shared by threads and processes. Knows no rows.

WAL with synchronous=NORMAL: a commit is in the operating system's hands when it returns, so that no `kill -9` takes it
back, and it costs no sync: a request may write twice. A power cut may take the last seconds; what has to outlive that
too (a revoked key) asks for `durable`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvloom import sqlite_files
from kvloom.errors import StoreError

ACCOUNTS_NAME = "accounts.sqlite"
_WHEN_DAMAGED = (
    "move it away with its -wal and -shm files and make new keys; `sqlite3 FILE .recover` may save what it held"
)

_V1 = """
CREATE TABLE keys (
    id            TEXT PRIMARY KEY CHECK (length(id) = 12),
    name          TEXT NOT NULL,
    tenant        TEXT NOT NULL,
    tier          TEXT NOT NULL,
    lookup        BLOB NOT NULL CHECK (length(lookup) = 8),
    digest        BLOB NOT NULL CHECK (length(digest) = 32),
    created_s     REAL NOT NULL,
    last_used_s   REAL,
    revoked_s     REAL
) WITHOUT ROWID;
CREATE INDEX keys_by_lookup ON keys (lookup);
CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_s IS NULL;
CREATE TABLE holders (
    id            TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE reservations (
    key_id        TEXT NOT NULL,
    holder_id     TEXT NOT NULL REFERENCES holders (id),
    number        INTEGER NOT NULL,
    num_tokens    INTEGER NOT NULL,
    PRIMARY KEY (key_id, holder_id, number)
) WITHOUT ROWID;
CREATE TABLE buckets (
    key_id        TEXT PRIMARY KEY,
    owed_microtokens INTEGER NOT NULL,
    at_us         INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE slots (
    key_id        TEXT NOT NULL,
    window        TEXT NOT NULL,
    slot          INTEGER NOT NULL,
    num_tokens    INTEGER NOT NULL,
    num_requests  INTEGER NOT NULL,
    PRIMARY KEY (key_id, window, slot)
) WITHOUT ROWID;
CREATE TABLE time (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    latest_us     INTEGER NOT NULL
);
INSERT INTO time VALUES (1, 0)
"""

_V2 = """
ALTER TABLE time ADD COLUMN boot TEXT NOT NULL DEFAULT '';
ALTER TABLE time ADD COLUMN ahead_us INTEGER NOT NULL DEFAULT 0
"""

MIGRATIONS = (_V1, _V2)
"""`user_version` counts those that were applied. A migration is never changed after a release, only added."""


class Accounts:
    """One connection behind a lock; every method may be called from any thread, not from a forked child.

    Raises StoreError: StoreReadOnlyError where the home cannot be written, StoreFullError where the disk is full.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / ACCOUNTS_NAME
        self._lock = threading.RLock()
        sqlite_files.create(self.path)
        with self._mapped():
            self._connection = sqlite_files.connect(self.path)
        try:
            with self._mapped():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Accounts:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Everything inside is stored whole or not at all, and sees no other's change. Not to be nested.

        `durable`: it is on the disk before this returns, and with it every earlier commit.
        """
        with self._lock, self._mapped():
            run = self._connection.execute
            if durable:
                run("PRAGMA synchronous = FULL")
            try:
                run("BEGIN IMMEDIATE")
                yield self._connection
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise
            finally:
                if durable:
                    run("PRAGMA synchronous = NORMAL")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For one query; waits for no writer of another process."""
        with self._lock, self._mapped():
            yield self._connection

    def close(self) -> None:
        """Idempotent."""
        with self._lock, self._mapped():
            self._connection.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        run = self._connection.execute
        sqlite_files.to_wal(self._connection)
        run("PRAGMA synchronous = NORMAL")
        run("PRAGMA secure_delete = ON")
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
        with self.transaction(durable=True) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as exc:
            raise sqlite_files.of_sqlite_error(self.path, exc, _WHEN_DAMAGED) from exc
