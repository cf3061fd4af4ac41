"""The stored sessions of a home, without any model. Knows the log only."""

from __future__ import annotations

from pathlib import Path

from kvloom.chunk.database import DATABASE_NAME, Database
from kvloom.context.manifest import Manifest
from kvloom.errors import UnknownSessionError
from kvloom.session.log import SessionLog
from kvloom.session.values import SessionInfo
from kvloom.types import SessionId


def has_sessions(home: Path) -> bool:
    """Whether anything was stored there yet: to look for sessions makes a home."""
    return (home / DATABASE_NAME).is_file()


class HomeSessions:
    """Lists and deletes what is stored. A context manager that closes itself."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._database = Database(home)
        self._log = SessionLog(self._database)

    def sessions(self) -> list[SessionInfo]:
        """All stored sessions, the last used first."""
        with self._log.snapshot():
            return [session_info(self._log, record.id) for record in self._log.list()]

    def delete_session(self, ref: str) -> None:
        """Raises SessionBusyError where a process has it open."""
        self._log.delete(self._log.resolve(ref))

    def window_of(self, ref: str | None) -> int:
        """The window that somebody asked for when this session (None: the one used last) was open last; 0 where it was
        the automatic one, or there is no such session."""
        try:
            known = self._log.list()[:1] if ref is None else (self._log.get(self._log.resolve(ref)),)
        except UnknownSessionError:  # told where it is opened
            return 0
        return known[0].window if known else 0

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> HomeSessions:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def session_info(log: SessionLog, session: SessionId, *, is_open_here: bool = False) -> SessionInfo:
    """What is told of a stored session."""
    with log.snapshot():  # it may be deleted at any moment, with all that belongs to it
        record = log.get(session)
        manifest = Manifest()
        if record.head:
            manifest = Manifest.decode(log.manifest(record.head[0]).body, log.tokens)
    return SessionInfo(
        record.id, record.name, record.model, record.created_s, record.updated_s, len(manifest.turns),
        len(manifest.chunk_ids), manifest.num_tokens, is_open_here or log.is_open(session),
    )  # fmt: skip
