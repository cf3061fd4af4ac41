"""One native context, many threads: who may touch it now. Knows no engine.

Callers come before the worker that computes for all of them, and a caller that waits for the worker lets it pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class Turnstile:
    """A re-entrant lock. `with turnstile:` is a caller's turn, `with turnstile.last():` the worker's."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._owner: int | None = None
        self._depth = 0
        self._num_waiting = 0

    def __enter__(self) -> Turnstile:
        self._enter(1)
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
        self._leave(depth)
        try:
            yield
        finally:
            self._enter(depth)

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        """Let others pass until `is_true`, which is asked whenever a turn ends. The caller has the turn."""
        with self._changed:
            depth, self._owner, self._depth = self._depth, None, 0
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._owner is None and is_true())
            except BaseException:
                self._changed.wait_for(lambda: self._owner is None)
                raise
            finally:
                self._owner, self._depth = threading.get_ident(), depth

    @contextmanager
    def last(self) -> Iterator[None]:
        """The turn as soon as nobody else wants it."""
        with self._changed:
            self._changed.wait_for(lambda: self._owner is None and not self._num_waiting)
            self._owner, self._depth = threading.get_ident(), 1
        try:
            yield
        finally:
            self._leave(1)

    def _enter(self, depth: int) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner == me:
                self._depth += depth
                return
            self._num_waiting += 1
            try:
                while self._owner is not None:
                    self._changed.wait()
                self._owner, self._depth = me, depth
            finally:
                self._num_waiting -= 1
                if self._owner is None:  # interrupted: whoever comes behind must not wait for this one
                    self._changed.notify_all()

    def _leave(self, depth: int) -> None:
        with self._changed:
            if self._owner != threading.get_ident():
                raise RuntimeError("the turn belongs to another thread")
            self._depth -= depth
            if not self._depth:
                self._owner = None
                self._changed.notify_all()
