from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvloom.errors import UsageError
from kvloom.memory.monitor import LowMemory, MemoryMonitor, Pace
from kvloom.memory.probe import make_probes, read_memory
from kvloom.memory.reading import MemoryPicture
from tests.unit.memory.pictures import picture

SOON_S = 10.0
"""Far above what a loaded machine needs; a test that waits this long has failed."""


class Script:
    """Readings and a clock that tests turn by hand."""

    def __init__(self) -> None:
        self.used: tuple[int, ...] = (0,)
        self.now = 0.0

    def read(self) -> MemoryPicture:
        return picture(*self.used)

    def clock(self) -> float:
        return self.now

    def step(self, monitor: MemoryMonitor, *used: int, seconds: float = 5.0) -> None:
        self.used = used
        self.now += seconds
        monitor.poll()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def monitor(script: Script) -> MemoryMonitor:
    return MemoryMonitor(script.read, clock=script.clock)


def collect(monitor: MemoryMonitor, share: float = 0.8) -> tuple[list[tuple[str, int]], Callable[[], None]]:
    """Events as (device, used) as they come, and how to stop that."""
    found: list[tuple[str, int]] = []

    def note(event: LowMemory) -> None:
        assert event.share == share
        found.append((event.reading.device, event.reading.used_bytes))

    return found, monitor.on_low_memory(note, share)


def test_low_memory_is_told_once_a_crossing_and_again_only_after_it_fell_well_below(
    script: Script, monitor: MemoryMonitor
) -> None:
    events, _ = collect(monitor)
    for used in (79, 80, 95, 81, 76, 80, 75, 85):
        script.step(monitor, used)
    assert events == [("0", 80)]
    for used in (74, 79, 83):
        script.step(monitor, used)
    assert events == [("0", 80), ("0", 83)]


def test_every_device_and_every_subscription_has_its_own_crossings(script: Script, monitor: MemoryMonitor) -> None:
    low, _ = collect(monitor, 0.5)
    high, _ = collect(monitor, 0.9)
    script.step(monitor, 60, 10)
    script.step(monitor, 95, 70)
    script.step(monitor, 95, 91)
    assert low == [("0", 60), ("1", 70)]
    assert high == [("0", 95), ("1", 91)]


def test_a_memory_that_is_low_already_is_told_with_the_next_reading(script: Script, monitor: MemoryMonitor) -> None:
    script.step(monitor, 90)
    events, _ = collect(monitor)
    script.step(monitor, 90)
    assert events == [("0", 90)]


def test_who_unsubscribed_hears_no_more(script: Script, monitor: MemoryMonitor) -> None:
    events, stop = collect(monitor)
    pictures: list[MemoryPicture] = []
    stop_pictures = monitor.on_reading(pictures.append)
    stop()
    stop()
    script.step(monitor, 99)
    assert events == []
    assert len(pictures) == 1
    stop_pictures()
    stop_pictures()
    script.step(monitor, 10)
    assert len(pictures) == 1


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    script: Script, monitor: MemoryMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("bug in a callback")

    monitor.on_reading(fail)
    monitor.on_low_memory(fail)
    events, _ = collect(monitor)
    with caplog.at_level(logging.ERROR):
        script.step(monitor, 90)
    assert events == [("0", 90)]
    assert caplog.text.count("RuntimeError: bug in a callback") == 2


