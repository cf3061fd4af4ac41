"""The sums alone: slots, the bucket, what has room."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.server.clock import Mark, SteadyClock, this_boot
from kvloom.server.quota_windows import (
    DAY,
    HOUR,
    WINDOWS,
    KeyUse,
    LimitName,
    Slot,
    Window,
    WindowUse,
    bucket_wait_s,
    drained,
    shortages,
    slots_wait_us,
    standing,
)
from tests.unit.server.ledgers import Used, most_beyond_the_rate, most_in_a_window, unlimited

MOMENTS = st.integers(10**15, 3 * 10**15)


@given(st.sampled_from(WINDOWS), MOMENTS, st.integers(0, 200_000 * 10**6))
def test_what_happens_counts_for_a_window_and_at_most_one_slot_longer(
    window: Window, at_us: int, later_us: int
) -> None:
    counts = window.slot(at_us) >= window.oldest(at_us + later_us)
    if later_us <= window.length_us:
        assert counts
    if later_us > window.length_us + window.slot_us:
        assert not counts


@given(st.sampled_from(WINDOWS), MOMENTS)
def test_a_slot_stops_counting_at_the_microsecond_that_is_told(window: Window, at_us: int) -> None:
    slot = window.slot(at_us)
    leaves_us = window.leaves_us(slot)
    assert slot >= window.oldest(leaves_us - 1)
    assert slot < window.oldest(leaves_us)
    assert window.length_us < leaves_us - at_us <= window.length_us + window.slot_us


def test_a_window_has_at_most_361_slots_that_count() -> None:
    now_us = 1_800_000_000_000_123
    assert all(window.slot(now_us) - window.oldest(now_us) + 1 == 361 for window in (HOUR, DAY))


def test_a_bucket_drains_by_the_rate_to_nothing() -> None:
    assert drained(5_000_000, 1_000, 1000) == 4_000_000
    assert drained(5_000_000, 10**9, 1000) == 0
    assert drained(5_000_000, 10**9, 0) == 5_000_000


@given(st.integers(0, 10**12), st.integers(1, 1000), st.integers(1, 50_000))
def test_after_the_wait_a_bucket_has_room_and_a_microsecond_before_it_has_none(
    owed: int, wanted: int, rate: int
) -> None:
    tier = unlimited(tokens_per_second=rate, burst_tokens=1000)
    use = KeyUse(0, 0, 0, owed, WindowUse(), WindowUse())
    if not shortages(tier, use, wanted):
        return
    wait_us = round(bucket_wait_s(tier, use, wanted) * 10**6)

    def after(us: int) -> KeyUse:
        return KeyUse(us, 0, 0, drained(owed, us, rate), WindowUse(), WindowUse())

    assert not shortages(tier, after(wait_us), wanted)
    assert shortages(tier, after(wait_us - 1), wanted)


def test_slots_leave_the_oldest_first() -> None:
    slots = [Slot(100, 5, 1), Slot(103, 7, 2)]
    assert slots_wait_us(slots, HOUR, 0, 5, of_requests=False) == HOUR.leaves_us(100)
    assert slots_wait_us(slots, HOUR, 0, 6, of_requests=False) == HOUR.leaves_us(103)
    assert slots_wait_us(slots, HOUR, 0, 2, of_requests=True) == HOUR.leaves_us(103)


def test_a_standing_names_the_limits_that_are_set_and_the_tightest_of_the_tokens() -> None:
    tier = unlimited(tokens_per_hour=1000, tokens_per_day=1500, concurrent_requests=4)
    use = KeyUse(0, 1, 100, 0, WindowUse(200, 2, 1), WindowUse(900, 9, 1))
    now = standing(tier, use)
    assert {state.name for state in now.limits} == {
        LimitName.TOKENS_PER_HOUR,
        LimitName.TOKENS_PER_DAY,
        LimitName.CONCURRENT_REQUESTS,
    }
    assert now.requests is None
    assert now.tokens is not None
    assert (now.tokens.name, now.tokens.limit, now.tokens.remaining) == (LimitName.TOKENS_PER_DAY, 1500, 500)


def test_a_clock_goes_by_what_has_passed_whatever_the_wall_clock_is_set_to() -> None:
    wall, monotonic = [5_000_000_000], [1000]
    clock = SteadyClock(lambda: wall[0], lambda: monotonic[0])
    assert clock.now_us() == 5_000_000
    wall[0], monotonic[0] = 1_000_000_000, 2_000_001_000
    assert clock.now_us() == 7_000_000
    wall[0] = 9_000_000_000
    monotonic[0] += 500
    assert clock.now_us() == 7_000_000
    monotonic[0] += 500
    assert clock.now_us() == 7_000_001


def test_a_clock_goes_on_from_a_mark_that_is_later() -> None:
    monotonic = [700]
    clock = SteadyClock(lambda: 5_000_000_000, lambda: monotonic[0], "this")
    late = Mark(20_000_000, "another", 10**12)
    assert clock.after(late).latest_us == 20_000_000
    monotonic[0] += 1_000_000
    assert clock.after(late).latest_us == 20_001_000
    assert clock.now_us() == 20_001_000


def test_clocks_that_count_alike_have_one_time_whatever_the_wall_clock_was_when_they_began() -> None:
    passed = [10**9]
    first = SteadyClock(lambda: 9 * 10**9, lambda: passed[0], "this")
    mark = first.after(Mark(0, "", 0))
    passed[0] += 5432
    second = SteadyClock(lambda: 2 * 10**9, lambda: passed[0], "this")
    assert second.after(mark).latest_us == first.now_us() == 9_000_005
    assert second.after(mark) == first.after(mark)


def test_a_start_of_the_machine_begins_a_count_of_its_own() -> None:
    mark = SteadyClock(lambda: 9 * 10**9, lambda: 5 * 10**9, "the first").after(Mark(0, "", 0))
    right = SteadyClock(lambda: 12 * 10**9, lambda: 10**9, "the second")
    assert right.after(mark).latest_us == 12_000_000
    set_back = SteadyClock(lambda: 3 * 10**9, lambda: 10**9, "the second")
    assert set_back.after(mark).latest_us == 9_000_000


def test_all_processes_of_a_machine_name_its_start_alike() -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from kvloom.server.clock import this_boot; print(this_boot())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == this_boot() != ""


def test_the_measures_of_these_tests_see_an_overshoot() -> None:
    uses = [Used(0, 5), Used(10, 5), Used(11, 1)]
    assert most_in_a_window(uses, 10) == 6
    assert most_in_a_window(uses, 11) == 10
    assert most_in_a_window(uses, 12) == 11
    assert most_beyond_the_rate([Used(0, 5), Used(10**6, 5)], 2) == pytest.approx(8)
