"""One writer per session, over all processes. Knows no log."""

from __future__ import annotations

import os
from pathlib import Path

import filelock

from kvloom.errors import SessionBusyError, StoreReadOnlyError
from kvloom.types import SessionId

_PATIENCE_S = 0.25
"""Long enough to outlast another process that only looks whether the session is held."""
_POLL_S = 0.02


class SessionLock:
    """A lock file per session, held by the operating system: it falls when its process dies. Held once made.

    Raises SessionBusyError, with the pid of the holder; StoreReadOnlyError.
    """

    def __init__(self, folder: Path, session: SessionId) -> None:
        self._path, self._pid_path = folder / f"{session}.lock", folder / f"{session}.pid"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            # Not thread-local: a session may be closed by another thread than the one that opened it.
            self._lock = filelock.FileLock(self._path, timeout=_PATIENCE_S, mode=0o600, thread_local=False)
            self._lock.acquire(poll_interval=_POLL_S)
            # Beside the lock, not in it: whoever tries the lock next truncates it.
            handle = os.open(self._pid_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(str(os.getpid()))
        except filelock.Timeout as exc:
            raise SessionBusyError(
                f"session {session} is being written elsewhere (process {self._pid()}): close it there, or fork it"
            ) from exc
        except OSError as exc:
            raise StoreReadOnlyError(f"{folder} cannot be written ({exc.strerror}): set KVLOOM_HOME") from exc

    @staticmethod
    def is_held(folder: Path, session: SessionId) -> bool:
        """Whether somebody holds the lock now."""
        path = folder / f"{session}.lock"
        if not path.exists():
            return False
        try:
            with filelock.FileLock(path, timeout=0, mode=0o600):
                return False
        except filelock.Timeout:
            return True

    def release(self, *, remove: bool = False) -> None:
        if remove:
            self._pid_path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        self._lock.release()

    def _pid(self) -> str:
        try:
            return self._pid_path.read_text() or "unknown"
        except OSError:
            return "unknown"
