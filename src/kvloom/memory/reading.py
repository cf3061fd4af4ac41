"""What a probe reads off one device, and a picture of all of them. Knows no vendor and no file.

Every size is bytes. A reading that cannot be true is never in a picture: it becomes a failure with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["MemoryKind", "MemoryPicture", "MemoryReading", "ProbeFailure", "ServedModel", "fault"]


class MemoryKind(Enum):
    """UNIFIED: one memory for processor and GPU."""

    RAM = "ram"
    VRAM = "vram"
    UNIFIED = "unified"


@dataclass(frozen=True)
class MemoryReading:
    """One device's memory at one moment.

    `available_bytes`: what a new allocation may take without pushing anything out but caches. `held_bytes`: what this
    process holds of it; None where the source does not tell. `source`: who said so, for people.
    """

    device: str
    kind: MemoryKind
    total_bytes: int
    used_bytes: int
    available_bytes: int
    source: str
    held_bytes: int | None = None

    @property
    def used_share(self) -> float:
        """0 … 1; of a reading without a fault."""
        return self.used_bytes / self.total_bytes


@dataclass(frozen=True)
class ServedModel:
    """A model that another server on this machine keeps loaded; its bytes are part of some devices' `used_bytes`."""

    server: str
    name: str
    vram_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class ProbeFailure:
    """A source that should have answered and did not, or not truthfully."""

    probe: str
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True)
class MemoryPicture:
    """All devices at one moment."""

    readings: tuple[MemoryReading, ...] = ()
    served: tuple[ServedModel, ...] = ()
    failures: tuple[ProbeFailure, ...] = ()

    @property
    def host(self) -> MemoryReading | None:
        """The memory of the processor; None where no source of it answered."""
        return next((reading for reading in self.readings if reading.kind is not MemoryKind.VRAM), None)

    @property
    def accelerators(self) -> tuple[MemoryReading, ...]:
        """The memories that a GPU computes in, in the vendors' order."""
        return tuple(reading for reading in self.readings if reading.kind is not MemoryKind.RAM)

    def device(self, name: str) -> MemoryReading | None:
        return next((reading for reading in self.readings if reading.device == name), None)


def fault(reading: MemoryReading) -> str:
    """Why a reading cannot be true; an empty string where it can."""
    total, used, available = reading.total_bytes, reading.used_bytes, reading.available_bytes
    if total <= 0:
        return f"{reading.device} claims {total:,} bytes of memory in total"
    if used > total:
        return f"{reading.device} claims {used:,} bytes used of {total:,}"
    if used < 0 or available < 0:
        return f"{reading.device} claims {used:,} bytes used and {available:,} available: less than none"
    if available > total:
        return f"{reading.device} claims {available:,} bytes available of {total:,}"
    return ""