def test_a_callback_may_unsubscribe_itself_and_others(script: Script, monitor: MemoryMonitor) -> None:
    heard: list[str] = []
    stops: list[Callable[[], None]] = []

    def first(_: LowMemory) -> None:
        heard.append("first")
        for stop in stops:
            stop()

    stops.append(monitor.on_low_memory(first))
    stops.append(monitor.on_low_memory(lambda _: heard.append("second")))
    script.step(monitor, 90)
    script.step(monitor, 10)
    script.step(monitor, 90)
    assert heard == ["first"]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(monitor: MemoryMonitor, share: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        monitor.on_low_memory(lambda _: None, share)


def test_before_the_first_reading_nothing_is_known(monitor: MemoryMonitor) -> None:
    assert monitor.latest is None
    assert monitor.trend("0") is None


def test_latest_and_trend_come_from_the_readings(script: Script, monitor: MemoryMonitor) -> None:
    for used in (10, 20, 30):
        script.step(monitor, used, seconds=5)
    assert monitor.latest == picture(30)
    assert monitor.trend("0") == pytest.approx(2)


def test_a_busy_engine_is_watched_more_closely(monitor: MemoryMonitor) -> None:
    assert monitor.interval_s == Pace().rest_s == 30
    with monitor.busy(), monitor.busy():
        assert monitor.interval_s == Pace().busy_s == 5
    assert monitor.interval_s == 30


def test_an_inference_that_fails_ends_the_closer_watch(monitor: MemoryMonitor) -> None:
    with pytest.raises(RuntimeError), monitor.busy():
        raise RuntimeError
    assert monitor.interval_s == 30


def test_the_thread_reads_at_once_then_at_its_pace_and_speeds_up_when_busy(script: Script) -> None:
    counts: list[int] = []
    first, third = threading.Event(), threading.Event()

    def note(_: MemoryPicture) -> None:
        assert threading.current_thread().name == "kvloom-memory"
        counts.append(1)
        first.set()
        if len(counts) >= 3:
            third.set()

    monitor = MemoryMonitor(script.read, pace=Pace(busy_s=0.01, rest_s=3600))
    monitor.on_reading(note)
    monitor.start()
    monitor.start()
    assert first.wait(SOON_S)
    assert not third.wait(0.1)  # at rest the next reading is an hour away
    assert len(counts) == 1
    with monitor.busy():
        assert third.wait(SOON_S)
    monitor.close()


def test_a_reading_that_fails_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    answers: Iterator[Exception | MemoryPicture] = iter([RuntimeError("no luck"), picture(5)])
    read_twice = threading.Event()

    def read() -> MemoryPicture:
        answer = next(answers, picture(6))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monitor = MemoryMonitor(read, pace=Pace(0.01, 0.01))
    monitor.on_reading(lambda _: read_twice.set())
    with caplog.at_level(logging.ERROR), monitor:
        assert read_twice.wait(SOON_S)
    assert "no luck" in caplog.text


def test_closing_ends_the_thread_at_once_and_twice_is_nothing(script: Script) -> None:
    monitor = MemoryMonitor(script.read)
    monitor.start()
    thread = monitor._thread
    assert thread is not None
    started = time.monotonic()
    monitor.close()
    monitor.close()
    assert time.monotonic() - started < SOON_S
    assert not thread.is_alive()
    monitor.start()
    assert monitor._thread in (None, thread)
    assert not thread.is_alive()


def test_a_monitor_that_never_started_can_be_closed() -> None:
    monitor = MemoryMonitor()
    assert monitor.poll().host is not None
    monitor.close()
    monitor.close()


@pytest.mark.parametrize("in_its_thread", [True, False])
def test_a_callback_may_close_the_monitor(script: Script, in_its_thread: bool) -> None:
    monitor = MemoryMonitor(script.read, pace=Pace(3600, 3600))
    closed = threading.Event()

    def close(_: MemoryPicture) -> None:
        monitor.close()
        closed.set()

    if in_its_thread:
        monitor.on_reading(close)
        monitor.start()
    else:
        monitor.start()
        monitor.on_reading(close)
        monitor.poll()
    assert closed.wait(SOON_S)
    monitor.close()


def test_events_come_when_another_part_of_the_process_takes_the_memory(script: Script) -> None:
    told = threading.Event()
    with MemoryMonitor(script.read, pace=Pace(0.01, 0.01)) as monitor:
        monitor.on_low_memory(lambda _: told.set())
        assert not told.wait(0.05)
        script.used = (85,)
        assert told.wait(SOON_S)


HOG = """
import resource, threading
import psutil
from kvloom.memory.guard import Guard, Level
from pathlib import Path
from kvloom.memory.host import HostProbe
from kvloom.memory.monitor import MemoryMonitor, Pace
from kvloom.memory.probe import read_memory
told, quiet = threading.Event(), threading.Event()
limit = psutil.Process().memory_info().vms + 1024**3
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
guard, crossings = Guard(), []
def observe(picture):
    crossing = guard.observe(picture.host.used_bytes, picture.host.total_bytes)
    crossings.extend([] if crossing is None else [crossing])
    quiet.set()
# The limit is the tightest, however little the machine has free.
probe = HostProbe([("test", lambda: (1 << 50, 1 << 50))], Path("/nowhere"), lambda: False)
with MemoryMonitor(lambda: read_memory([probe]), pace=Pace(0.01, 0.01)) as monitor:
    monitor.on_reading(observe)
    monitor.on_low_memory(lambda event: told.set(), 0.8)
    assert quiet.wait(10) and not told.is_set(), monitor.latest
    hog = bytearray(int(limit * 0.85) - psutil.Process().memory_info().vms)
    assert told.wait(10), monitor.latest
assert [crossing.after for crossing in crossings] == [Level.SOFT], crossings
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to this limit")
def test_a_real_hog_within_a_real_limit_is_noticed_by_monitor_and_guard() -> None:
    done = subprocess.run([sys.executable, "-c", HOG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_watching_costs_less_than_half_a_percent_of_a_core() -> None:
    probes = make_probes()
    read_memory(probes)  # the first one imports libraries
    num_readings = 50
    before = time.thread_time()
    for _ in range(num_readings):
        read_memory(probes)
    share = (time.thread_time() - before) / num_readings / Pace().busy_s
    assert share < 0.005
