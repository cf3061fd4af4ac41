"""The processor's memory, by psutil, within what the container or `ulimit` leaves of it. Knows no GPU.

Of several limits the one that leaves least is told: a model that keeps within it keeps within all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from kvloom.memory.apple import is_apple_silicon
from kvloom.memory.container import MemoryLimit, address_space_limit, cgroup_limits
from kvloom.memory.probe import Answer, Probe, Source
from kvloom.memory.reading import MemoryKind, MemoryReading

__all__ = ["HostProbe"]

DEVICE = "RAM"

Measure = Callable[[], tuple[int, int]]
"""The machine's bytes in total and available."""


def by_psutil() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def by_sysconf() -> tuple[int, int]:
    """Available is what is free: files that are cached count as used here."""
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


class HostProbe(Probe):
    """`root` is where /proc and the control groups are looked for."""

    name = "host"

    def __init__(
        self,
        measures: Sequence[tuple[str, Measure]] = (("psutil", by_psutil), ("sysconf", by_sysconf)),
        root: Path = Path("/"),
        is_unified: Callable[[], bool] = is_apple_silicon,
    ) -> None:
        self._measures = measures
        self._root = root
        self._is_unified = is_unified
        self._process = psutil.Process()

    def absence(self) -> str:
        return "the memory is the GPU's too, and told as that" if self._is_unified() else ""

    def sources(self) -> Sequence[Source]:
        return [Source(name, partial(self._read, name, measure)) for name, measure in self._measures]

    def _read(self, name: str, measure: Measure) -> Answer:
        total, available = measure()
        machine = MemoryReading(DEVICE, MemoryKind.RAM, total, total - available, available, name)
        mine = self._process.memory_info()
        limits = cgroup_limits(self._root)
        addresses = address_space_limit(int(mine.vms))
        if addresses is not None:
            limits.append(addresses)
        return Answer((_within(machine, limits, int(mine.rss)),))


def _within(machine: MemoryReading, limits: Sequence[MemoryLimit], held_bytes: int) -> MemoryReading:
    """The machine's memory, or the limit that leaves less of it."""
    tightest = min(limits, key=lambda limit: (limit.available_bytes, limit.total_bytes), default=None)
    total, available, source = machine.total_bytes, machine.available_bytes, machine.source
    if tightest is not None and tightest.available_bytes < available:
        total, available, source = tightest.total_bytes, tightest.available_bytes, tightest.source
    return MemoryReading(DEVICE, MemoryKind.RAM, total, total - available, available, source, held_bytes)
