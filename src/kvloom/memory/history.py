"""The readings of the last minutes and where they are heading. Pure: times are given, nothing is measured.

The trend is the slope of a least-squares line through a device's used bytes.
"""

from __future__ import annotations

from collections import deque

from kvloom.memory.reading import MemoryPicture

__all__ = ["History"]

WINDOW_S = 120.0
"""Long enough to see a leak through a reply's ups and downs, short enough to forget the last model."""
MIN_POINTS = 3
"""Two points are a line through noise."""
MAX_POINTS = 256
"""Bounds the memory of a history whose owner reads far more often than a monitor."""


class History:
    """Used bytes by device over the last `window_s` seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, MemoryPicture]] = deque(maxlen=MAX_POINTS)

    def add(self, time_s: float, picture: MemoryPicture) -> None:
        """`time_s` of a clock that never goes back; a point that is older than the last is dropped."""
        if self._points and time_s < self._points[-1][0]:
            return
        self._points.append((time_s, picture))
        while self._points[0][0] < time_s - self._window_s:
            self._points.popleft()

    @property
    def latest(self) -> MemoryPicture | None:
        return self._points[-1][1] if self._points else None

    def trend(self, device: str) -> float | None:
        """Bytes per second by which the device's used bytes grow; None before there are three readings of it."""
        points = [
            (time_s, reading.used_bytes)
            for time_s, picture in self._points
            if (reading := picture.device(device)) is not None
        ]
        if len(points) < MIN_POINTS:
            return None
        mean_time = sum(time_s for time_s, _ in points) / len(points)
        mean_used = sum(used for _, used in points) / len(points)
        spread = sum((time_s - mean_time) ** 2 for time_s, _ in points)
        if spread == 0:
            return None
        return sum((time_s - mean_time) * (used - mean_used) for time_s, used in points) / spread
