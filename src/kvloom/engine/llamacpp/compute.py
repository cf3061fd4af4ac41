"""The one thread of the process in which llama.cpp computes. Knows neither models nor batches.

libgomp, with which ggml is built on Linux, keeps a team of threads for every thread that ever computed, and counts them
all. With more of them than there are cores its threads fall asleep at a barrier instead of waiting awake, and there are
some hundred barriers in a step: on 2 cores one team more cost 8 to 10 % of every step (docs/benchmarks.md). So the
self-test, every engine's worker and embeddings share one team, that of this thread. It costs 0.05 ms a call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from kvloom.engine.turnstile import surely

__all__ = ["computed"]

T = TypeVar("T")


class _Call(Generic[T]):
    """A native call that a thread waits for."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._found: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        try:
            self._found = self._call()
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whoever waits gets it
            self._error = error
        self._done.release()

    def result(self) -> T:
        # An interrupt is raised behind the call: what it writes to must not be touched before.
        surely(self._wait)
        if self._error is not None:
            raise self._error
        return cast("T", self._found)

    def _wait(self) -> None:
        with self._done:
            pass


class _Thread:
    """Runs calls one after the other, until the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call[Any]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], T]) -> T:
        if self._thread is None:
            self._start()
        waited = _Call(call)
        self._calls.put(waited)
        return waited.result()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="kvloom-compute", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            self._calls.get().run()


_thread = _Thread()


def computed(call: Callable[[], T]) -> T:
    """What `call`, which has llama.cpp compute, returns or raises; it runs in the thread where all of them run."""
    return _thread.run(call)


def _begin_anew() -> None:
    """In a forked process, which has none of its parent's threads."""
    global _thread  # noqa: PLW0603 - the process's one
    _thread = _Thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
