"""Files written whole or not at all, in one folder that several processes share. Knows no entries and no budgets.

A file is written under a temporary name beside its place, synced, renamed, and its folder synced: it survives
`kill -9` at any instant, whole or not at all. A temporary name carries the token of the process that writes it, and
that process holds a lock of that name: what is left of a dead process is told by its lock being free.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from kvloom.errors import StoreError, StoreFullError, StoreReadOnlyError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
LOCK_TIMEOUT_S = 60.0
"""Holders keep the lock for milliseconds; a gc of a huge store for seconds."""
_LOCK_POLL_S = 0.005
_TEMP_PREFIX = ".tmp-"
_OWNER_PREFIX = ".owner-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def as_store_error(exc: OSError, what: str, where: Path) -> StoreError:
    """The error of our tree for an OSError met while doing `what`."""
    if exc.errno in _FULL:
        return StoreFullError(f"{what} failed, no space is left at {where}: free some, or lower the disk budget")
    if exc.errno in _READ_ONLY:
        return StoreReadOnlyError(
            f"{what} failed, {where} cannot be written: check its owner and mode ({exc.strerror})"
        )
    return StoreError(f"{what} failed at {where}: {exc}")


class FileBay:
    """One folder of such files, in sub-folders. Thread-safe; several processes may work on one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._token = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._owner_lock: FileLock | None = None
        self._owner_guard = threading.Lock()
        self._guard = threading.RLock()
        self._depth = 0
        self._lock = FileLock(directory / ".lock", mode=FILE_MODE, thread_local=False)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Alone among all threads and processes on this folder. Re-entrant; waits up to `LOCK_TIMEOUT_S`.

        Raises StoreError when others hold it longer, or the folder cannot be written.
        """
        with self._guard:
            if self._depth == 0:
                self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._lock.release()

    def write(self, path: Path, fill: Callable[[BinaryIO], None], commit: Callable[[Path], None]) -> None:
        """Let `fill` write a temporary file, sync it, and let `commit` put it in place (see `put_in_place`).

        Whatever fails, the temporary file is gone afterwards. Raises StoreError or a subclass.
        """
        try:
            self._own()
            make_directory(path.parent)
            temporary = path.parent / f"{_TEMP_PREFIX}{self._token}-{next(self._numbers)}"
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    fill(file)
                    os.fsync(file.fileno())
                commit(temporary)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
        except OSError as exc:
            raise as_store_error(exc, f"writing {path.name}", self.directory) from exc

    def put_in_place(self, temporary: Path, path: Path) -> None:
        """Rename and sync the folder: after this the file survives a loss of power."""
        temporary.rename(path)
        sync_directory(path.parent)

    def remove_stale(self) -> int:
        """Remove what dead processes left half-written; how many files. A folder that cannot be written is left."""
        removed = 0
        with suppress(StoreError, OSError), self.exclusive():
            dead: dict[str, bool] = {}
            for path in list(self.directory.glob(f"*/{_TEMP_PREFIX}*")):
                token = path.name.removeprefix(_TEMP_PREFIX).partition("-")[0]
                if token not in dead:
                    dead[token] = self._is_dead(token)
                if dead[token]:
                    path.unlink(missing_ok=True)
                    removed += 1
            for lock in list(self.directory.glob(f"{_OWNER_PREFIX}*")):
                if self._is_dead(lock.name.removeprefix(_OWNER_PREFIX)):
                    lock.unlink(missing_ok=True)
        return removed

    def close(self) -> None:
        """Give up the mark of a living writer. Idempotent; a later write takes it again."""
        with self._owner_guard:
            if self._owner_lock is not None:
                with suppress(OSError):
                    Path(self._owner_lock.lock_file).unlink(missing_ok=True)
                self._owner_lock.release()
                self._owner_lock = None

    def _acquire(self) -> None:
        try:
            make_directory(self.directory)
            self._lock.acquire(timeout=LOCK_TIMEOUT_S, poll_interval=_LOCK_POLL_S)
        except Timeout as exc:
            raise StoreError(
                f"another process has held {self._lock.lock_file} for over {LOCK_TIMEOUT_S:.0f} s"
            ) from exc
        except OSError as exc:
            raise as_store_error(exc, "locking the store", self.directory) from exc

    def _own(self) -> None:
        """Hold the lock that says that the writer of our temporary files lives."""
        with self._owner_guard:
            if self._owner_lock is None:
                make_directory(self.directory)
                lock = FileLock(self._owner_path(self._token), mode=FILE_MODE, thread_local=False)
                lock.acquire(timeout=LOCK_TIMEOUT_S)
                self._owner_lock = lock

    def _is_dead(self, token: str) -> bool:
        if token == self._token:
            return False
        path = self._owner_path(token)
        if not path.exists():
            return True
        probe = FileLock(path, mode=FILE_MODE, thread_local=False)
        try:
            probe.acquire(timeout=0)
        except (Timeout, OSError):
            return False
        probe.release()
        return True

    def _owner_path(self, token: str) -> Path:
        return self.directory / f"{_OWNER_PREFIX}{token}"


def make_directory(directory: Path) -> None:
    """Make a folder and those above it, closed to other users, and durable."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename or removal in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
