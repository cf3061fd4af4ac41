"""The ledger against a model: requests, deaths, restarts and clocks in any order; no window is ever overshot."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from kvloom.config import QuotaTier
from kvloom.errors import QuotaExceededError
from kvloom.server.quota import QuotaLedger, Reservation
from kvloom.server.quota_windows import LimitName
from tests.unit.server.ledgers import (
    DAY_US,
    HOUR_US,
    LONGEST_LATE_US,
    FakeTime,
    Used,
    kill,
    ledger_of,
    most_beyond_the_rate,
    most_in_a_window,
    unlimited,
)

RATE = 2
TIERS = (
    unlimited(tokens_per_hour=1000, requests_per_hour=6),
    unlimited(tokens_per_day=1000, concurrent_requests=3),
    unlimited(tokens_per_second=RATE, burst_tokens=700),
    unlimited(
        tokens_per_second=RATE, burst_tokens=700, tokens_per_hour=1000, tokens_per_day=3000,
        requests_per_hour=12, concurrent_requests=4,
    ),
)  # fmt: skip
NO_LIMIT = 10**12
STRIDES_S = (0.000001, 0.4, 7, 60, 250, 1799, 3600, 20_000, 86_400)
NEAR_AN_EDGE_US = (-1, 0, 1, -5 * 10**6, 5 * 10**6, 10 * 10**6 + 1, 240 * 10**6 + 1)


@dataclass
class Asked:
    """A request as it really went: what it used, and when, whatever the ledger thinks of it."""

    process: int
    reservation: Reservation
    num_used: int = 0
    settled_us: int | None = None
    num_charged: int = 0


@dataclass
class Process:
    ledger: QuotaLedger
    open: list[Asked] = field(default_factory=list)


class QuotaMachine(RuleBasedStateMachine):
    """Two processes over one home. Real time is `time.true_us`; the wall clock is set back now and then."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.time = FakeTime()
        self.uses: list[Used] = []
        self.begun: list[Used] = []
        self.asked: list[Asked] = []
        self.had_wrong_clock = False
        self.processes: list[Process] = []

    @initialize(tier=st.sampled_from(TIERS))
    def begin(self, tier: QuotaTier) -> None:
        self.tier = tier
        self.processes = [self.new_process(), self.new_process()]

    def new_process(self) -> Process:
        ledger, self.key = ledger_of(Path(self.folder.name), self.tier, self.time)
        return Process(ledger)

    # -- what happens -------------------------------------------------------------------------------------------

    @rule(target=running, process=st.integers(0, 1), num_tokens=st.integers(1, 600))
    def reserve(self, process: int, num_tokens: int) -> Asked | None:
        must, may = self.has_room(num_tokens, late=True), self.has_room(num_tokens, late=False)
        owner = self.processes[process]
        reservation: Reservation | None = None
        with contextlib.suppress(QuotaExceededError):
            reservation = owner.ledger.reserve(self.key, num_tokens)
        if reservation is None:
            # Over a start of the machine with a wrong clock the time between does not count: strict, never lenient.
            assert self.had_wrong_clock or not must, "there is room, and it was refused"
            return None
        assert may, "more was granted than there is"
        asked = Asked(process, reservation)
        self.asked.append(asked)
        self.begun.append(Used(self.time.true_us, 1))
        owner.open.append(asked)
        return asked

    @rule(process=st.integers(0, 1), num_tokens=st.integers(300, 600))
    def spend(self, process: int, num_tokens: int) -> None:
        """A request that uses all that it asked for, at once."""
        asked = self.reserve(process, num_tokens)
        if asked is not None:
            self.use(asked, 1.0)
            self.settle(asked, twice=False)

    @rule(asked=running, share=st.floats(0, 1))
    def use(self, asked: Asked | None, share: float) -> None:
        """The engine gives some of the tokens that are left."""
        if asked is None or asked.settled_us is not None:
            return
        num_tokens = int((asked.reservation.num_tokens - asked.num_used) * share)
        asked.num_used += num_tokens
        self.uses.append(Used(self.time.true_us, num_tokens))

    @rule(asked=consumes(running), twice=st.booleans())
    def settle(self, asked: Asked | None, twice: bool) -> None:
        if asked is None or asked.settled_us is not None:
            return
        owner = self.processes[asked.process]
        assert owner.ledger.settle(asked.reservation, asked.num_used)
        if twice:
            assert not owner.ledger.settle(asked.reservation, asked.reservation.num_tokens)
        self.end(asked, asked.num_used)

    @rule(process=st.integers(0, 1), is_killed=st.booleans(), hours_back=st.sampled_from((0, 0, 1, 30)))
    def restart(self, process: int, is_killed: bool, hours_back: int) -> None:
        """It ends or is killed, and another takes its place; the clock may have been set back. What was open counts."""
        old = self.processes[process]
        if is_killed:
            kill(old.ledger)
        else:
            old.ledger.close()
        old.ledger.accounts.close()
        self.time.wall_offset_us -= hours_back * HOUR_US
        self.processes[process] = self.new_process()
        for asked in list(old.open):
            self.end(asked, asked.reservation.num_tokens, old)

    @rule(seconds_off=st.sampled_from(STRIDES_S), hours_back=st.sampled_from((0, 0, 1, 30)))
    def power_off(self, seconds_off: float, hours_back: int) -> None:
        """The machine goes out with all that runs on it, and on again; its clock may have been set back meanwhile."""
        for old in self.processes:
            kill(old.ledger)
            old.ledger.accounts.close()
        self.time.pass_s(seconds_off)
        self.time.wall_offset_us -= hours_back * HOUR_US
        self.time.boot()
        self.had_wrong_clock |= self.time.wall_offset_us < 0
        died, self.processes = self.processes, []
        self.processes = [self.new_process(), self.new_process()]
        for old in died:
            for asked in list(old.open):
                self.end(asked, asked.reservation.num_tokens, old)

    @rule(seconds=st.sampled_from(STRIDES_S))
    def wait(self, seconds: float) -> None:
        self.time.pass_s(seconds)

    @rule(
        process=st.integers(0, 1),
        num_tokens=st.integers(300, 600),
        off_us=st.sampled_from(NEAR_AN_EDGE_US),
        which=st.integers(0, 2),
    )
    def spend_at_an_edge(self, process: int, num_tokens: int, off_us: int, which: int) -> None:
        """Where something that was used is about to leave a window, or just has."""
        length_us = DAY_US if self.tier.tokens_per_hour is None else HOUR_US
        used = [use.at_us for use in self.uses if use.num_tokens]
        if which < len(used):
            self.time.pass_us(max(0, used[-1 - which] + length_us + off_us - self.time.true_us))
        self.spend(process, num_tokens)

    # -- the model ----------------------------------------------------------------------------------------------

    def end(self, asked: Asked, num_charged: int, owner: Process | None = None) -> None:
        asked.settled_us, asked.num_charged = self.time.true_us, num_charged
        (owner or self.processes[asked.process]).open.remove(asked)

    def counted(self, length_us: int, *, late: bool) -> tuple[int, int]:
        """Tokens and requests that count in a window that ends now; `late`: as long as they may at the longest."""
        length_us += LONGEST_LATE_US[length_us] if late else 0
        tokens = requests = 0
        for asked in self.asked:
            if asked.settled_us is None or asked.settled_us > self.time.true_us - length_us:
                tokens += asked.reservation.num_tokens if asked.settled_us is None else asked.num_charged
                requests += 1
        return tokens, requests

    def has_room(self, num_tokens: int, *, late: bool) -> bool:
        opened = [asked for asked in self.asked if asked.settled_us is None]
        hour_tokens, hour_requests = self.counted(HOUR_US, late=late)
        day_tokens, _ = self.counted(DAY_US, late=late)
        settled = [Used(a.settled_us, a.num_charged) for a in self.asked if a.settled_us is not None]
        level = self.level_now(settled) + num_tokens + sum(asked.reservation.num_tokens for asked in opened)
        return (
            len(opened) < (self.tier.concurrent_requests or NO_LIMIT)
            and hour_requests < (self.tier.requests_per_hour or NO_LIMIT)
            and hour_tokens + num_tokens <= (self.tier.tokens_per_hour or NO_LIMIT)
            and day_tokens + num_tokens <= (self.tier.tokens_per_day or NO_LIMIT)
            and (self.tier.tokens_per_second is None or level <= self.tier.burst_tokens)
        )

    def level_now(self, settled: list[Used]) -> float:
        """What the bucket owes, in tokens; times and the rate are whole numbers, so it is exact."""
        level = last_us = 0
        for use in sorted(settled, key=lambda use: use.at_us):
            level = max(0, level - (use.at_us - last_us) * RATE) + use.num_tokens * 10**6
            last_us = use.at_us
        return max(0, level - (self.time.true_us - last_us) * RATE) / 10**6

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def no_window_is_overshot(self) -> None:
        if not self.processes:
            return
        tier = self.tier
        assert most_in_a_window(self.uses, HOUR_US) <= (tier.tokens_per_hour or NO_LIMIT)
        assert most_in_a_window(self.uses, DAY_US) <= (tier.tokens_per_day or NO_LIMIT)
        assert most_in_a_window(self.begun, HOUR_US) <= (tier.requests_per_hour or NO_LIMIT)
        if tier.tokens_per_second is not None:
            assert most_beyond_the_rate(self.uses, RATE) <= tier.burst_tokens + 1e-6

    @invariant()
    def what_runs_is_what_the_ledger_holds(self) -> None:
        if not self.processes or self.tier.concurrent_requests is None:
            return
        num_open = sum(len(process.open) for process in self.processes)
        state = self.processes[0].ledger.standing(self.key).get(LimitName.CONCURRENT_REQUESTS)
        assert state is not None
        assert state.remaining == self.tier.concurrent_requests - num_open

    def teardown(self) -> None:
        for process in self.processes:
            process.ledger.close()
            process.ledger.accounts.close()
        self.folder.cleanup()


TestQuotaModel = QuotaMachine.TestCase
TestQuotaModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
