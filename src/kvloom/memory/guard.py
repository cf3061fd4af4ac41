"""How full a memory is, in levels, and how much may still be taken. Pure: it is told readings and takes no action.

A level is entered at its threshold and left only below threshold − hysteresis, so that a memory that hovers around a
threshold crosses it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import total_ordering

from kvloom.errors import UsageError

__all__ = ["Crossing", "Guard", "Level", "Thresholds", "below_share"]


@total_ordering
class Level(Enum):
    """From enough to too little. What is done at each is the session's: evict, shrink, refuse and release."""

    NORMAL = "normal"
    SOFT = "soft"
    HARD = "hard"
    CRITICAL = "critical"

    def __lt__(self, other: object) -> bool:
        return _ORDER[self] < _ORDER[other] if isinstance(other, Level) else NotImplemented


_ORDER = {level: place for place, level in enumerate(Level)}


@dataclass(frozen=True)
class Thresholds:
    """Used shares of a memory at which its levels begin. Raises UsageError where they are in no order."""

    soft: float = 0.80
    hard: float = 0.90
    critical: float = 0.95
    hysteresis: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.soft < self.hard < self.critical <= 1:
            raise UsageError(
                "the guard's thresholds must rise between 0 and 1, "
                f"got soft {self.soft}, hard {self.hard}, critical {self.critical}"
            )
        if not 0 <= self.hysteresis < self.soft:
            raise UsageError(
                f"the guard's hysteresis must be at least 0 and below its soft threshold of {self.soft}, "
                f"got {self.hysteresis}"
            )

    def of(self, level: Level) -> float:
        """The share at which `level` begins."""
        return {Level.NORMAL: 0.0, Level.SOFT: self.soft, Level.HARD: self.hard, Level.CRITICAL: self.critical}[level]

    def reached(self, share: float) -> Level:
        """The highest level that begins at `share` or below."""
        return max(level for level in Level if share >= self.of(level))


@dataclass(frozen=True)
class Crossing:
    """A change of level, and the reading that made it."""

    before: Level
    after: Level
    used_bytes: int
    total_bytes: int

    @property
    def is_rise(self) -> bool:
        return self.after > self.before

    @property
    def share(self) -> float:
        return self.used_bytes / self.total_bytes


class Guard:
    """The state of one memory. Not thread-safe: one thread observes."""

    def __init__(self, thresholds: Thresholds = Thresholds()) -> None:
        self.thresholds = thresholds
        self._level = Level.NORMAL
        self._used_bytes = 0
        self._total_bytes = 0

    @property
    def level(self) -> Level:
        """NORMAL before the first observation."""
        return self._level

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def total_bytes(self) -> int:
        """0 before the first observation."""
        return self._total_bytes

    def observe(self, used_bytes: int, total_bytes: int) -> Crossing | None:
        """Take note of a reading; the crossing that it makes, if any.

        A reading that cannot be true (nothing in total, more used than there is) changes nothing.
        """
        if total_bytes <= 0 or not 0 <= used_bytes <= total_bytes:
            return None
        self._used_bytes, self._total_bytes = used_bytes, total_bytes
        share = used_bytes / total_bytes
        before, self._level = self._level, max(self.thresholds.reached(share), self._held(share))
        if self._level is before:
            return None
        return Crossing(before, self._level, used_bytes, total_bytes)

    def _held(self, share: float) -> Level:
        """The highest of the levels up to the present one that `share` is not yet far enough below."""
        below = (level for level in Level if level <= self._level)
        return max(level for level in below if level is Level.NORMAL or share >= self._floor(level))

    def _floor(self, level: Level) -> float:
        return self.thresholds.of(level) - self.thresholds.hysteresis

    def safe_limit_bytes(self) -> int | None:
        """Bytes that may still be taken while the memory stays below soft; None before the first observation."""
        if not self._total_bytes:
            return None
        return max(0, below_share(self._total_bytes, self.thresholds.soft) - self._used_bytes)

    def can_allocate(self, num_bytes: int) -> bool:
        """Whether `num_bytes` more leave the memory below soft. Before the first observation nothing speaks against."""
        limit = self.safe_limit_bytes()
        return limit is None or num_bytes <= limit


def below_share(total_bytes: int, share: float) -> int:
    """The most bytes of `total_bytes` that are less than `share` of them."""
    most = int(total_bytes * share)
    while most > 0 and most / total_bytes >= share:
        most -= 1
    return most
