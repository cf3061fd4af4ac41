"""The AMD probe, where no AMD GPU has to be.

The module is shaped after the examples of AMD's Python API reference (amdsmi of ROCm 6.4 and 7); the JSON after what
`rocm-smi --showproductname --showmeminfo vram --json` prints (ROCm 6: strings, numbers in bytes).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import Any

import pytest

from kvloom.memory.amd import AmdProbe
from kvloom.memory.probe import read_memory

MI300X_BYTES = 205_822_885_888


class AmdSmiException(Exception):
    """The root of amdsmi's errors."""


class MemoryType(Enum):
    VRAM = 0
    VIS_VRAM = 1
    GTT = 2


class FakeAmdSmi(ModuleType):
    AmdSmiException = AmdSmiException
    AmdSmiMemoryType = MemoryType

    def __init__(self, cards: Sequence[Any]) -> None:
        super().__init__("amdsmi")
        self.cards = cards
        self.num_open = 0
        self.processes: Any = []

    def amdsmi_init(self) -> None:
        self.num_open += 1

    def amdsmi_shut_down(self) -> None:
        self.num_open -= 1

    def amdsmi_get_processor_handles(self) -> list[int]:
        return list(range(len(self.cards)))

    def amdsmi_get_gpu_memory_total(self, handle: int, kind: MemoryType) -> int:
        return int(self._card(handle, kind)[0])

    def amdsmi_get_gpu_memory_usage(self, handle: int, kind: MemoryType) -> int:
        return int(self._card(handle, kind)[1])

    def amdsmi_get_gpu_asic_info(self, handle: int) -> dict[str, Any]:
        return {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "asic_serial": "0x01"}

    def amdsmi_get_gpu_process_list(self, handle: int) -> Any:
        if isinstance(self.processes, Exception):
            raise self.processes
        return self.processes

    def _card(self, handle: int, kind: MemoryType) -> Any:
        assert kind is MemoryType.VRAM
        if isinstance(self.cards[handle], Exception):
            raise self.cards[handle]
        return self.cards[handle]


def probe_of(library: ModuleType | Exception, smi: str | Exception = "{}") -> AmdProbe:
    def load() -> ModuleType:
        if isinstance(library, Exception):
            raise library
        return library

    def run(arguments: Sequence[str]) -> str:
        if isinstance(smi, Exception):
            raise smi
        return smi

    return AmdProbe(lambda: True, load, run)


def test_every_card_is_read_with_its_name_and_what_this_process_holds() -> None:
    smi = FakeAmdSmi([(MI300X_BYTES, 300_000_000), (MI300X_BYTES, 5)])
    usage = {"gtt_mem": 2, "cpu_mem": 3, "vram_mem": 250_000_000}
    smi.processes = [{"name": "python", "pid": os.getpid(), "mem": 1, "memory_usage": usage}]
    probe = probe_of(smi)
    first, second = read_memory([probe]).readings
    assert (first.device, second.device) == ("AMD Instinct MI300X #0", "AMD Instinct MI300X #1")
    assert (first.total_bytes, first.used_bytes) == (MI300X_BYTES, 300_000_000)
    assert first.available_bytes == MI300X_BYTES - 300_000_000
    assert first.held_bytes == 250_000_000
    probe.close()
    probe.close()
    assert smi.num_open == 0


@pytest.mark.parametrize("processes", [AmdSmiException("not supported"), [{"name": "N/A", "pid": os.getpid()}]])
def test_what_is_held_is_unknown_where_the_library_does_not_tell(processes: Any) -> None:
    smi = FakeAmdSmi([(MI300X_BYTES, 5)])
    smi.processes = processes
    [reading] = read_memory([probe_of(smi)]).readings
    assert reading.held_bytes is None


def test_a_lost_card_is_a_failure_and_the_others_are_read() -> None:
    picture = read_memory([probe_of(FakeAmdSmi([AmdSmiException("device busy"), (MI300X_BYTES, 5)]))])
    assert [reading.device for reading in picture.readings] == ["AMD Instinct MI300X #1"]
    assert [failure.reason for failure in picture.failures] == ["GPU 0: device busy"]


CARDS = {
    "card0": {
        "VRAM Total Memory (B)": "68702699520", "VRAM Total Used Memory (B)": "10960896",
        "Card Series": "AMD Instinct MI210", "Card Model": "0x740f",
    },
    "card10": {"VRAM Total Memory (B)": "536870912", "VRAM Total Used Memory (B)": "482263040"},
    "card2": {
        "VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": "1073741824",
        "Card series": "Radeon RX 7800 XT",
    },
    "system": {"Driver version": "6.8.5"},
}  # fmt: skip


@pytest.mark.parametrize(
    "library",
    [ModuleNotFoundError("No module named 'amdsmi'"), OSError("libamd_smi.so: cannot open"), KeyError("ROCM")],
)
def test_without_a_usable_library_the_tool_is_asked(library: Exception) -> None:
    text = "WARNING: AMD GPU device(s) is/are in a low-power state.\n\n" + json.dumps(CARDS)
    picture = read_memory([probe_of(library, text)])
    names = [reading.device for reading in picture.readings]
    assert names == ["AMD Instinct MI210 #0", "Radeon RX 7800 XT #2", "AMD GPU #10"]
    first = picture.readings[0]
    assert (first.total_bytes, first.used_bytes) == (68_702_699_520, 10_960_896)
    assert first.available_bytes == first.total_bytes - first.used_bytes
    assert picture.failures == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "JSON"),
        ("no devices", "JSON"),
        ("[1]", "no cards"),
        ('{"card0": {"VRAM Total Memory (B)": "N/A"}}', "card0 tells no memory"),
        ('{"card0": {"VRAM Total Memory (B)": "0", "VRAM Total Used Memory (B)": "0"}}', "0 bytes of memory"),
        ('{"card0": {"VRAM Total Memory (B)": "5", "VRAM Total Used Memory (B)": "6"}}', "6 bytes used of 5"),
    ],
)
def test_a_tool_that_answers_nonsense_is_a_failure(text: str, says: str) -> None:
    picture = read_memory([probe_of(ModuleNotFoundError("amdsmi"), text)])
    assert picture.readings == ()
    [failure] = picture.failures
    assert failure.source == "rocm-smi"
    assert says.lower() in failure.reason.lower()


def test_no_card_is_no_failure() -> None:
    picture = read_memory([probe_of(FakeAmdSmi([]), "{}")])
    assert not picture.readings
    assert not picture.failures


def test_without_a_driver_nothing_is_imported() -> None:
    def never() -> ModuleType:
        raise AssertionError("imported")

    assert read_memory([AmdProbe(lambda: False, never)]).failures == ()
