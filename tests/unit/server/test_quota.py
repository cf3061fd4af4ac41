"""The ledger: reserved, settled, refused with the numbers, and what is left where a process died."""

from __future__ import annotations

import sqlite3
import statistics
import threading
import time as real_time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kvloom.config import QuotaTier, load_settings
from kvloom.errors import AccountError, ConfigError, QuotaExceededError, UsageError
from kvloom.server.accounts import ACCOUNTS_NAME, MIGRATIONS, Accounts
from kvloom.server.keys import ApiKey, KeyRing
from kvloom.server.quota import QuotaLedger, Reservation
from kvloom.server.quota_headers import limit_headers, refusal_code, refusal_headers
from kvloom.server.quota_windows import LimitName
from tests.unit.server.ledgers import HOUR_US, LONGEST_LATE_US, FakeTime, kill, ledger_of, unlimited

Open = Callable[[QuotaTier], tuple[QuotaLedger, ApiKey]]

MAX_MEDIAN_S = 0.005
"""Far above what is measured (the number is printed), far below what a person notices: machines of CI are slow."""


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def open_ledger(tmp_path: Path, time: FakeTime) -> Iterator[Open]:
    opened: list[QuotaLedger] = []

    def open_one(tier: QuotaTier) -> tuple[QuotaLedger, ApiKey]:
        ledger, key = ledger_of(tmp_path, tier, time)
        opened.append(ledger)
        return ledger, key

    yield open_one
    for ledger in opened:
        ledger.accounts.close()


def remaining(ledger: QuotaLedger, key: ApiKey, name: LimitName) -> int:
    state = ledger.standing(key).get(name)
    assert state is not None
    return state.remaining


def refusal(ledger: QuotaLedger, key: ApiKey, num_tokens: int) -> QuotaExceededError:
    with pytest.raises(QuotaExceededError) as caught:
        ledger.reserve(key, num_tokens)
    return caught.value


def spend(ledger: QuotaLedger, key: ApiKey, num_tokens: int) -> None:
    assert ledger.settle(ledger.reserve(key, num_tokens), num_tokens)


def test_the_default_tier_has_the_promised_limits() -> None:
    tier = load_settings().tiers["default"]
    assert (tier.tokens_per_second, tier.tokens_per_hour, tier.tokens_per_day) == (1000, 1_000_000, 10_000_000)
    assert tier.requests_per_hour == 10_000


def test_a_reservation_counts_in_full_until_it_is_settled_with_what_was_used(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000))
    reservation = ledger.reserve(key, 600)
    assert reservation.standing.tokens is not None
    assert reservation.standing.tokens.remaining == 400
    assert refusal(ledger, key, 401).remaining == 400
    assert ledger.settle(reservation, 150)
    assert remaining(ledger, key, LimitName.TOKENS_PER_HOUR) == 850


def test_a_second_settle_charges_nothing(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000))
    reservation = ledger.reserve(key, 600)
    assert ledger.settle(reservation, 100)
    assert not ledger.settle(reservation, 600)
    assert not ledger.release(reservation)
    assert remaining(ledger, key, LimitName.TOKENS_PER_HOUR) == 900


def test_a_release_gives_the_tokens_and_the_request_back(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000, requests_per_hour=1))
    reservation = ledger.reserve(key, 600)
    assert ledger.release(reservation)
    assert not ledger.settle(reservation, 600)
    assert remaining(ledger, key, LimitName.TOKENS_PER_HOUR) == 1000
    assert remaining(ledger, key, LimitName.REQUESTS_PER_HOUR) == 1


def test_a_request_that_used_nothing_still_is_a_request(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(requests_per_hour=2))
    assert ledger.settle(ledger.reserve(key, 10), 0)
    assert remaining(ledger, key, LimitName.REQUESTS_PER_HOUR) == 1


def test_use_beyond_the_reservation_is_charged_as_it_was(open_ledger: Open, caplog: pytest.LogCaptureFixture) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000))
    ledger.settle(ledger.reserve(key, 10), 12)
    assert remaining(ledger, key, LimitName.TOKENS_PER_HOUR) == 988
    assert "12 tokens were used of 10 reserved" in caplog.text


@pytest.mark.parametrize("num_tokens", [0, -5, 10**30])
def test_a_number_that_is_none_cannot_be_reserved(open_ledger: Open, num_tokens: int) -> None:
    ledger, key = open_ledger(unlimited())
    with pytest.raises(UsageError):
        ledger.reserve(key, num_tokens)


