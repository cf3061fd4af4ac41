"""Apple silicon: one memory for processor and GPU, by `sysctl` and `vm_stat`, else by psutil. Knows no Metal.

Available is what psutil and the activity monitor's pressure count: free, speculative and inactive pages.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Sequence

import psutil

from kvloom.memory.probe import Answer, Probe, Run, Source, run_command
from kvloom.memory.reading import MemoryKind, MemoryReading

__all__ = ["AppleProbe"]

DEVICE = "unified memory"
TOTAL = ("sysctl", "-n", "hw.memsize")
PAGES = ("vm_stat",)
AVAILABLE_PAGES = ("Pages free", "Pages speculative", "Pages inactive")
"""vm_stat's "Pages free" leaves the speculative ones out."""


def is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


class AppleProbe(Probe):
    """An Intel Mac is a host with RAM; its GPU's memory is not told."""

    name = "apple"

    def __init__(self, is_here: Callable[[], bool] = is_apple_silicon, run: Run = run_command) -> None:
        self._is_here = is_here
        self._run = run
        self._process = psutil.Process()
        self._total_bytes = 0

    def absence(self) -> str:
        return "" if self._is_here() else "no Apple silicon"

    def sources(self) -> Sequence[Source]:
        return (Source("vm_stat", self._by_tools), Source("psutil", self._by_psutil))

    def _by_tools(self) -> Answer:
        if not self._total_bytes:
            self._total_bytes = int(self._run(TOTAL).strip())
        available = _available_bytes(self._run(PAGES))
        return self._answer(self._total_bytes, available, "vm_stat")

    def _by_psutil(self) -> Answer:
        memory = psutil.virtual_memory()
        return self._answer(int(memory.total), int(memory.available), "psutil")

    def _answer(self, total: int, available: int, source: str) -> Answer:
        held = int(self._process.memory_info().rss)
        reading = MemoryReading(DEVICE, MemoryKind.UNIFIED, total, total - available, available, source, held)
        return Answer((reading,))


def _available_bytes(text: str) -> int:
    """Raises ValueError where the text is none of vm_stat's."""
    page = re.search(r"page size of (\d+) bytes", text)
    counts = {name: int(count) for name, count in re.findall(r"^([^:\n]+):\s+(\d+)\.?$", text, re.MULTILINE)}
    if page is None or any(name not in counts for name in AVAILABLE_PAGES):
        raise ValueError(f"vm_stat says nothing of page size and free pages: {text[:80]!r}")
    return int(page[1]) * sum(counts[name] for name in AVAILABLE_PAGES)
