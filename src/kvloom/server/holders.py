"""Which process holds what is open in the accounts, and whether it still lives. Knows no reservation."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import filelock

from kvloom.errors import StoreReadOnlyError

_FOLDER = "accounts.holders"


class Holder:
    """A lock file of its own for every open ledger, held by the operating system: it falls when the process dies.

    A process number would not do: it is given again, and means nothing to another container over the same home.
    """

    def __init__(self, home: Path, holder_id: str, lock: filelock.BaseFileLock) -> None:
        self.id = holder_id
        self._path = home / _FOLDER / f"{holder_id}.lock"
        self._lock = lock

    @classmethod
    def new(cls, home: Path) -> Holder:
        """A holder that nobody has been before. Raises StoreReadOnlyError."""
        holder_id = secrets.token_hex(8)
        try:
            (home / _FOLDER).mkdir(mode=0o700, exist_ok=True)
            lock = _lock(home, holder_id)
            lock.acquire()
        except (OSError, filelock.Timeout) as exc:
            raise StoreReadOnlyError(
                f"{home / _FOLDER} cannot be written ({exc}): check its permissions, or set KVLOOM_HOME"
            ) from exc
        return cls(home, holder_id, lock)

    @classmethod
    def of_the_dead(cls, home: Path, holder_id: str) -> Holder | None:
        """The lock of a holder whose process has ended, taken over; None while it lives."""
        lock = _lock(home, holder_id)
        try:
            lock.acquire()
        except (OSError, filelock.Timeout):
            # Where the lock cannot even be tried, its holder counts as living: nothing of it is given away.
            return None
        return cls(home, holder_id, lock)

    def release(self) -> None:
        """What the operating system does when the process dies. Idempotent."""
        self._lock.release()

    def remove(self) -> None:
        """Releases for good: no holder has this id again, so the file can go while it is held."""
        self._path.unlink(missing_ok=True)
        self._lock.release()


def _lock(home: Path, holder_id: str) -> filelock.BaseFileLock:
    # Not thread-local: a ledger may be closed by another thread than the one that opened it.
    return filelock.FileLock(os.fspath(home / _FOLDER / f"{holder_id}.lock"), timeout=0, mode=0o600, thread_local=False)