@pytest.mark.parametrize(
    ("limit", "length_us"), [("tokens_per_hour", HOUR_US), ("tokens_per_day", 24 * HOUR_US)], ids=["hour", "day"]
)
def test_a_spent_window_has_room_exactly_after_the_wait_that_was_told(
    open_ledger: Open, time: FakeTime, limit: str, length_us: int
) -> None:
    ledger, key = open_ledger(unlimited(**{limit: 1000}))
    spend(ledger, key, 700)
    time.pass_s(600)
    spend(ledger, key, 300)
    error = refusal(ledger, key, 500)
    assert (error.limit_name, error.limit, error.remaining) == (limit, 1000, 0)
    assert error.retry_after_s is not None
    wait_us = round(error.retry_after_s * 10**6)
    assert length_us < wait_us + 600 * 10**6 <= length_us + LONGEST_LATE_US[length_us]
    time.pass_us(wait_us - 1)
    refusal(ledger, key, 500)
    time.pass_us(1)
    spend(ledger, key, 500)


def test_a_spent_day_makes_no_sense_to_ask_again_and_a_spent_hour_does(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=800, tokens_per_day=1000))
    spend(ledger, key, 800)
    hour = refusal(ledger, key, 100)
    assert (hour.limit_name, hour.is_spent, hour.should_retry) == ("tokens_per_hour", False, True)
    assert refusal_code(hour) == "rate_limit_exceeded"
    day = refusal(ledger, key, 300)
    assert (day.limit_name, day.is_spent, day.should_retry) == ("tokens_per_day", True, False)
    assert refusal_code(day) == "insufficient_quota"


def test_a_day_that_is_only_held_by_running_requests_is_worth_a_wait(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_day=1000))
    running = ledger.reserve(key, 900)
    error = refusal(ledger, key, 200)
    assert (error.is_spent, error.should_retry, error.retry_after_s) == (False, True, 1.0)
    assert "held by running requests" in str(error)
    ledger.settle(running, 10)
    spend(ledger, key, 200)


def test_a_request_larger_than_a_limit_never_passes_and_says_so(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_second=1000, burst_tokens=5000, tokens_per_day=9000))
    error = refusal(ledger, key, 6000)
    assert (error.limit_name, error.retry_after_s, error.should_retry) == ("tokens_per_second", None, False)
    assert "burst of 5,000 tokens" in str(error)
    assert "6,000" in str(error)
    assert refusal_code(error) == "rate_limit_exceeded"


def test_a_burst_passes_and_then_the_rate_holds(open_ledger: Open, time: FakeTime) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_second=1000, burst_tokens=5000))
    spend(ledger, key, 5000)
    error = refusal(ledger, key, 1500)
    assert (error.limit_name, error.retry_after_s) == ("tokens_per_second", 1.5)
    time.pass_s(1.499999)
    refusal(ledger, key, 1500)
    time.pass_us(1)
    spend(ledger, key, 1500)
    assert remaining(ledger, key, LimitName.TOKENS_PER_SECOND) == 0


def test_what_runs_does_not_drain_before_it_is_settled(open_ledger: Open, time: FakeTime) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_second=1000, burst_tokens=5000))
    running = ledger.reserve(key, 5000)
    time.pass_s(3600)
    refusal(ledger, key, 1)
    ledger.settle(running, 5000)
    refusal(ledger, key, 1)
    time.pass_s(0.001)
    spend(ledger, key, 1)


def test_requests_at_once_are_limited_and_a_place_comes_back(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(concurrent_requests=2))
    first = ledger.reserve(key, 1)
    ledger.reserve(key, 1)
    error = refusal(ledger, key, 1)
    assert (error.limit_name, error.limit, error.remaining) == ("concurrent_requests", 2, 0)
    assert error.should_retry
    ledger.settle(first, 1)
    ledger.reserve(key, 1)


def test_requests_an_hour_are_limited(open_ledger: Open, time: FakeTime) -> None:
    ledger, key = open_ledger(unlimited(requests_per_hour=2))
    spend(ledger, key, 1)
    spend(ledger, key, 1)
    error = refusal(ledger, key, 1)
    assert error.limit_name == "requests_per_hour"
    assert error.retry_after_s is not None
    time.pass_s(error.retry_after_s)
    spend(ledger, key, 1)


def test_of_several_limits_the_one_that_lasts_longest_is_told(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_second=10, burst_tokens=100, tokens_per_hour=100))
    spend(ledger, key, 100)
    assert refusal(ledger, key, 50).limit_name == "tokens_per_hour"


def test_one_keys_use_is_not_anothers(tmp_path: Path, open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000))
    with Accounts(tmp_path) as accounts:
        other = KeyRing(accounts).add("other").key
    spend(ledger, key, 1000)
    spend(ledger, other, 1000)


def test_a_tier_that_the_settings_lost_is_an_error_that_names_it(open_ledger: Open, tmp_path: Path) -> None:
    with Accounts(tmp_path) as accounts:
        gold = KeyRing(accounts).add("g", tier="gold").key
    ledger, _ = open_ledger(unlimited())
    with pytest.raises(ConfigError, match=r"'gold'.*default"):
        ledger.reserve(gold, 1)


