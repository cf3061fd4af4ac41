"""The log of sessions: manifests appended, a head that undo and redo move. Knows no manifest's meaning.

An append that has returned survives `kill -9` and a power cut: the manifest, its token runs and the head are one
transaction. A session has one writer at a time, over all processes.
"""

from __future__ import annotations

import array
import base64
import hashlib
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NewType

from kvloom.chunk.database import Database, Row
from kvloom.errors import (
    NothingToUndoError,
    SessionClosedError,
    SessionError,
    StoreError,
    UnknownSessionError,
    UsageError,
)
from kvloom.session.lock import SessionLock
from kvloom.types import SessionId

ManifestId = NewType("ManifestId", int)
"""A manifest's number in this home, rising with time."""

EXPORT_FORMAT = "kvloom-session"
EXPORT_VERSION = 1
_MIN_PREFIX = 4


@dataclass(frozen=True)
class SessionRecord:
    """A session. `head` is the manifest it stands at, `num_manifests` all that its log holds.

    `window`: the one that somebody asked for when it was open last, 0 where it was the automatic one.
    """

    id: SessionId
    name: str
    model: str
    created_s: float
    updated_s: float
    head: tuple[ManifestId, ...]
    num_manifests: int
    window: int = 0


@dataclass(frozen=True)
class ManifestRecord:
    """One state of a session. `op` says what made it; `parent` is empty for the first."""

    id: ManifestId
    session: SessionId
    parent: tuple[ManifestId, ...]
    op: str
    created_s: float
    body: bytes = field(repr=False)


