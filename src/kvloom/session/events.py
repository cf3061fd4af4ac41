"""Subscriptions: callbacks that are told of something, each on its own. Knows nothing of what is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Event = TypeVar("Event")

_LOG = logging.getLogger(__name__)


class Signal(Generic[Event]):
    """Who wants to be told. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[Event], object]] = {}
        self._next = 0

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Returns what ends the subscription; idempotent."""
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._callbacks[number] = callback

        def end() -> None:
            with self._lock:
                self._callbacks.pop(number, None)

        return end

    def tell(self, event: Event) -> None:
        """Call every subscriber in turn. One that raises is logged: it must not stop the others, nor what goes on."""
        with self._lock:
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - a subscriber's own fault, at the edge of ours
                _LOG.exception("a subscriber failed on %r", event)
