"""NVIDIA GPUs, by NVML (the library `nvidia-ml-py`), else by the driver's tool `nvidia-smi`. Knows no CUDA.

NVML: https://docs.nvidia.com/deploy/nvml-api/. Total and used include what the driver reserves for itself. A reading by
NVML takes well under a millisecond, one by the tool some 50: with the library watching is cheap.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from kvloom.memory.probe import Answer, Probe, Run, Source, run_command
from kvloom.memory.reading import MemoryKind, MemoryReading

__all__ = ["NvidiaProbe"]

DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of these is there where a driver is: Linux, containers, WSL."""
TOOL = "nvidia-smi"
QUERY = (TOOL, "--query-gpu=index,name,memory.total,memory.used,memory.free", "--format=csv,noheader,nounits")
MIB = 1024**2
"""`nvidia-smi … nounits` counts in these."""


def has_driver() -> bool:
    return any(path.exists() for path in DRIVER_FILES) or shutil.which(TOOL) is not None


class NvidiaProbe(Probe):
    """NVML stays open between two readings."""

    name = "nvidia"

    def __init__(
        self,
        has_driver: Callable[[], bool] = has_driver,
        library: Callable[[], ModuleType] = lambda: importlib.import_module("pynvml"),
        run: Run = run_command,
    ) -> None:
        self._has_driver = has_driver
        self._import = library
        self._run = run
        self._nvml: Any = None

    def absence(self) -> str:
        return "" if self._has_driver() else "no NVIDIA driver"

    def sources(self) -> Sequence[Source]:
        return (Source("NVML", self._by_nvml), Source(TOOL, self._by_tool))

    def close(self) -> None:
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            with suppress(nvml.NVMLError):  # a driver that is gone needs no goodbye
                nvml.nvmlShutdown()

    def _by_nvml(self) -> Answer:
        if self._nvml is None:
            try:
                nvml = self._import()
            except ImportError:
                return Answer(absent="nvidia-ml-py is not installed (pip install 'kvloom[nvidia]')")
            nvml.nvmlInit()
            self._nvml = nvml
        nvml = self._nvml
        readings: list[MemoryReading] = []
        failures: list[str] = []
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            # The driver may have been loaded anew: the next reading opens it again.
            self.close()
            raise
        for index in range(count):
            try:
                readings.append(_read_device(nvml, index))
            except nvml.NVMLError as error:
                failures.append(f"GPU {index}: {error}")
        return Answer(tuple(readings), failures=tuple(failures), absent="" if readings or failures else "no NVIDIA GPU")

    def _by_tool(self) -> Answer:
        readings: list[MemoryReading] = []
        failures: list[str] = []
        for line in self._run(QUERY).splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) < 5:
                continue
            index, name = fields[0], ", ".join(fields[1:-3])
            try:
                total, used, free = (int(field) * MIB for field in fields[-3:])
            except ValueError:
                # "[N/A]", "[Unknown Error]": a GPU that shares the processor's memory, or is lost.
                failures.append(f"GPU {index} ({name}) tells no memory: {', '.join(fields[-3:])}")
                continue
            readings.append(MemoryReading(_device(name, index), MemoryKind.VRAM, total, used, free, TOOL))
        return Answer(tuple(readings), failures=tuple(failures), absent="" if readings or failures else "no NVIDIA GPU")


def _device(name: str, index: int | str) -> str:
    return f"{name} #{index}"


def _read_device(nvml: Any, index: int) -> MemoryReading:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = nvml.nvmlDeviceGetName(handle)
    # Releases of the library before 11.5 give bytes.
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return MemoryReading(
        device=_device(text, index),
        kind=MemoryKind.VRAM,
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        available_bytes=int(memory.free),
        source="NVML",
        held_bytes=_held(nvml, handle),
    )


def _held(nvml: Any, handle: Any) -> int | None:
    """Bytes of this process; None where the driver does not tell (Windows, another process namespace)."""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    known = [int(size) for size in own if size is not None]
    # A process that is not listed while others are may be listed under another number.
    return sum(known) if known else None if own or processes else 0