# --- over restarts and deaths ----------------------------------------------------------------------------------------


def test_use_outlives_a_restart(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000, tokens_per_second=1, burst_tokens=2000))
    spend(ledger, key, 900)
    ledger.close()
    again, key = open_ledger(unlimited(tokens_per_hour=1000, tokens_per_second=1, burst_tokens=2000))
    assert remaining(again, key, LimitName.TOKENS_PER_HOUR) == 100
    assert remaining(again, key, LimitName.TOKENS_PER_SECOND) == 1100


def test_what_a_killed_process_left_open_is_used_in_full_and_its_places_are_free(
    open_ledger: Open, time: FakeTime
) -> None:
    tier = unlimited(tokens_per_hour=1000, concurrent_requests=2)
    ledger, key = open_ledger(tier)
    ledger.reserve(key, 300)
    ledger.reserve(key, 200)
    kill(ledger)
    again, key = open_ledger(tier)
    assert remaining(again, key, LimitName.CONCURRENT_REQUESTS) == 2
    assert remaining(again, key, LimitName.TOKENS_PER_HOUR) == 500
    time.pass_us(HOUR_US)
    assert remaining(again, key, LimitName.TOKENS_PER_HOUR) == 500, "it may have been used until the death was seen"
    time.pass_us(LONGEST_LATE_US[HOUR_US])
    assert remaining(again, key, LimitName.TOKENS_PER_HOUR) == 1000


def test_a_death_beside_a_living_process_is_seen_when_it_is_in_the_way(open_ledger: Open) -> None:
    tier = unlimited(tokens_per_hour=1000, concurrent_requests=1)
    living, key = open_ledger(tier)
    dying, _ = open_ledger(tier)
    dying.reserve(key, 300)
    assert refusal(living, key, 1).limit_name == "concurrent_requests"
    kill(dying)
    reservation = living.reserve(key, 700)
    assert reservation.standing.tokens is not None
    assert reservation.standing.tokens.remaining == 0


def test_a_living_process_keeps_what_it_reserved_when_another_starts(open_ledger: Open) -> None:
    tier = unlimited(tokens_per_hour=1000, concurrent_requests=2)
    ledger, key = open_ledger(tier)
    reservation = ledger.reserve(key, 300)
    other, _ = open_ledger(tier)
    assert remaining(other, key, LimitName.CONCURRENT_REQUESTS) == 1
    assert ledger.settle(reservation, 100)
    assert remaining(other, key, LimitName.TOKENS_PER_HOUR) == 900


def test_the_dead_are_charged_once_however_many_come_after(open_ledger: Open) -> None:
    tier = unlimited(tokens_per_hour=1000)
    ledger, key = open_ledger(tier)
    ledger.reserve(key, 300)
    kill(ledger)
    with ThreadPoolExecutor(6) as pool:
        opened = [pair[0] for pair in pool.map(lambda _: open_ledger(tier), range(6))]
    assert {remaining(one, key, LimitName.TOKENS_PER_HOUR) for one in opened} == {700}


def test_a_ledger_that_is_closed_charges_what_is_open_and_reserves_no_more(open_ledger: Open, tmp_path: Path) -> None:
    tier = unlimited(tokens_per_hour=1000)
    ledger, key = open_ledger(tier)
    ledger.reserve(key, 300)
    ledger.close()
    ledger.close()
    with pytest.raises(AccountError, match="closed"):
        ledger.reserve(key, 1)
    assert remaining(open_ledger(tier)[0], key, LimitName.TOKENS_PER_HOUR) == 700
    assert len(list((tmp_path / "accounts.holders").iterdir())) == 1


def test_a_clock_that_is_set_back_frees_nothing_and_stops_nothing(open_ledger: Open, time: FakeTime) -> None:
    tier = unlimited(tokens_per_hour=1000, tokens_per_second=1, burst_tokens=1000)
    ledger, key = open_ledger(tier)
    spend(ledger, key, 1000)
    time.wall_offset_us = -5 * HOUR_US
    refusal(ledger, key, 1)
    ledger.close()
    again, key = open_ledger(tier)
    refusal(again, key, 1)
    time.pass_us(HOUR_US - 10**6)
    refusal(again, key, 1)
    time.pass_us(10**6 + LONGEST_LATE_US[HOUR_US])
    spend(again, key, 1000)


def test_two_processes_have_one_time_under_a_clock_that_was_set_back(open_ledger: Open, time: FakeTime) -> None:
    tier = unlimited(tokens_per_second=2, burst_tokens=700)
    first, key = open_ledger(tier)
    time.pass_s(7)
    time.wall_offset_us = -HOUR_US
    second, _ = open_ledger(tier)
    spend(second, key, 300)
    refusal(first, key, 401)
    time.pass_s(0.5)
    spend(first, key, 401)


