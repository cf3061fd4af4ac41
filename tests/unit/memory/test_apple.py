"""The Apple probe on recorded answers: `sysctl -n hw.memsize` and `vm_stat` as macOS 14 prints them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvloom.memory.apple import AppleProbe
from kvloom.memory.host import HostProbe
from kvloom.memory.probe import Probe, read_memory
from kvloom.memory.reading import MemoryKind

TOTAL = 34_359_738_368
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                    9436.
Pages active:                                774260.
Pages inactive:                              915780.
Pages speculative:                             1639.
Pages throttled:                                  0.
Pages wired down:                            184732.
Pages purgeable:                              22877.
"Translation faults":                      37287533.
Pages copy-on-write:                        5732353.
File-backed pages:                          1021174.
Anonymous pages:                             670505.
Pages stored in compressor:                  371034.
Pages occupied by compressor:                167682.
Swapouts:                                         0.
"""


def probe_of(total: str = f"{TOTAL}\n", vm_stat: str = VM_STAT) -> tuple[AppleProbe, list[str]]:
    asked: list[str] = []

    def run(arguments: Sequence[str]) -> str:
        asked.append(arguments[0])
        return {"sysctl": total, "vm_stat": vm_stat}[arguments[0]]

    return AppleProbe(lambda: True, run), asked


def test_the_one_memory_is_read_from_the_systems_tools() -> None:
    probe, asked = probe_of()
    picture = read_memory([probe])
    [reading] = picture.readings
    assert reading.kind is MemoryKind.UNIFIED
    assert reading.total_bytes == TOTAL
    assert reading.available_bytes == (9436 + 915780 + 1639) * 16384
    assert reading.used_bytes == TOTAL - reading.available_bytes
    assert reading.held_bytes is not None
    assert picture.host == reading
    read_memory([probe])
    assert asked.count("sysctl") == 1  # a machine's memory does not grow


@pytest.mark.parametrize(
    ("total", "vm_stat"),
    [("", VM_STAT), (f"{TOTAL}", ""), (f"{TOTAL}", "Pages free: many."), ("0", VM_STAT), ("4096", VM_STAT)],
)
def test_tools_that_answer_nonsense_are_a_failure_and_psutil_is_asked(total: str, vm_stat: str) -> None:
    probe, _ = probe_of(total, vm_stat)
    picture = read_memory([probe])
    assert [failure.source for failure in picture.failures] == ["vm_stat"]
    assert [reading.source for reading in picture.readings] == ["psutil"]


def test_elsewhere_no_tool_is_run() -> None:
    def never(arguments: Sequence[str]) -> str:
        raise AssertionError("run")

    assert read_memory([AppleProbe(lambda: False, never)]).failures == ()


def test_one_memory_is_not_told_twice() -> None:
    probes: list[Probe] = [probe_of()[0], HostProbe(is_unified=lambda: True)]
    assert len(read_memory(probes).readings) == 1
