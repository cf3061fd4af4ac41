"""Reads the memory again and again in a thread of its own, and tells who wants to know when it runs low.

It takes no action and knows no session. A busy engine is watched more closely than one at rest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from kvloom.errors import UsageError
from kvloom.memory.history import History
from kvloom.memory.probe import make_probes, read_memory
from kvloom.memory.reading import MemoryPicture, MemoryReading

__all__ = ["LowMemory", "MemoryMonitor", "Pace"]

log = logging.getLogger(__name__)

HYSTERESIS = 0.05
"""An event comes again only after the share fell by this much below its threshold."""
JOIN_S = 10.0
"""A probe's tool is given up after 5 s: a thread that takes longer is left behind (it is a daemon)."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two readings."""

    busy_s: float = 5.0
    rest_s: float = 30.0


@dataclass(frozen=True)
class LowMemory:
    """A device's used share rose to `share` or above."""

    reading: MemoryReading
    share: float


LowMemoryCallback = Callable[[LowMemory], None]
PictureCallback = Callable[[MemoryPicture], None]
Unsubscribe = Callable[[], None]


@dataclass(eq=False)
class _Watch:
    """One subscription: devices that are over its share have had their event."""

    callback: LowMemoryCallback
    share: float
    over: set[str] = field(default_factory=set)


class MemoryMonitor:
    """Starts reading with `start`. Every public method may be called from any thread.

    `read` gives a picture; by default all probes are asked, and kept open in between. Callbacks run one after another
    in the thread that reads (the monitor's own, or the caller of `poll`): they must be quick. What one raises is
    logged and keeps no other from being called. A callback may unsubscribe, subscribe and close.
    """

    def __init__(
        self,
        read: Callable[[], MemoryPicture] | None = None,
        *,
        pace: Pace = Pace(),
        hysteresis: float = HYSTERESIS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = make_probes() if read is None else ()
        self._read = read if read is not None else lambda: read_memory(self._probes)
        self._pace = pace
        self._hysteresis = hysteresis
        self._clock = clock
        self._history = History()
        self._state = threading.Condition()
        self._reading = threading.RLock()  # a callback may ask for a reading
        self._watches: list[_Watch] = []
        self._listeners: list[PictureCallback] = []
        self._num_busy = 0
        self._calling: threading.Thread | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryMonitor:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to read, at once and then at the pace. Does nothing when it runs already or was closed."""
        with self._state:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="kvloom-memory", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the thread and closes the probes. Idempotent; from a callback it does not wait for the thread."""
        here = threading.current_thread()
        with self._state:
            was_closed, self._is_closed = self._is_closed, True
            self._state.notify_all()
            thread = self._thread
        if thread is not None and here is not thread and here is not self._calling:
            thread.join(JOIN_S)
        if not was_closed and thread is None:
            self._close_probes()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While inside, readings come at the closer pace. May be nested and shared by threads."""
        with self._state:
            self._num_busy += 1
            self._state.notify_all()
        try:
            yield
        finally:
            with self._state:
                self._num_busy -= 1

    @property
    def interval_s(self) -> float:
        """Seconds between two readings as things are."""
        return self._pace.busy_s if self._num_busy else self._pace.rest_s

    def on_low_memory(self, callback: LowMemoryCallback, share: float = 0.8) -> Unsubscribe:
        """Call back once whenever a device's used share reaches `share`, and again only after it fell well below it.

        A device that is over it already gives its event with the next reading. Raises UsageError for a share that is
        none. The result takes the subscription back; calling it twice does nothing.
        """
        if not 0 < share <= 1:
            raise UsageError(f"a share of memory lies between 0 and 1, got {share}")
        watch = _Watch(callback, share)
        with self._state:
            self._watches.append(watch)
        return lambda: self._forget(self._watches, watch)

    def on_reading(self, callback: PictureCallback) -> Unsubscribe:
        """Call back with every picture that is read."""
        with self._state:
            self._listeners.append(callback)
        return lambda: self._forget(self._listeners, callback)

    def poll(self) -> MemoryPicture:
        """Read now: remember it, tell the subscribers, give it back."""
        with self._reading:
            picture = self._read()
            with self._state:
                self._history.add(self._clock(), picture)
                listeners = tuple(self._listeners)
                events = [(watch, event) for watch in self._watches for event in self._events(watch, picture)]
            self._tell(listeners, picture, events)
        return picture

    def _tell(
        self,
        listeners: tuple[PictureCallback, ...],
        picture: MemoryPicture,
        events: list[tuple[_Watch, LowMemory]],
    ) -> None:
        outer, self._calling = self._calling, threading.current_thread()
        try:
            for listener in listeners:
                _call(listener, picture)
            for watch, event in events:
                if watch in self._watches:
                    _call(watch.callback, event)
        finally:
            self._calling = outer

    @property
    def latest(self) -> MemoryPicture | None:
        """The last picture; None before the first reading."""
        with self._state:
            return self._history.latest

    def trend(self, device: str) -> float | None:
        """Bytes per second by which a device's used bytes grow; None before three readings."""
        with self._state:
            return self._history.trend(device)

    def _events(self, watch: _Watch, picture: MemoryPicture) -> Iterator[LowMemory]:
        for reading in picture.readings:
            if reading.used_share >= watch.share:
                if reading.device not in watch.over:
                    watch.over.add(reading.device)
                    yield LowMemory(reading, watch.share)
            elif reading.used_share < watch.share - min(self._hysteresis, watch.share / 2):
                watch.over.discard(reading.device)

    def _forget(self, subscriptions: list[_Watch] | list[PictureCallback], one: object) -> None:
        with self._state:
            if one in subscriptions:
                subscriptions.remove(one)  # type: ignore[arg-type]

    def _run(self) -> None:
        try:
            while not self._is_closed:
                started = time.monotonic()
                try:
                    self.poll()
                except Exception:
                    log.exception("the memory could not be read")
                self._wait(started)
        finally:
            self._close_probes()

    def _wait(self, started: float) -> None:
        """Until the next reading is due: the interval may shorten meanwhile."""
        with self._state:
            while not self._is_closed:
                left = started + self.interval_s - time.monotonic()
                if left <= 0:
                    return
                self._state.wait(left)

    def _close_probes(self) -> None:
        with self._reading:
            for probe in self._probes:
                try:
                    probe.close()
                except Exception:
                    log.exception("the %s probe could not be closed", probe.name)


Told = TypeVar("Told")


def _call(callback: Callable[[Told], None], argument: Told) -> None:
    try:
        callback(argument)
    except Exception:
        log.exception("a memory callback failed")
