"""What a session stands at and who may change it: its manifest, its log, its window, one writer at a time.

Knows no engine work: what is asked and what is woven is the business of others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest
from kvloom.errors import ContextOverflowError, SessionBusyError, SessionClosedError
from kvloom.session.history import History, TurnRecord

if TYPE_CHECKING:
    from kvloom.session.loom import Loom


class Desk:
    """The writing side of one session. `manifest` is immutable and may be read at any time.

    Locks are taken in this order: a desk's turn, the loom's, the device's.
    """

    def __init__(self, loom: Loom, history: History) -> None:
        self.loom = loom
        self.history = history
        self.cancel = threading.Event()
        self.is_closing = False
        self.is_closed = False
        self._turn = threading.Lock()
        self._thread: int | None = None
        self.manifest = self._adopted()

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
        with self._turn:
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

    def _adopted(self) -> Manifest:
        """What the log says, as the loaded model and this window have it. It is logged with the next change."""
        manifest = self.history.manifest
        return self.loom._adopted(manifest, [self.history.turn(slot.ref) for slot in manifest.turns])

    # -- the window ---------------------------------------------------------------------------------------------

    def fitting(self, manifest: Manifest) -> Manifest:
        """The manifest, holes closed where its span needs it.

        Raises ContextOverflowError where it does not fit, unless it holds no more than now: turns may have filled
        the reserve, or the window may be smaller than it was, and the way out of that must be open.
        """
        window, reserve = self.loom.window, self.loom.reserve
        limit, num_tokens = window - reserve, manifest.num_tokens
        if num_tokens > limit and num_tokens > self.manifest.num_tokens:
            raise ContextOverflowError(
                f"the context would hold {num_tokens} tokens, and the window of {window} leaves {limit} beside the "
                f"reserve of {reserve}; switch something off, or open with --context {num_tokens + reserve} or more",
                num_needed_tokens=num_tokens,
                num_window_tokens=window,
            )
        return manifest.settled(dense=True) if manifest.span > limit else manifest
