"""Computing that leaves no team of threads behind. Knows neither models nor batches.

libgomp, with which ggml is built on Linux, keeps a team of threads for every thread that ever computed, and counts them
all. With more of them than there are cores its threads fall asleep at every barrier instead of waiting awake, and a
step has some hundred barriers: on 2 cores one team more cost 8 to 10 % of each (docs/benchmarks.md). So one thread
computes for an engine, its batcher's worker, and whatever else computes does so in a thread that ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from kvloom.engine.turnstile import surely

__all__ = ["in_passing"]

T = TypeVar("T")


def in_passing(call: Callable[[], T]) -> T:
    """What `call` returns or raises, run in a thread of its own; an interrupt is raised behind it. 0.2 ms."""
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: its caller gets it
            errors.append(error)

    thread = threading.Thread(target=run, name="kvloom-passing", daemon=True)
    thread.start()
    surely(thread.join)
    if errors:
        raise errors[0]
    return found[0]
