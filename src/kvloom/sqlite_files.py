"""What every SQLite file of a home has in common: made for its owner only, and its errors as ours. Knows no tables."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from pathlib import Path

from kvloom.errors import StoreError, StoreFullError, StoreReadOnlyError

BUSY_TIMEOUT_S = 10.0
"""Longest wait for another process. Its transactions are short: more means that it hangs."""
_LOOK_AGAIN_S = 0.01
_READ_ONLY_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def create(path: Path) -> None:
    """The folder for its owner only, and an empty file that SQLite's own files take their mode from. Raises
    StoreError, StoreReadOnlyError, StoreFullError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as exc:
        raise of_os_error(path, exc) from exc


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use behind its owner's lock; transactions are the owner's."""
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def to_wal(connection: sqlite3.Connection) -> None:
    """Writes ahead from here on. Raises sqlite3.Error; waits as long as for any lock of another process.

    SQLite itself does not wait here: where two processes open one new file at the same moment, each may stand in the
    other's way, and it gives up at once, whatever the timeout.
    """
    give_up_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if not _code(exc).startswith("SQLITE_BUSY") or time.monotonic() > give_up_s:
                raise
        time.sleep(_LOOK_AGAIN_S)


def is_damage(exc: sqlite3.Error) -> bool:
    return _code(exc).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def of_sqlite_error(path: Path, exc: sqlite3.Error, when_damaged: str) -> StoreError:
    """`when_damaged`: what to do about a damaged file."""
    code = _code(exc)
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return StoreReadOnlyError(f"{path} cannot be written ({exc}): check its permissions, or set KVLOOM_HOME")
    if code.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE")):
        return StoreFullError(f"no space is left for {path} ({exc}): free some, or set KVLOOM_HOME to another disk")
    if is_damage(exc):
        return StoreError(f"{path} is damaged ({exc}): {when_damaged}")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreError(f"{path} is held by another process for over {BUSY_TIMEOUT_S:.0f} s: try again, or end it")
    return StoreError(f"{path}: {exc}")


def of_os_error(path: Path, exc: OSError) -> StoreError:
    if isinstance(exc, PermissionError) or exc.errno in _READ_ONLY_ERRNOS:
        return StoreReadOnlyError(
            f"{path.parent} cannot be written ({exc.strerror}): set KVLOOM_HOME to another folder"
        )
    if exc.errno in _FULL_ERRNOS:
        return StoreFullError(f"no space is left for {path}: free some, or set KVLOOM_HOME to another disk")
    return StoreError(f"{path} cannot be opened ({exc.strerror}): set KVLOOM_HOME to a folder that can be written")


def _code(exc: sqlite3.Error) -> str:
    return getattr(exc, "sqlite_errorname", "") or ""
