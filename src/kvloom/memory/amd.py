"""AMD GPUs, by amdsmi (the library that comes with ROCm), else by the tool `rocm-smi`. Knows no HIP.

Fields as in AMD's own reference (ROCm 6 and 7): rocm.docs.amd.com/projects/amdsmi, "Python API". Memory is in bytes.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from kvloom.memory.probe import Answer, Probe, Run, Source, run_command
from kvloom.memory.reading import MemoryKind, MemoryReading

__all__ = ["AmdProbe"]

DRIVER_FILE = Path("/dev/kfd")
"""ROCm's driver."""
TOOL = "rocm-smi"
QUERY = (TOOL, "--showproductname", "--showmeminfo", "vram", "--json")
TOTAL_FIELD = "VRAM Total Memory (B)"
USED_FIELD = "VRAM Total Used Memory (B)"
NAME_FIELDS = ("card series", "card model")
"""The product's name; its capitals differ between releases."""


def has_driver() -> bool:
    return DRIVER_FILE.exists() or shutil.which(TOOL) is not None


class AmdProbe(Probe):
    """amdsmi stays open between two readings."""

    name = "amd"

    def __init__(
        self,
        has_driver: Callable[[], bool] = has_driver,
        library: Callable[[], ModuleType] = lambda: importlib.import_module("amdsmi"),
        run: Run = run_command,
    ) -> None:
        self._has_driver = has_driver
        self._import = library
        self._run = run
        self._smi: Any = None

    def absence(self) -> str:
        return "" if self._has_driver() else "no AMD ROCm driver"

    def sources(self) -> Sequence[Source]:
        return (Source("amdsmi", self._by_library), Source(TOOL, self._by_tool))

    def close(self) -> None:
        if self._smi is not None:
            smi, self._smi = self._smi, None
            with suppress(smi.AmdSmiException):  # a driver that is gone needs no goodbye
                smi.amdsmi_shut_down()

    def _by_library(self) -> Answer:
        if self._smi is None:
            try:
                smi = self._import()
            except (ImportError, OSError, KeyError) as error:
                # The package is there without its native library, or looks for ROCM_HOME.
                return Answer(absent=f"amdsmi cannot be used ({error}); it comes with ROCm (pip install 'kvloom[amd]')")
            smi.amdsmi_init()
            self._smi = smi
        smi = self._smi
        readings: list[MemoryReading] = []
        failures: list[str] = []
        try:
            handles = smi.amdsmi_get_processor_handles()
        except smi.AmdSmiException:
            # The driver may have been loaded anew: the next reading opens it again.
            self.close()
            raise
        for index, handle in enumerate(handles):
            try:
                readings.append(_read_device(smi, handle, index))
            except smi.AmdSmiException as error:
                failures.append(f"GPU {index}: {error}")
        return Answer(tuple(readings), failures=tuple(failures), absent="" if readings or failures else "no AMD GPU")

    def _by_tool(self) -> Answer:
        cards = _decoded(self._run(QUERY))
        if not isinstance(cards, Mapping):
            raise ValueError(f"its JSON holds no cards but {cards!r}")
        readings: list[MemoryReading] = []
        failures: list[str] = []
        for key in sorted(cards, key=lambda card: (len(card), card)):
            card = cards[key]
            if not key.startswith("card") or not isinstance(card, Mapping):
                continue
            try:
                total, used = int(card[TOTAL_FIELD]), int(card[USED_FIELD])
            except (KeyError, ValueError, TypeError):
                failures.append(f"{key} tells no memory: {dict(card)}")
                continue
            lower = {str(name).lower(): value for name, value in card.items()}
            name = next((str(lower[field]) for field in NAME_FIELDS if field in lower), "AMD GPU")
            device = f"{name} #{key.removeprefix('card')}"
            readings.append(MemoryReading(device, MemoryKind.VRAM, total, used, total - used, TOOL))
        return Answer(tuple(readings), failures=tuple(failures), absent="" if readings or failures else "no AMD GPU")


def _decoded(text: str) -> Any:
    """The tool's JSON, behind the warnings that it may print first. Raises ValueError where there is none."""
    try:
        return msgspec.json.decode(text[max(0, text.find("{")) :])
    except msgspec.DecodeError as error:
        raise ValueError(f"it printed no JSON but {text[:60]!r}") from error


def _read_device(smi: Any, handle: Any, index: int) -> MemoryReading:
    vram = smi.AmdSmiMemoryType.VRAM
    total = int(smi.amdsmi_get_gpu_memory_total(handle, vram))
    used = int(smi.amdsmi_get_gpu_memory_usage(handle, vram))
    try:
        name = str(smi.amdsmi_get_gpu_asic_info(handle)["market_name"])
    except (smi.AmdSmiException, KeyError):
        name = "AMD GPU"
    return MemoryReading(
        device=f"{name} #{index}",
        kind=MemoryKind.VRAM,
        total_bytes=total,
        used_bytes=used,
        available_bytes=total - used,
        source="amdsmi",
        held_bytes=_held(smi, handle),
    )


def _held(smi: Any, handle: Any) -> int | None:
    """Bytes of this process; None where the library does not tell."""
    try:
        processes = smi.amdsmi_get_gpu_process_list(handle)
        own = [process for process in processes if process["pid"] == os.getpid()]
        return sum(int(process["memory_usage"]["vram_mem"]) for process in own)
    except (smi.AmdSmiException, KeyError, TypeError, ValueError):
        return None
