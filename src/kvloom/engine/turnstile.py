"""One native context, many threads: who may touch it now. Knows no engine.

Callers come before the worker that computes for all of them, and a caller that waits for the worker lets it pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

MAX_PASSED = 16
"""Turns of callers that the worker lets pass before it takes one: it must go on, however many look at the engine."""
LOOK_S = 0.1
"""How often whoever waits for something looks by itself: a cancel may come from a signal handler, and tells nobody."""


@dataclass(eq=False)
class _Waiter:
    """A thread that gave its turn away until something is true."""

    thread: int
    depth: int
    is_true: Callable[[], bool]


class Turnstile:
    """A re-entrant lock. `with turnstile:` is a caller's turn, `with turnstile.last():` the worker's.

    An interrupt (KeyboardInterrupt) while a turn is taken back or given away is raised behind that.
    """

    def __init__(self) -> None:
        # Re-entrant: a reply that is collected as garbage ends itself in whatever thread and place that happens.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._owner: int | None = None
        self._depth = 0
        self._num_waiting = 0
        self._waiters: list[_Waiter] = []
        self._is_worker_waiting = False
        self._num_passed = 0

    def __enter__(self) -> Turnstile:
        depth = self._depth if self.is_mine else 0
        try:
            self._enter(1)
        except BaseException:
            if self.is_mine and self._depth > depth:
                self._leave(1)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(1)

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has the turn."""
        return self._owner == threading.get_ident()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Others may pass during the `with` block; the turn is the caller's again behind it, as deep as it was.

        What the lock guards may have changed then. Nothing happens where the caller does not have the turn.
        """
        if not self.is_mine:
            yield
            return
        depth = self._depth
        try:
            self._leave(depth)
            yield
        finally:
            # Whoever handles the error of the block does it with the turn.
            surely(lambda: self._enter_as(depth))

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        """Let others pass until `is_true`, which is asked whenever a turn ends. The caller has the turn.

        Whoever ends a turn hands it to the first one that waits for what is true then: nobody is overtaken, and
        nothing that is true for a moment only is missed. `is_true` is called by any thread, and must be quick.
        """
        waiter = _Waiter(threading.get_ident(), self._depth, is_true)
        try:
            with self._lock:
                self._waiters.append(waiter)
                self._give_away()
                while waiter in self._waiters:
                    if not self._changed.wait(LOOK_S) and self._owner is None:
                        self._give_away()
        finally:
            surely(lambda: self._take_back(waiter))

    @contextmanager
    def last(self) -> Iterator[None]:
        """The turn as soon as nobody else wants it, or as enough others have had one. For one thread only."""
        with self._lock:
            self._is_worker_waiting, self._num_passed = True, 0
            try:
                self._changed.wait_for(
                    lambda: self._owner is None and (not self._num_waiting or self._num_passed >= MAX_PASSED)
                )
                self._owner, self._depth = threading.get_ident(), 1
            finally:
                self._is_worker_waiting = False
        try:
            yield
        finally:
            self._leave(1)

    # -- inside -------------------------------------------------------------------------------------------------

    def _enter(self, depth: int) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._owner == me:
                self._depth += depth
                return
            self._num_waiting += 1
            try:
                while self._owner is not None or (self._is_worker_waiting and self._num_passed >= MAX_PASSED):
                    self._changed.wait()
                self._owner, self._depth = me, depth
                self._num_passed += 1
            finally:
                self._num_waiting -= 1
                if self._owner is None:  # interrupted: whoever comes behind must not wait for this one
                    self._changed.notify_all()

    def _enter_as(self, depth: int) -> None:
        """The turn, as deep as given, whatever of it the caller has already."""
        if not self.is_mine:
            self._enter(depth)
        self._depth = depth

    def _leave(self, depth: int) -> None:
        if not self.is_mine:
            raise RuntimeError("the turn belongs to another thread")
        left = self._depth - depth
        surely(lambda: self._leave_at(left))

    def _leave_at(self, depth: int) -> None:
        with self._lock:
            if self._owner != threading.get_ident():
                return  # done, and interrupted behind it
            self._depth = depth
            if not depth:
                self._give_away()

    def _give_away(self) -> None:
        """Nobody's turn, or that of the first one who waits for what is true now."""
        self._owner, self._depth = None, 0
        for waiter in list(self._waiters):
            is_true = waiter.is_true()
            if not self._is_free():  # what was collected as garbage just now has had a turn, and handed it on
                break
            if is_true and waiter in self._waiters:
                self._waiters.remove(waiter)
                self._owner, self._depth = waiter.thread, waiter.depth
                break
        self._changed.notify_all()

    def _is_free(self) -> bool:
        return self._owner is None

    def _take_back(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._enter_as(waiter.depth)


def surely(action: Callable[[], None]) -> None:
    """`action` to its end: it is begun again after an interrupt, which is raised behind it. Be sure that it ends."""
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            action()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
