"""What the tests of accounts share: a clock that is moved by hand, a home with a key, the sums of what was used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvloom.config import QuotaTier
from kvloom.server.accounts import Accounts
from kvloom.server.clock import SteadyClock
from kvloom.server.keys import ApiKey, KeyRing
from kvloom.server.quota import QuotaLedger

HOUR_US = 3600 * 10**6
DAY_US = 24 * HOUR_US
LONGEST_LATE_US = {HOUR_US: 10 * 10**6, DAY_US: 240 * 10**6}
"""So much later than the window's length quota may come back."""


class FakeTime:
    """The machine's two clocks. `pass_us` lets time pass, `wall_offset_us` sets the wall clock alone."""

    def __init__(self, start_us: int = 1_800_000_000 * 10**6) -> None:
        self.true_us = start_us
        self.wall_offset_us = 0
        self.booted_us = start_us

    def pass_us(self, us: int) -> None:
        self.true_us += us

    def pass_s(self, seconds: float) -> None:
        self.pass_us(round(seconds * 10**6))

    def boot(self) -> None:
        """The machine starts again: what counts the time that passes begins at nothing."""
        self.booted_us = self.true_us

    def clock(self) -> SteadyClock:
        """As a process that starts now sees it."""
        booted_us = self.booted_us
        return SteadyClock(
            lambda: (self.true_us + self.wall_offset_us) * 1000,
            lambda: (self.true_us - booted_us) * 1000,
            f"start at {booted_us}",
        )


def unlimited(**limits: int) -> QuotaTier:
    """A tier with these limits and no others."""
    names = ("tokens_per_second", "tokens_per_hour", "tokens_per_day", "requests_per_hour", "concurrent_requests")
    return QuotaTier.model_validate({**dict.fromkeys(names), **limits})


def ledger_of(home: Path, tier: QuotaTier, time: FakeTime) -> tuple[QuotaLedger, ApiKey]:
    """A new process's ledger over the home, and the home's key `k`, made where there is none."""
    accounts = Accounts(home)
    ring = KeyRing(accounts, lambda: time.true_us / 10**6)
    key = next(iter(ring.list()), None) or ring.add("k").key
    return QuotaLedger(accounts, {"default": tier}, time.clock()), key


def kill(ledger: QuotaLedger) -> None:
    """What a `kill -9` leaves: nothing is settled, and the operating system lets go of the lock."""
    ledger.holder.release()


@dataclass(frozen=True)
class Used:
    """Tokens that were really used at a moment."""

    at_us: int
    num_tokens: int


def most_in_a_window(uses: Sequence[Used], length_us: int) -> int:
    """The most that was used in any window of this length, wherever it begins."""
    ordered = sorted(uses, key=lambda use: use.at_us)
    most = inside = first = 0
    for use in ordered:
        inside += use.num_tokens
        while ordered[first].at_us <= use.at_us - length_us:
            inside -= ordered[first].num_tokens
            first += 1
        most = max(most, inside)
    return most


def most_beyond_the_rate(uses: Sequence[Used], tokens_per_second: int) -> float:
    """The most that was used in any stretch of time beyond its length times the rate."""
    most = beyond = 0.0
    last_us = 0
    for use in sorted(uses, key=lambda use: use.at_us):
        beyond = max(0.0, beyond - (use.at_us - last_us) * tokens_per_second / 10**6) + use.num_tokens
        last_us = use.at_us
        most = max(most, beyond)
    return most
