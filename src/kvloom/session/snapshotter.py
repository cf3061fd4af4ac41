"""Takes and finds the snapshots of one session. Taking one needs no inference: it names the manifest that stands.

What a restore weaves is the session's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.errors import KvloomError, SnapshotError
from kvloom.session.history import History
from kvloom.session.snapshots import SnapshotMeta, SnapshotRecord, StoredMessage
from kvloom.session.values import Snapshot

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

MAX_TITLE_CHARS = 60
UNDO_DEPTH = 50
"""Automatic snapshots whose state this many undos can reach are not cleaned up."""


class Snapshotter:
    """The snapshots of one session. The caller holds the session's desk."""

    def __init__(self, loom: Loom, history: History) -> None:
        self._loom, self._history = loom, history
        self._store = loom.snapshot_store
        self._settings = loom.settings.snapshots

    def take(self, title: str = "", reason: str = "", *, is_auto: bool = False) -> SnapshotRecord:
        """The present state under an id, durable on return."""
        manifest, history = self._history.manifest, self._history
        records = [history.turn(slot.ref) for slot in manifest.turns]
        messages = [StoredMessage("system", manifest.system)] if manifest.system else []
        for number, record in enumerate(records, 1):
            messages.append(StoredMessage("user", record.user, number))
            messages.append(StoredMessage("assistant", record.answer, number))
        summaries = [record.answer for record in records if record.is_summary]
        first = next((record.user for record in records if not record.is_summary), "")
        given = manifest.num_tokens + sum(line.named.num_tokens for line in history.ledger())
        meta = SnapshotMeta(
            title=(title or " ".join(first.split()))[:MAX_TITLE_CHARS],
            reason=reason,
            summary=summaries[-1] if summaries else "",
            num_tokens=manifest.num_tokens,
            num_turns=len(manifest.turns),
            num_chunks=len(manifest.active_chunk_ids),
            window=manifest.window or self._loom.window,
            model=self._loom.model_name,
            fingerprint=manifest.model,
            compression_ratio=round(manifest.num_tokens / given, 4) if given else 1.0,
        )
        return self._store.add(history.id, history.head, meta, messages, is_auto=is_auto)

    def automatic(self, reason: str) -> SnapshotRecord | None:
        """A snapshot of kvloom's own, where the settings want them, and this state has none yet; old ones go."""
        if not (self._settings.enabled and self._settings.auto_create) or not self._history.manifest.turns:
            return None
        known = self._store.of(self._history.id)
        if any(record.manifest == self._history.head for record in known):
            return None
        taken = self.take(reason=reason, is_auto=True)
        self.clean_up()
        return taken

    def clean_up(self) -> int:
        """Remove what the settings do not keep; how many went. What undo can reach is not removed."""
        automatic = sum(record.is_auto for record in self._store.of(self._history.id))
        if automatic <= self._settings.max_count and self._settings.max_age_days is None:
            return 0
        needed = self._history.ancestors(UNDO_DEPTH) - {self._history.head}
        return self._store.clean_up(self._history.id, self._settings.max_count, self._settings.max_age_days, needed)

    def get(self, ref: str) -> SnapshotRecord:
        return self._store.get(self._history.id, ref)

    def get_even_damaged(self, ref: str) -> SnapshotRecord:
        return self._store.get_even_damaged(self._history.id, ref)

    def latest(self) -> SnapshotRecord:
        """The newest one. Raises SnapshotError where there is none."""
        known = self._store.of(self._history.id)
        if not known:
            raise SnapshotError("this session has no snapshot yet; take one first")
        return known[0]

    def delete(self, record: SnapshotRecord) -> None:
        self._store.delete(record)

    def manifest(self, record: SnapshotRecord) -> Manifest:
        """What the snapshot names. Raises SnapshotError where the log does not have it whole any more."""
        try:
            return self._history.decode(self._history.manifest_record(record.manifest).body)
        except KvloomError as error:
            raise SnapshotError(
                f"snapshot {record.id} cannot be restored: {error}; its messages can still be read "
                "(kvloom context show)"
            ) from error

    def messages(self, record: SnapshotRecord) -> list[StoredMessage]:
        return self._store.messages(record)

    def list(self) -> list[Snapshot]:
        """The newest first."""
        return [self.value(record) for record in self._store.of(self._history.id)]

    def faults(self) -> tuple[str, ...]:
        """What is wrong with those that cannot be read, and are not listed."""
        return tuple(self._store.faults(self._history.id))

    def value(self, record: SnapshotRecord) -> Snapshot:
        """What the façade hands out, with the cost of a restore as of now."""
        meta = record.meta
        return Snapshot(
            id=record.id,
            title=meta.title,
            reason=meta.reason,
            is_auto=record.is_auto,
            created=record.created_s,
            summary=meta.summary,
            num_tokens=meta.num_tokens,
            num_turns=meta.num_turns,
            num_chunks=meta.num_chunks,
            window=meta.window,
            model=meta.model,
            compression_ratio=meta.compression_ratio,
            kv_bytes=meta.num_tokens * self._loom.engine.layout.token_bytes,
            restore_s=self._restore_s(record),
        )

    def _restore_s(self, record: SnapshotRecord) -> float | None:
        """What a restore would take now; None where that is not known, or the snapshot cannot be read."""
        if record.meta.fingerprint != self._loom.engine.fingerprint:
            return None
        try:
            slots = self.manifest(record).active
        except SnapshotError:
            return None
        total = 0.0
        for slot in slots:
            cost = self._loom.rates.restore_s(self._loom.composer.tier(slot, self._history.id), slot.num_tokens)
            if cost is None:
                return None
            total += cost
        return total
