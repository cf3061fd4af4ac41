from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.memory.probe import Answer, make_probes, read_memory, run_command
from kvloom.memory.reading import MemoryKind, MemoryReading, fault
from tests.unit.memory.pictures import ScriptedProbe, reading


def answers(*readings: MemoryReading) -> Answer:
    return Answer(readings)


def broken() -> Answer:
    raise OSError("the driver is gone")


def test_the_machine_is_read_as_its_own_counters_tell() -> None:
    picture = read_memory()
    host = picture.host
    assert host is not None
    machine = psutil.virtual_memory()
    assert 0 < host.total_bytes <= machine.total
    assert host.used_bytes + host.available_bytes == host.total_bytes
    # Other processes come and go between the two readings.
    assert host.available_bytes <= machine.available + machine.total // 10
    assert host.held_bytes is not None
    assert 0 < host.held_bytes <= machine.total


def test_a_probe_that_is_not_for_this_machine_is_no_failure_and_its_sources_are_not_asked() -> None:
    picture = read_memory([ScriptedProbe(broken, absent="no such GPU")])
    assert not picture.readings
    assert not picture.failures


def test_a_source_that_fails_is_told_and_the_next_one_used() -> None:
    picture = read_memory([ScriptedProbe(broken, lambda: answers(reading(3)))])
    assert [found.used_bytes for found in picture.readings] == [3]
    assert [str(failure) for failure in picture.failures] == ["source 0: the driver is gone"]


@pytest.mark.parametrize(
    ("total", "used", "available", "says"),
    [
        (0, 0, 0, "0 bytes of memory"),
        (-5, 0, 0, "-5 bytes of memory"),
        (100, 101, 0, "101 bytes used of 100"),
        (100, -1, 0, "less than none"),
        (100, 0, -1, "less than none"),
        (100, 0, 101, "101 bytes available of 100"),
    ],
)
def test_a_source_that_lies_is_a_failure_with_the_numbers_and_the_next_one_is_used(
    total: int, used: int, available: int, says: str
) -> None:
    lie = MemoryReading("card", MemoryKind.VRAM, total, used, available, "test")
    picture = read_memory([ScriptedProbe(lambda: answers(lie), lambda: answers(reading(1)))])
    assert [found.device for found in picture.readings] == ["RAM"]
    [failure] = picture.failures
    assert says in failure.reason


def test_a_lie_about_one_card_leaves_the_other_one_told() -> None:
    lie = MemoryReading("card 1", MemoryKind.VRAM, 0, 0, 0, "test")
    picture = read_memory([ScriptedProbe(lambda: answers(reading(2), lie))])
    assert [found.device for found in picture.readings] == ["RAM"]
    assert len(picture.failures) == 1


def test_when_every_source_fails_all_reasons_are_told_and_nothing_is_raised() -> None:
    picture = read_memory([ScriptedProbe(broken, broken), ScriptedProbe(lambda: answers(reading(2)))])
    assert len(picture.failures) == 2
    assert len(picture.readings) == 1


def test_a_source_that_is_absent_gives_way_without_a_failure() -> None:
    picture = read_memory([ScriptedProbe(lambda: Answer(absent="not installed"), lambda: answers(reading(4)))])
    assert picture.failures == ()
    assert len(picture.readings) == 1


@given(total=st.integers(-10, 1000), used=st.integers(-10, 1000), available=st.integers(-10, 1000))
def test_a_reading_without_a_fault_can_be_divided_and_compared(total: int, used: int, available: int) -> None:
    found = MemoryReading("card", MemoryKind.VRAM, total, used, available, "test")
    if not fault(found):
        assert 0 <= found.used_share <= 1
        assert 0 <= found.available_bytes <= found.total_bytes


def test_unified_memory_is_host_and_accelerator_at_once() -> None:
    unified = reading(1, kind=MemoryKind.UNIFIED)
    card, ram = reading(2, device="card", kind=MemoryKind.VRAM), reading(3)
    whole = read_memory([ScriptedProbe(lambda: answers(unified))])
    assert whole.host == unified
    assert whole.accelerators == (unified,)
    parted = read_memory([ScriptedProbe(lambda: answers(card, ram))])
    assert parted.host == ram
    assert parted.accelerators == (card,)
    assert parted.device("card") == card
    assert parted.device("none") is None


def test_closing_the_probes_is_idempotent_and_they_can_be_asked_again() -> None:
    probes = make_probes()
    assert len({probe.name for probe in probes}) == len(probes) == 5
    for _ in range(2):
        assert read_memory(probes).host is not None
        for probe in probes:
            probe.close()
            probe.close()


def test_a_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(subprocess.SubprocessError, match="code 3: no card"):
        run_command([sys.executable, "-c", "import sys; sys.stderr.write('no card\\nmore'); sys.exit(3)"])
    with pytest.raises(FileNotFoundError):
        run_command(["no-such-tool-of-any-vendor"])
    assert run_command([sys.executable, "-c", "print(7)"]) == "7\n"
