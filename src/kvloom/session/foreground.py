"""Who is waiting for the device: work in the background gives way to it. Knows no work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Foreground:
    """Counts edits and replies under way. Safe for several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_busy = 0
        self._interrupted: set[threading.Event] = set()

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._changed:
            self._num_busy += 1
            for event in self._interrupted:
                event.set()
        try:
            yield
        finally:
            with self._changed:
                self._num_busy -= 1
                self._changed.notify_all()

    @property
    def is_busy(self) -> bool:
        return self._num_busy > 0

    def wait_idle(self, stop: threading.Event) -> None:
        """Until nobody is busy, or `stop` is set and `wake` was called."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_busy or stop.is_set())

    @contextmanager
    def interrupting(self, event: threading.Event) -> Iterator[None]:
        """`event` is set as soon as somebody is busy, for work that looks at an event between its steps."""
        with self._changed:
            self._interrupted.add(event)
            if self._num_busy:
                event.set()
        try:
            yield
        finally:
            with self._changed:
                self._interrupted.discard(event)

    def wake(self) -> None:
        """Let those that wait look at their `stop` again."""
        with self._changed:
            self._changed.notify_all()
