"""The NVIDIA probe, where no NVIDIA GPU has to be.

The module is shaped after nvidia-ml-py 13 (`pynvml.py`: functions, `c_nvmlMemory_t`, `nvmlFriendlyObject`, errors); the
text after what `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` prints (its manual; the sizes of an H200).
"""

# ruff: noqa: N802 - the names are the library's

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvloom.memory.nvidia import NvidiaProbe
from kvloom.memory.probe import read_memory
from kvloom.memory.reading import MemoryKind

MIB = 1024**2
H200_BYTES = 150_754_820_096


class NVMLError(Exception):
    """As pynvml's: made of a number, told in words."""


class FakeNvml(ModuleType):
    NVMLError = NVMLError

    def __init__(self, cards: Sequence[Any]) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.num_open = 0
        self.num_inits = 0
        self.processes: Any = []
        self.is_gone = False

    def nvmlInit(self) -> None:
        self.num_open += 1
        self.num_inits += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self.num_open -= 1

    def _check(self) -> None:
        if self.is_gone:
            raise NVMLError("Uninitialized")

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if isinstance(self.cards[index], Exception):
            raise self.cards[index]
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        total, used = self.cards[handle]
        return SimpleNamespace(total=total, free=total - used, used=used)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return "NVIDIA H200" if handle == 0 else b"NVIDIA H200"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        if isinstance(self.processes, Exception):
            raise self.processes
        return self.processes


def process(pid: int, size: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=size, gpuInstanceId=None, computeInstanceId=None)


def probe_of(nvml: ModuleType, smi: str | Exception = "") -> NvidiaProbe:
    def run(arguments: Sequence[str]) -> str:
        if isinstance(smi, Exception):
            raise smi
        return smi

    return NvidiaProbe(lambda: True, lambda: nvml, run)


def without_library(smi: str | Exception) -> NvidiaProbe:
    def missing() -> ModuleType:
        raise ModuleNotFoundError("No module named 'pynvml'")

    probe = probe_of(ModuleType("pynvml"), smi)
    probe._import = missing
    return probe


def test_every_card_is_read_with_its_name_and_what_this_process_holds() -> None:
    nvml = FakeNvml([(H200_BYTES, 600 * MIB), (H200_BYTES, 90_000 * MIB)])
    nvml.processes = [process(os.getpid(), 500 * MIB), process(1, 7)]
    picture = read_memory([probe_of(nvml)])
    first, second = picture.readings
    assert (first.device, second.device) == ("NVIDIA H200 #0", "NVIDIA H200 #1")
    assert first.kind is MemoryKind.VRAM
    assert (first.total_bytes, first.used_bytes) == (H200_BYTES, 600 * MIB)
    assert first.available_bytes == H200_BYTES - 600 * MIB
    assert first.held_bytes == 500 * MIB
    assert picture.failures == ()


@pytest.mark.parametrize(
    ("processes", "held"),
    [
        ([], 0),
        ([process(1, 7)], None),  # in a container the driver lists us under another number
        ([process(os.getpid(), None)], None),  # Windows' display model does not tell
        (NVMLError("Not Supported"), None),
    ],
)
def test_what_is_held_is_unknown_where_the_driver_does_not_tell(processes: Any, held: int | None) -> None:
    nvml = FakeNvml([(H200_BYTES, MIB)])
    nvml.processes = processes
    [reading] = read_memory([probe_of(nvml)]).readings
    assert reading.held_bytes == held


def test_a_lost_card_is_a_failure_and_the_others_are_read() -> None:
    nvml = FakeNvml([NVMLError("GPU is lost"), (H200_BYTES, MIB)])
    picture = read_memory([probe_of(nvml)])
    assert [reading.device for reading in picture.readings] == ["NVIDIA H200 #1"]
    assert [failure.reason for failure in picture.failures] == ["GPU 0: GPU is lost"]


def test_the_library_stays_open_between_readings_until_it_is_closed() -> None:
    nvml = FakeNvml([(H200_BYTES, MIB)])
    probe = probe_of(nvml)
    read_memory([probe])
    read_memory([probe])
    assert (nvml.num_inits, nvml.num_open) == (1, 1)
    probe.close()
    probe.close()
    assert nvml.num_open == 0
    assert len(read_memory([probe]).readings) == 1


def test_without_a_driver_nothing_is_imported() -> None:
    def never() -> ModuleType:
        raise AssertionError("imported")

    picture = read_memory([NvidiaProbe(lambda: False, never)])
    assert not picture.readings
    assert not picture.failures


def test_without_the_library_the_drivers_tool_is_asked() -> None:
    text = "0, NVIDIA H200, 143771, 612, 142505\n1, NVIDIA A100, 80GB PCIe, 81920, 0, 81037\n"
    picture = read_memory([without_library(text)])
    first, second = picture.readings
    assert (first.device, second.device) == ("NVIDIA H200 #0", "NVIDIA A100, 80GB PCIe #1")
    assert (first.total_bytes, first.used_bytes, first.available_bytes) == (143771 * MIB, 612 * MIB, 142505 * MIB)
    assert picture.failures == ()


def test_a_card_without_memory_of_its_own_says_so() -> None:
    picture = read_memory([without_library("0, NVIDIA GB10, [N/A], [N/A], [N/A]\n")])
    assert picture.readings == ()
    assert "GB10" in picture.failures[0].reason


def test_a_driver_that_does_not_answer_is_a_failure_of_every_source() -> None:
    nvml = FakeNvml([])
    nvml.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError("Driver Not Loaded"))  # type: ignore[method-assign]
    picture = read_memory([probe_of(nvml, FileNotFoundError("nvidia-smi"))])
    assert [failure.source for failure in picture.failures] == ["NVML", "nvidia-smi"]
    assert "Driver Not Loaded" in picture.failures[0].reason


def test_a_driver_that_was_loaded_anew_is_read_again() -> None:
    nvml = FakeNvml([(H200_BYTES, MIB)])
    probe = probe_of(nvml, FileNotFoundError("nvidia-smi"))
    read_memory([probe])
    nvml.is_gone = True
    assert "Uninitialized" in read_memory([probe]).failures[0].reason
    nvml.is_gone = False
    assert len(read_memory([probe]).readings) == 1
    assert nvml.num_inits == 2


def test_the_real_library_has_what_the_probe_calls() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is an extra")
    for name in dir(FakeNvml):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(pynvml, name)
