"""The processor's cores, shared by the engines of one process: one of them computes at a time. Knows no engine.

Two native thread pools on the same cores wait for each other's threads at every layer, and both are many times
slower than alone. In turns, both together are as fast as one.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Cores:
    """A fair lock: turns come in the order in which they were asked for, so no engine can keep another one out."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._line: deque[int] = deque()

    def __enter__(self) -> Cores:
        me = threading.get_ident()
        with self._changed:
            self._line.append(me)
            try:
                self._changed.wait_for(lambda: self._line[0] == me)
            except BaseException:  # an interrupt: whoever stands behind must not wait for this one
                self._line.remove(me)
                self._changed.notify_all()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()

    @property
    def num_waiting(self) -> int:
        """Threads that wait for a turn."""
        return max(0, len(self._line) - 1)


CORES = Cores()
"""Those of this process. Which engines take turns at them is up to whoever opens several."""
