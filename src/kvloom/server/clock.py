"""A clock that never goes back and never jumps, whatever is done to the machine's. Knows no account."""

from __future__ import annotations

import time
from collections.abc import Callable

MICROSECOND_NS = 1000


def passed_ns() -> int:
    """Time that passes, while the machine sleeps too where the system can tell."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if boottime is None else time.clock_gettime_ns(boottime)


class SteadyClock:
    """Unix time in whole microseconds: the wall clock at the beginning, and from there on what has really passed.

    Not thread-safe: its user reads it under a lock. The parameters give nanoseconds; tests hand in their own.
    """

    def __init__(self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = passed_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._ahead_ns = wall_ns() - monotonic_ns()

    def now_us(self, at_least_us: int = 0) -> int:
        """Now; never before an earlier answer plus the time since, nor before `at_least_us`."""
        passed = self._monotonic_ns()
        self._ahead_ns = max(self._ahead_ns, at_least_us * MICROSECOND_NS - passed)
        return (self._ahead_ns + passed) // MICROSECOND_NS