class SessionLog:
    """All sessions of a home. Reading needs no lock; writing goes through `writer`."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = database
        self._clock = clock
        self._locks = database.path.parent / "locks"

    # -- reading ------------------------------------------------------------------------------------------------

    def list(self) -> tuple[SessionRecord, ...]:
        """All sessions, the last used first."""
        return tuple(_session(row) for row in self._db.rows(f"{_SELECT_SESSION} ORDER BY updated_s DESC, id"))

    def get(self, session: SessionId) -> SessionRecord:
        """Raises UnknownSessionError."""
        rows = self._db.rows(f"{_SELECT_SESSION} WHERE id = ?", (session,))
        if not rows:
            raise UnknownSessionError(f"no session {session}: `kvloom sessions list` shows those that are there")
        return _session(rows[0])

    def resolve(self, ref: str) -> SessionId:
        """The session of an exact name, or of an unambiguous prefix of its id. Raises UnknownSessionError."""
        named = self._db.rows("SELECT id FROM sessions WHERE name = ?", (ref,))
        if named:
            return SessionId(named[0][0])
        prefix = ref.strip().lower()
        is_hex = bool(prefix) and all(c in "0123456789abcdef" for c in prefix)
        if is_hex and len(prefix) >= _MIN_PREFIX:
            found = self._db.rows("SELECT id FROM sessions WHERE id >= ? AND id < ?", (prefix, prefix + "g"))
            if len(found) == 1:
                return SessionId(found[0][0])
            if found:
                raise UnknownSessionError(f"{ref!r} fits {len(found)} sessions: {', '.join(row[0] for row in found)}")
        raise UnknownSessionError(f"no session is called {ref!r}: `kvloom sessions list` shows those that are there")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment."""
        with self._db.snapshot():
            yield

    def manifest(self, manifest: ManifestId) -> ManifestRecord:
        """One manifest, its checksum verified. Raises SessionError, StoreError where it is damaged."""
        rows = self._db.rows(f"{_SELECT_MANIFEST} WHERE id = ?", (manifest,))
        if not rows:
            raise SessionError(f"no manifest {manifest} in the log")
        return _manifest(rows[0])

    def manifests(self, session: SessionId, after: ManifestId = ManifestId(0)) -> tuple[ManifestRecord, ...]:
        """The log of a session in order: all of it, or what was appended after a manifest."""
        self.get(session)
        sql = f"{_SELECT_MANIFEST} WHERE session_id = ? AND id > ? ORDER BY id"
        return tuple(_manifest(row) for row in self._db.rows(sql, (session, after)))

    def head(self, session: SessionId) -> ManifestRecord:
        """What the session stands at. Raises UnknownSessionError, SessionError where nothing was appended yet."""
        record = self.get(session)
        if not record.head:
            raise SessionError(f"session {session} is empty: nothing was written to it yet")
        return self.manifest(record.head[0])

    def turns(self, session: SessionId) -> dict[str, bytes]:
        """The bodies of all turns of a session by id, checksums verified. Raises StoreError where one is damaged."""
        found: dict[str, bytes] = {}
        for turn, body, checksum in self._db.rows(
            "SELECT id, body, checksum FROM turns WHERE session_id = ? ORDER BY id", (session,)
        ):
            if _checksum(body) != checksum:
                raise StoreError(f"turn {turn[:12]} of session {session} is damaged: undo to before it, or start anew")
            found[turn] = body
        return found

    def tokens(self, digest: str) -> tuple[int, ...]:
        """A token run that was stored with a manifest; its digest is checked. Raises StoreError."""
        rows = self._db.rows("SELECT ids FROM token_runs WHERE digest = ?", (digest,))
        if not rows:
            raise StoreError(f"token run {digest[:12]} is not in the log")
        if hashlib.sha256(rows[0][0]).hexdigest() != digest:
            raise StoreError(f"token run {digest[:12]} is damaged")
        return _unpack(rows[0][0])

    def export(self, session: SessionId) -> dict[str, Any]:
        """The whole session as JSON-able values, token runs included; `load` takes them."""
        record = self.get(session)
        manifests = self.manifests(session)
        sql = (
            "SELECT DISTINCT r.digest, r.ids FROM token_runs r JOIN manifest_runs m ON m.digest = r.digest "
            "JOIN manifests l ON l.id = m.manifest_id WHERE l.session_id = ? ORDER BY r.digest"
        )
        runs = {digest: list(_unpack(ids)) for digest, ids in self._db.rows(sql, (session,))}
        used = {id_: [row[0] for row in self._db.rows(_SELECT_RUNS, (id_,))] for id_ in (m.id for m in manifests)}
        return {
            "format": EXPORT_FORMAT,
            "version": EXPORT_VERSION,
            "session": {"id": record.id, "name": record.name, "model": record.model, "created": record.created_s},
            "head": list(record.head),
            "manifests": [
                {
                    "id": m.id,
                    "parent": list(m.parent),
                    "op": m.op,
                    "created": m.created_s,
                    "body": base64.b64encode(m.body).decode(),
                    "tokens": used[m.id],
                }
                for m in manifests
            ],
            "tokens": runs,
            "turns": {turn: base64.b64encode(body).decode() for turn, body in self.turns(session).items()},
        }

    # -- writing ------------------------------------------------------------------------------------------------

    def create(self, model: str, name: str = "", window: int = 0) -> SessionId:
        """A new, empty session. Raises UsageError where the name is taken."""
        session = SessionId(secrets.token_hex(8))
        now = self._clock()
        with self._free_name(name):
            self._db.execute(
                "INSERT INTO sessions (id, name, model, created_s, updated_s, window) VALUES (?, ?, ?, ?, ?, ?)",
                (session, name or None, model, now, now, window),
            )
        return session

    def note_window(self, session: SessionId, window: int) -> None:
        """The window that the session is open with now; 0 for the automatic one. Writes only where that is news."""
        if self.get(session).window != window:
            self._db.execute("UPDATE sessions SET window = ? WHERE id = ?", (window, session))

    def rename(self, session: SessionId, name: str) -> None:
        """An empty name takes it away. Raises UnknownSessionError, UsageError where it is taken."""
        with self._free_name(name):
            if not self._db.execute("UPDATE sessions SET name = ? WHERE id = ?", (name or None, session)):
                self.get(session)

    def fork(self, session: SessionId, manifest: ManifestId, name: str = "") -> SessionId:
        """A new session with its own copy of the log up to `manifest`, which is its head; all turns come along.

        One transaction. Raises SessionError where the manifest is not of that session, UsageError for a taken name.
        """
        with self._db.transaction():
            chain = self._db.rows(_SELECT_CHAIN, (manifest, session))
            if not chain:
                raise SessionError(f"manifest {manifest} does not belong to session {session}")
            record = self.get(session)
            fork = self.create(record.model, name, record.window)
            copies: dict[int, int] = {}
            for number, parent, op, created_s, body in chain:
                copy = _insert_manifest(self._db, (fork, copies.get(parent), op, created_s, body))
                copies[number] = copy
                self._db.execute(
                    "INSERT INTO manifest_runs SELECT ?, digest FROM manifest_runs WHERE manifest_id = ?",
                    (copy, number),
                )
            self._db.execute(
                "INSERT INTO turns SELECT id, ?, body, checksum FROM turns WHERE session_id = ?", (fork, session)
            )
            self._db.execute("UPDATE sessions SET head = ? WHERE id = ?", (copies[manifest], fork))
        return fork

    @contextmanager
    def writer(self, session: SessionId) -> Iterator[SessionWriter]:
        """`open_writer`, closed at the end."""
        writer = self.open_writer(session)
        try:
            yield writer
        finally:
            writer.close()

    def open_writer(self, session: SessionId) -> SessionWriter:
        """The one writer of a session. Raises UnknownSessionError, SessionBusyError (with the writer's pid)."""
        self.get(session)
        return SessionWriter(self._db, self._clock, session, SessionLock(self._locks, session))

    def is_open(self, session: SessionId) -> bool:
        """Whether some writer holds the session now."""
        return SessionLock.is_held(self._locks, session)

    def delete(self, session: SessionId) -> None:
        """Remove a session and its log, and the bytes from the files. Raises SessionBusyError."""
        self.get(session)
        lock = SessionLock(self._locks, session)
        try:
            with self._db.transaction():
                self._db.execute("DELETE FROM sessions WHERE id = ?", (session,))
                self._drop_unused_runs()
            self._db.scrub()
        finally:
            lock.release(remove=True)

    def load(self, exported: Mapping[str, Any], name: str | None = None) -> SessionId:
        """A new session out of `export`'s values; it keeps its id and name where they are free here.

        Raises UsageError where the values are not an export, SessionError where a token run is damaged.
        """
        try:
            return self._load(exported, name)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
            raise UsageError(f"this is not an exported session ({type(exc).__name__}: {exc})") from exc

    def rewrite(self, change: Callable[[ManifestRecord], bytes | None]) -> int:
        """Replace manifest bodies all over the home: for purging content that older states still carry.

        `change` gives a new body, or None to leave one as it is. Token runs that nothing names any more are removed.
        Returns the number of bodies changed. Not for anything else: the log is append-only.
        """
        num_changed = 0
        with self._db.transaction():
            for (number,) in self._db.rows("SELECT id FROM manifests ORDER BY id"):
                body = change(self.manifest(ManifestId(number)))
                if body is not None:
                    self._db.execute(
                        "UPDATE manifests SET body = ?, checksum = ? WHERE id = ?", (body, _checksum(body), number)
                    )
                    num_changed += 1
        self._db.scrub()
        return num_changed

    def purge_tokens(self, digests: Iterable[str]) -> None:
        """Remove token runs for good, with every reference: manifests that name them can no longer be decoded."""
        rows = [(digest,) for digest in digests]
        with self._db.transaction():
            self._db.execute_many("DELETE FROM manifest_runs WHERE digest = ?", rows)
            self._db.execute_many("DELETE FROM token_runs WHERE digest = ?", rows)
        self._db.scrub()

    # -- inside -------------------------------------------------------------------------------------------------

    def _load(self, exported: Mapping[str, Any], name: str | None) -> SessionId:
        if exported["format"] != EXPORT_FORMAT or int(exported["version"]) != EXPORT_VERSION:
            raise UsageError(
                f"this is version {exported['version']!r} of {exported['format']!r}, "
                f"not version {EXPORT_VERSION} of {EXPORT_FORMAT!r}"
            )
        about, now = exported["session"], self._clock()
        runs = {str(digest): tuple(int(i) for i in ids) for digest, ids in exported["tokens"].items()}
        with self._db.transaction():
            taken_ids = self._db.rows("SELECT 1 FROM sessions WHERE id = ?", (str(about["id"]),))
            is_id = len(about["id"]) == 16 and all(c in "0123456789abcdef" for c in about["id"])
            session = SessionId(secrets.token_hex(8) if taken_ids or not is_id else about["id"])
            wanted = str(about["name"] or "") if name is None else name
            taken = self._db.rows("SELECT 1 FROM sessions WHERE name = ?", (wanted,))
            if taken and name is not None:
                raise UsageError(f"a session is already called {name!r}: choose another name")
            self._db.execute(
                "INSERT INTO sessions (id, name, model, created_s, updated_s) VALUES (?, ?, ?, ?, ?)",
                (session, None if taken else wanted or None, str(about["model"]), float(about["created"]), now),
            )
            numbers: dict[int, int] = {}
            for item in exported["manifests"]:
                parent = numbers[item["parent"][0]] if item["parent"] else None
                body = base64.b64decode(item["body"], validate=True)
                numbers[item["id"]] = _insert_manifest(
                    self._db, (session, parent, str(item["op"]), float(item["created"]), body)
                )
                _insert_runs(self._db, numbers[item["id"]], {digest: runs[digest] for digest in item["tokens"]})
            turns = {str(turn): base64.b64decode(body, validate=True) for turn, body in exported["turns"].items()}
            _insert_turns(self._db, session, turns)
            head = numbers[exported["head"][0]] if exported["head"] else None
            self._db.execute("UPDATE sessions SET head = ? WHERE id = ?", (head, session))
        return session

    def _drop_unused_runs(self) -> None:
        self._db.execute("DELETE FROM token_runs WHERE digest NOT IN (SELECT digest FROM manifest_runs)")

    @contextmanager
    def _free_name(self, name: str) -> Iterator[None]:
        if name != name.strip() or "\n" in name:
            raise UsageError(f"{name!r} cannot be a session's name: it must be one line without outer white space")
        try:
            yield
        except sqlite3.IntegrityError as exc:
            raise UsageError(f"a session is already called {name!r}: choose another name") from exc


