"""Readings and probes for the tests of the memory room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvloom.memory.probe import Answer, Probe, Source
from kvloom.memory.reading import MemoryKind, MemoryPicture, MemoryReading

GIB = 1024**3


def reading(used: int, total: int = 100, device: str = "RAM", kind: MemoryKind = MemoryKind.RAM) -> MemoryReading:
    return MemoryReading(device, kind, total, used, total - used, "test")


def picture(*used: int, total: int = 100) -> MemoryPicture:
    """A picture of devices "0", "1", … with `used` of `total` bytes."""
    return MemoryPicture(tuple(reading(size, total, str(place)) for place, size in enumerate(used)))


class ScriptedProbe(Probe):
    """A probe whose sources are given functions."""

    name = "scripted"

    def __init__(self, *reads: Callable[[], Answer], absent: str = "") -> None:
        self._reads = reads
        self._absent = absent
        self.num_closed = 0

    def absence(self) -> str:
        return self._absent

    def sources(self) -> Sequence[Source]:
        return [Source(f"source {place}", read) for place, read in enumerate(self._reads)]

    def close(self) -> None:
        self.num_closed += 1
