"""What a session stands at and who may change it: its manifest, its log, one writer at a time.

Knows no engine work: what is asked and what is woven is the business of others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.errors import SessionBusyError, SessionClosedError
from kvloom.session.history import History, TurnRecord
from kvloom.session.snapshotter import Snapshotter

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class Desk:
    """The writing side of one session. `manifest` is immutable and may be read at any time.

    Locks are taken in this order: a desk's turn, the loom's, the device's.
    """

    def __init__(self, loom: Loom, history: History) -> None:
        self.loom = loom
        self.history = history
        self.snapshots = Snapshotter(loom, history)
        self.cancel = threading.Event()
        self.is_closing = False
        self.is_closed = False
        self._turn = threading.Lock()
        self._thread: int | None = None
        try:
            self.manifest = self._adopted()
        except BaseException:
            history.close()  # nobody would give the session's lock back
            raise

    def check_open(self) -> None:
        self.loom._check_open()
        if self.is_closing or self.is_closed:
            raise SessionClosedError(f"session {self.history.id} is closed; open it again with loom.session(id=…)")

    def close(self) -> bool:
        """Let nobody in any more; False where that was so already. The caller holds the turn."""
        was_open, self.is_closed = not self.is_closed, True
        return was_open

    # -- one at a time ------------------------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else edits or asks meanwhile. Raises SessionBusyError where this thread is the one in the way."""
        if self._thread == threading.get_ident():
            raise SessionBusyError("a reply of this session is being read in this thread; finish or close it first")
        with self.loom.foreground.busy(), self.loom.monitor.busy(), self._turn:
            self.taken_by_this_thread()
            try:
                yield
            finally:
                self._thread = None

    def taken_by_this_thread(self) -> None:
        """A reply may be read on by another thread than the one that began it."""
        self._thread = threading.get_ident()

    @contextmanager
    def editing(self) -> Iterator[None]:
        with self.turn():
            self.check_open()
            yield

    # -- the log ------------------------------------------------------------------------------------------------

    def commit(self, operation: str, manifest: Manifest, turn: TurnRecord | None = None) -> None:
        """The next manifest, durable on return. What changes nothing is not logged: undo would seem to do nothing."""
        if manifest == self.manifest and turn is None:
            return
        self.commit_always(operation, manifest, turn)

    def commit_always(self, operation: str, manifest: Manifest, turn: TurnRecord | None = None) -> None:
        self.history.append(operation, manifest, turn)
        self.manifest = manifest
        self.loom._pin_entries()
        self.loom.rates.save_if_moved()

    def snapshot_before(self, operation: str) -> None:
        """What is about to be changed stays under a name of its own."""
        self.snapshots.automatic(f"before {operation}")

    def undo(self) -> str:
        """Back to the manifest before; what was undone. Raises NothingToUndoError."""
        operation = self.history.undo()
        self.manifest = self._adopted()
        self.loom._pin_entries()
        return operation

    def reread(self) -> None:
        """Take over what a purge has made of the log. The caller holds the turn."""
        self.history.reread()
        self.manifest = self._adopted()

    def adopted(self, manifest: Manifest) -> Manifest:
        """A manifest of the log as the loaded model has it."""
        return self.loom._adopted(manifest, [self.history.turn(slot.ref) for slot in manifest.turns])

    def _adopted(self) -> Manifest:
        """What the log says, as the loaded model has it. It is logged with the next change."""
        return self.adopted(self.history.manifest)