class SessionWriter:
    """Holds a session's lock until `close`. Not for several threads at once: the session serialises its own work."""

    def __init__(self, database: Database, clock: Callable[[], float], session: SessionId, lock: SessionLock) -> None:
        self._db, self._clock, self._lock = database, clock, lock
        self.session = session
        self._is_closed = False

    def append(
        self,
        op: str,
        body: bytes,
        tokens: Mapping[str, tuple[int, ...]] | None = None,
        turns: Mapping[str, bytes] | None = None,
    ) -> ManifestId:
        """Store a manifest behind the head and move the head to it, in one transaction; durable on return.

        `tokens` are runs by the SHA-256 of their little-endian int32 ids; equal runs are stored once for the home.
        `turns` are bodies of turns that this manifest names first.
        """
        now = self._now()
        with self._db.transaction():
            parent = self._head()
            number = _insert_manifest(self._db, (self.session, parent[0] if parent else None, op, now, body))
            _insert_runs(self._db, number, tokens or {})
            _insert_turns(self._db, self.session, turns or {})
            self._move(ManifestId(number), now)
        return ManifestId(number)

    def set_head(self, manifest: ManifestId) -> None:
        """Move the head to any manifest of this session. Raises SessionError where it is not its own."""
        now = self._now()
        with self._db.transaction():
            rows = self._db.rows("SELECT 1 FROM manifests WHERE id = ? AND session_id = ?", (manifest, self.session))
            if not rows:
                raise SessionError(f"manifest {manifest} does not belong to session {self.session}")
            self._move(manifest, now)

    def undo(self) -> ManifestRecord:
        """Move the head to its parent. Raises NothingToUndoError."""
        now = self._now()
        with self._db.transaction():
            head = self._head()
            rows = self._db.rows(f"{_SELECT_MANIFEST} WHERE id = (SELECT parent FROM manifests WHERE id = ?)", head)
            if not rows:
                raise NothingToUndoError("there is nothing left to undo")
            self._move(ManifestId(rows[0][0]), now)
            return _manifest(rows[0])

    def redo(self) -> ManifestRecord:
        """Move the head to the latest manifest that was made from it. Raises NothingToUndoError."""
        now = self._now()
        with self._db.transaction():
            rows = self._db.rows(f"{_SELECT_MANIFEST} WHERE parent = ? ORDER BY id DESC LIMIT 1", self._head())
            if not rows:
                raise NothingToUndoError("there is nothing to do again")
            self._move(ManifestId(rows[0][0]), now)
            return _manifest(rows[0])

    def close(self) -> None:
        """Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._lock.release()

    def _now(self) -> float:
        if self._is_closed:
            raise SessionClosedError(f"session {self.session} was closed: open it again")
        return self._clock()

    def _head(self) -> tuple[ManifestId, ...]:
        rows = self._db.rows("SELECT head FROM sessions WHERE id = ?", (self.session,))
        if not rows:
            raise UnknownSessionError(f"session {self.session} was deleted")
        return () if rows[0][0] is None else (ManifestId(rows[0][0]),)

    def _move(self, manifest: ManifestId, now: float) -> None:
        self._db.execute("UPDATE sessions SET head = ?, updated_s = ? WHERE id = ?", (manifest, now, self.session))


_SELECT_SESSION = (
    "SELECT id, name, model, created_s, updated_s, head, "
    "(SELECT count(*) FROM manifests m WHERE m.session_id = sessions.id), window FROM sessions"
)
_SELECT_MANIFEST = "SELECT id, session_id, parent, op, created_s, body, checksum FROM manifests"
_SELECT_CHAIN = (
    "WITH RECURSIVE chain (id) AS (SELECT id FROM manifests WHERE id = ? AND session_id = ? "
    "UNION SELECT m.parent FROM manifests m JOIN chain c ON m.id = c.id WHERE m.parent IS NOT NULL) "
    "SELECT id, parent, op, created_s, body FROM manifests WHERE id IN (SELECT id FROM chain) ORDER BY id"
)
_SELECT_RUNS = "SELECT digest FROM manifest_runs WHERE manifest_id = ? ORDER BY digest"


def _session(row: Row) -> SessionRecord:
    head = () if row[5] is None else (ManifestId(row[5]),)
    return SessionRecord(SessionId(row[0]), row[1] or "", row[2], row[3], row[4], head, row[6], row[7])


def _manifest(row: Row) -> ManifestRecord:
    if _checksum(row[5]) != row[6]:
        raise StoreError(f"manifest {row[0]} of session {row[1]} is damaged: undo to an earlier one, or start anew")
    parent = () if row[2] is None else (ManifestId(row[2]),)
    return ManifestRecord(ManifestId(row[0]), SessionId(row[1]), parent, row[3], row[4], row[5])


def _insert_manifest(database: Database, values: tuple[str, int | None, str, float, bytes]) -> int:
    return database.insert(
        "INSERT INTO manifests (session_id, parent, op, created_s, body, checksum) VALUES (?, ?, ?, ?, ?, ?)",
        (*values, _checksum(values[4])),
    )


def _insert_runs(database: Database, manifest: int, tokens: Mapping[str, tuple[int, ...]]) -> None:
    rows = [(digest, _pack(ids)) for digest, ids in sorted(tokens.items())]
    for digest, packed in rows:
        if hashlib.sha256(packed).hexdigest() != digest:
            raise SessionError(f"token run {digest[:12]} does not hash to its digest")
    database.execute_many("INSERT OR IGNORE INTO token_runs VALUES (?, ?)", rows)
    database.execute_many("INSERT INTO manifest_runs VALUES (?, ?)", [(manifest, digest) for digest, _ in rows])


def _insert_turns(database: Database, session: SessionId, turns: Mapping[str, bytes]) -> None:
    rows = [(turn, session, body, _checksum(body)) for turn, body in sorted(turns.items())]
    if rows:
        database.execute_many("INSERT INTO turns VALUES (?, ?, ?, ?)", rows)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _pack(ids: Iterable[int]) -> bytes:
    packed = array.array("i", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(data: bytes) -> tuple[int, ...]:
    packed = array.array("i")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return tuple(packed)
