"""A clock that never goes back and never jumps, whatever is done to the machine's. Knows no account."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MICROSECOND_NS = 1000
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def passed_ns() -> int:
    """Time that passes, while the machine sleeps too where the system can tell; all processes count it alike."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic_ns() if boottime is None else time.clock_gettime_ns(boottime)


def this_boot() -> str:
    """Names the count of `passed_ns`: the machine's start, or the machine where the system numbers no starts.

    The machine is enough: after a start the count begins at nothing, so what it gives on top of an earlier start's
    time is less than what has passed since.
    """
    try:
        return BOOT_ID_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


@dataclass(frozen=True)
class Mark:
    """What a clock leaves for all that come after it, in whichever process.

    `latest_us`: its time, below which none may fall. `ahead_us`: how far that is ahead of what `boot` counts.
    """

    latest_us: int
    boot: str
    ahead_us: int


class SteadyClock:
    """Unix time in whole microseconds: the wall clock at the beginning, and from there on what has really passed.

    Processes that hand each other their marks have one time, to the microsecond. Not thread-safe: its user reads it
    under a lock. The parameters give nanoseconds and name what the second of them counts from; tests hand in their own.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = passed_ns,
        boot: str | None = None,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._boot = this_boot() if boot is None else boot
        self._ahead_us = wall_ns() // MICROSECOND_NS - self._passed_us()

    def now_us(self) -> int:
        """Now; never before an earlier answer plus the time since."""
        return self._ahead_us + self._passed_us()

    def after(self, earlier: Mark) -> Mark:
        """Now; never before that mark, nor before its time plus what has passed since, where both count alike."""
        passed_us = self._passed_us()
        if earlier.boot == self._boot:
            self._ahead_us = max(self._ahead_us, earlier.ahead_us)
        self._ahead_us = max(self._ahead_us, earlier.latest_us - passed_us)
        return Mark(self._ahead_us + passed_us, self._boot, self._ahead_us)

    def _passed_us(self) -> int:
        return self._monotonic_ns() // MICROSECOND_NS
