"""The states of a session and the way back to them: snapshots, forks, undo, and the ledger of what has left.

Part of `Session`, which makes what is declared here. A state is a manifest of the log: nothing here runs the model.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from kvloom.errors import UnknownChunkError
from kvloom.session.budget import Budget
from kvloom.session.desk import Desk
from kvloom.session.history import History
from kvloom.session.recall import ledger_lines, one_line, recalled
from kvloom.session.values import LedgerLine, Message, Snapshot
from kvloom.types import ChunkId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session


class SessionStates:
    """The states of a session."""

    loom: Loom
    _history: History
    _desk: Desk
    _budget: Budget

    def undo(self) -> str:
        """Take the last change back, a whole turn included; what was undone, in words.

        Raises NothingToUndoError at the session's first manifest.
        """
        with self._desk.editing():
            operation = self._desk.undo()
            self.loom.ensure_window(self._desk.manifest.window)
            if operation.startswith("erase "):
                with suppress(UnknownChunkError):  # purged since
                    self.loom.restore_erased(ChunkId(operation.split()[1]))
            return operation

    def snapshot(self, title: str = "") -> Snapshot:
        """The present state under an id; durable on return, without any inference."""
        with self._desk.editing():
            return self._desk.snapshots.value(self._desk.snapshots.take(title))

    def snapshot_now(self, reason: str) -> None:
        """An automatic snapshot, whether or not somebody edits or asks: what stands now is in the log already."""
        self._desk.snapshots.automatic(reason)

    def snapshots(self) -> list[Snapshot]:
        """This session's snapshots, the newest first."""
        self._desk.check_open()
        return self._desk.snapshots.list()

    def snapshot_faults(self) -> tuple[str, ...]:
        """Snapshots that are here and cannot be read (damaged, or of a newer version): what is wrong with each."""
        self._desk.check_open()
        return self._desk.snapshots.faults()

    def restore(self, ref: str | None = None) -> Snapshot:
        """Back to a snapshot (the newest by default), with its KV; `undo()` takes it back.

        Raises UnknownSnapshotError, SnapshotError where it is damaged; the context is as before then.
        """
        with self._desk.editing():
            snapshots = self._desk.snapshots
            record = snapshots.latest() if ref is None else snapshots.get(ref)
            manifest = self._desk.adopted(snapshots.manifest(record))
            self.loom.ensure_window(manifest.window)
            self._desk.snapshot_before("restore")
            self._desk.commit(f"restore {record.id}", manifest)
            return snapshots.value(record)

    def fork(self, ref: str | None = None, name: str = "") -> Session:
        """Another session that goes on from a snapshot, or from here; this one stays as it is."""
        with self._desk.editing():
            at = self._history.head if ref is None else self._desk.snapshots.get(ref).manifest
            fork = self.loom.log.fork(self._history.id, at, name)
        return self.loom.session(id=fork)

    def delete_snapshot(self, ref: str) -> Snapshot:
        """A snapshot gone; what it held is still in the log while undo can reach it. What was deleted."""
        with self._desk.editing():
            record = self._desk.snapshots.get_even_damaged(ref)
            value = self._desk.snapshots.value(record)
            self._desk.snapshots.delete(record)
            return value

    def snapshot_messages(self, ref: str) -> list[Message]:
        """The messages of a snapshot as they were, without restoring it."""
        self._desk.check_open()
        stored = self._desk.snapshots.messages(self._desk.snapshots.get(ref))
        return [Message(message.role, message.content, message.turn) for message in stored]

    def ledger(self) -> list[LedgerLine]:
        """What was ever given here and is not in the prompt, why, and how to get it back; the oldest first."""
        self._desk.check_open()
        with self._desk.editing():
            return ledger_lines(self.loom, self._history)

    def recall(self, *refs: str) -> None:
        """Turns and chunks of the ledger back into the context, in their old order.

        Raises UsageError where the ledger has no such line, ContextOverflowError where it does not fit.
        """
        with self._desk.editing():
            manifest, lines = self._desk.manifest, self._history.ledger()
            for ref in refs:
                manifest = recalled(manifest, self._history, one_line(lines, ref))
            self._desk.commit("recall " + " ".join(ref[:12] for ref in refs), self._budget.fitting(manifest))
