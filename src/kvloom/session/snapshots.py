"""Snapshots in the home's database: a manifest under a name, its messages packed beside it, checksummed.

Knows no engine: what is restored is the session's business. The KV is by reference, since a manifest names its entries.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import msgspec

from kvloom.chunk.database import Database, Row
from kvloom.errors import SnapshotError, UnknownSnapshotError, UsageError
from kvloom.session.log import ManifestId
from kvloom.types import SessionId

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SNAPSHOT_VERSION = 1
_MIN_PREFIX = 4
_DAY_S = 86_400.0


class SnapshotMeta(msgspec.Struct, frozen=True):
    """What is told of a snapshot without opening it. `compression_ratio`: tokens now by tokens that were ever given."""

    title: str
    reason: str
    summary: str
    num_tokens: int
    num_turns: int
    num_chunks: int
    window: int
    model: str
    fingerprint: str
    compression_ratio: float
    version: int = SNAPSHOT_VERSION


class _Version(msgspec.Struct):
    """The one field that every version has."""

    version: int = SNAPSHOT_VERSION


_UNREADABLE = SnapshotMeta("", "", "", 0, 0, 0, 0, "", "", 1.0)


class StoredMessage(msgspec.Struct, frozen=True):
    """One message as it was, for reading and for export; the KV comes by the manifest."""

    role: str
    content: str
    turn: int = 0


@dataclass(frozen=True)
class SnapshotRecord:
    """One snapshot. `created_s` is seconds since the epoch; `number` rises with each, whatever the clock does."""

    number: int
    id: str
    session: SessionId
    manifest: ManifestId
    is_auto: bool
    created_s: float
    meta: SnapshotMeta


class SnapshotStore:
    """All snapshots of a home. Every change is one transaction, durable on return."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._db = database
        self._clock = clock

    def add(
        self,
        session: SessionId,
        manifest: ManifestId,
        meta: SnapshotMeta,
        messages: Sequence[StoredMessage],
        *,
        is_auto: bool,
    ) -> SnapshotRecord:
        text, packed = msgspec.json.encode(meta), zstd.compress(msgspec.json.encode(list(messages)), 9)
        name, now = secrets.token_hex(6), self._clock()
        number = self._db.insert(
            "INSERT INTO snapshots (id, session_id, manifest_id, is_auto, created_s, meta, messages, checksum) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (name, session, manifest, int(is_auto), now, text.decode(), packed, _checksum(manifest, text, packed)),
        )
        return SnapshotRecord(number, name, session, manifest, is_auto, now, meta)

    def of(self, session: SessionId) -> list[SnapshotRecord]:
        """A session's snapshots, the newest first. Those that cannot be read are left out: `faults` tells them."""
        return self._read(session)[0]

    def faults(self, session: SessionId) -> list[str]:
        """What is wrong with the session's snapshots that cannot be read, the newest first."""
        return self._read(session)[1]

    def _read(self, session: SessionId) -> tuple[list[SnapshotRecord], list[str]]:
        records, faults = [], []
        for row in self._rows(session):
            try:
                records.append(_record(row))
            except SnapshotError as error:
                faults.append(str(error))
        return records, faults

    def _rows(self, session: SessionId) -> list[Row]:
        return self._db.rows(f"{_SELECT} WHERE session_id = ? ORDER BY number DESC", (session,))

    def get(self, session: SessionId, ref: str) -> SnapshotRecord:
        """The session's snapshot of an id, an unambiguous prefix of it, or a title.

        Raises UnknownSnapshotError, SnapshotError where it is damaged or of a newer version.
        """
        return _record(self._row(session, ref))

    def get_even_damaged(self, session: SessionId, ref: str) -> SnapshotRecord:
        """As `get`, to delete it: of what cannot be read the place alone is told. Raises UnknownSnapshotError."""
        row = self._row(session, ref)
        try:
            return _record(row)
        except SnapshotError:
            number, name, owner, manifest, is_auto, created_s, *_ = row
            return SnapshotRecord(
                number, name, SessionId(owner), ManifestId(manifest), bool(is_auto), created_s, _UNREADABLE
            )

    def _row(self, session: SessionId, ref: str) -> Row:
        rows = self._rows(session)
        found = [row for row in rows if len(ref) >= _MIN_PREFIX and row[1].startswith(ref.lower())]
        if not found:
            found = [row for row in rows if _title(row) == ref][:1]
        if len(found) > 1:
            raise UsageError(f"{ref!r} fits {len(found)} snapshots: {', '.join(row[1] for row in found)}")
        if not found:
            known = ", ".join(row[1] for row in rows[:5]) or "it has none"
            raise UnknownSnapshotError(f"no snapshot {ref!r} of this session; the newest: {known}")
        return found[0]

    def messages(self, record: SnapshotRecord) -> list[StoredMessage]:
        """The messages as they were. Raises SnapshotError where they are damaged."""
        rows = self._db.rows("SELECT messages FROM snapshots WHERE id = ?", (record.id,))
        if not rows:
            raise UnknownSnapshotError(f"snapshot {record.id} was deleted meanwhile")
        return msgspec.json.decode(zstd.decompress(rows[0][0]), type=list[StoredMessage])

    def delete(self, record: SnapshotRecord) -> None:
        self._db.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))

    def clean_up(self, session: SessionId, keep: int, max_age_days: float | None, needed: Set[ManifestId]) -> int:
        """Delete automatic snapshots beyond the newest `keep`, or older than `max_age_days`; how many went.

        One whose manifest is in `needed` (undo or a fork builds on it) stays, and so does every one that a person made.
        """
        now, removed = self._clock(), 0
        automatic = [record for record in self.of(session) if record.is_auto]
        for place, record in enumerate(automatic):
            # A clock that jumped back makes ages negative: such a snapshot is young.
            is_old = max_age_days is not None and now - record.created_s > max_age_days * _DAY_S
            if (place >= keep or is_old) and record.manifest not in needed:
                self.delete(record)
                removed += 1
        return removed


_SELECT = "SELECT number, id, session_id, manifest_id, is_auto, created_s, meta, messages, checksum FROM snapshots"


def _record(row: Row) -> SnapshotRecord:
    number, name, session, manifest, is_auto, created_s, text, messages, checksum = row
    if _checksum(manifest, text.encode(), messages) != checksum:
        raise SnapshotError(f"snapshot {name} is damaged: its checksum differs; restore another, or delete it")
    try:
        # First, and alone: a newer version may have other fields.
        version = msgspec.json.decode(text, type=_Version).version
        if version > SNAPSHOT_VERSION:
            raise SnapshotError(
                f"snapshot {name} is of version {version}, and this kvloom reads up to {SNAPSHOT_VERSION}: "
                "use the newer kvloom that wrote it, or delete it"
            )
        meta = msgspec.json.decode(text, type=SnapshotMeta)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"snapshot {name} is damaged: {error}; restore another, or delete it") from error
    return SnapshotRecord(number, name, SessionId(session), ManifestId(manifest), bool(is_auto), created_s, meta)


def _title(row: Row) -> str:
    try:
        return msgspec.json.decode(row[6], type=SnapshotMeta).title
    except msgspec.MsgspecError:
        return ""


def _checksum(manifest: int, meta: bytes, messages: bytes) -> bytes:
    return hashlib.sha256(b"%d\0%s\0%s" % (manifest, meta, messages)).digest()