def test_accounts_of_the_first_version_are_carried_over(open_ledger: Open, time: FakeTime, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / ACCOUNTS_NAME, isolation_level=None)) as db:
        for statement in MIGRATIONS[0].split(";"):
            db.execute(statement)
        db.execute("UPDATE time SET latest_us = ?", (time.true_us + HOUR_US,))
        db.execute("PRAGMA user_version = 1")
    tier = unlimited(tokens_per_hour=1000)
    ledger, key = open_ledger(tier)
    spend(ledger, key, 1000)
    with closing(sqlite3.connect(tmp_path / ACCOUNTS_NAME)) as db:
        (latest_us,) = db.execute("SELECT latest_us FROM time").fetchone()
    assert latest_us == time.true_us + HOUR_US


def test_the_tables_do_not_grow_with_use(open_ledger: Open, time: FakeTime, tmp_path: Path) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_day=10**9))
    for _ in range(1500):
        spend(ledger, key, 10)
        time.pass_s(97)
    with sqlite3.connect(tmp_path / ACCOUNTS_NAME) as db:
        (num_rows,) = db.execute("SELECT COUNT(*) FROM slots").fetchone()
    db.close()
    assert 300 < num_rows <= 2 * 361


# --- many at once ----------------------------------------------------------------------------------------------------


def test_threads_together_never_get_more_than_there_is(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=50_000, concurrent_requests=40))
    granted: list[int] = []
    at_once = [0, 0]
    lock = threading.Lock()

    def stream(number: int) -> None:
        num_tokens = 50 + number % 7 * 30
        for _ in range(8):
            try:
                reservation = ledger.reserve(key, num_tokens)
            except QuotaExceededError:
                continue
            with lock:
                at_once[0] += 1
                at_once[1] = max(at_once)
            used = num_tokens - number % 3 * 20
            granted.append(used)
            with lock:
                at_once[0] -= 1
            assert ledger.settle(reservation, used)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(stream, range(128)))
    assert sum(granted) <= 50_000
    assert at_once[1] <= 40
    assert remaining(ledger, key, LimitName.TOKENS_PER_HOUR) == 50_000 - sum(granted)
    assert remaining(ledger, key, LimitName.CONCURRENT_REQUESTS) == 40


def test_reserve_and_settle_are_too_fast_to_be_felt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Accounts(tmp_path) as accounts, QuotaLedger(accounts, {"default": QuotaTier()}) as ledger:
        key = KeyRing(accounts).add("k").key
        reserve_s, settle_s = [], []
        for _ in range(300):
            began = real_time.perf_counter()
            reservation: Reservation = ledger.reserve(key, 1000)
            between = real_time.perf_counter()
            ledger.settle(reservation, 100)
            reserve_s.append(between - began)
            settle_s.append(real_time.perf_counter() - between)
    medians = statistics.median(reserve_s), statistics.median(settle_s)
    with capsys.disabled():
        print(f"\nreserve {medians[0] * 1000:.3f} ms, settle {medians[1] * 1000:.3f} ms (medians of 300)")
    assert max(medians) < MAX_MEDIAN_S


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(open_ledger: Open) -> tuple[QuotaLedger, ApiKey]:
    ledger, key = open_ledger(unlimited(tokens_per_day=1000, requests_per_hour=10, tokens_per_hour=5000))
    spend(ledger, key, 900)
    return ledger, key


def test_headers_of_a_reply_tell_the_limits(refused: tuple[QuotaLedger, ApiKey]) -> None:
    ledger, key = refused
    headers = limit_headers(ledger.reserve(key, 60).standing)
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "8"
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert headers["x-ratelimit-remaining-tokens"] == "40"
    assert 86_400 < int(headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 86_640


def test_headers_of_a_refusal_tell_when_and_whether_to_ask_again(refused: tuple[QuotaLedger, ApiKey]) -> None:
    ledger, key = refused
    spent = refusal(ledger, key, 200)
    headers = refusal_headers(spent, ledger.standing(key))
    assert headers["x-should-retry"] == "false"
    assert 86_400 < int(headers["retry-after"]) <= 86_640
    too_large = refusal(ledger, key, 6000)
    headers = refusal_headers(too_large, ledger.standing(key))
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers


def test_a_program_should_not_ask_again_where_the_wait_is_longer_than_clients_wait(open_ledger: Open) -> None:
    ledger, key = open_ledger(unlimited(tokens_per_hour=1000))
    spend(ledger, key, 900)
    headers = refusal_headers(refusal(ledger, key, 200), ledger.standing(key))
    assert int(headers["retry-after"]) > 60
    assert headers["x-should-retry"] == "false"
