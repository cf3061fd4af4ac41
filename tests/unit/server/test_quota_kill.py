"""Real processes, killed three times with 1,000 requests open: every window holds, all is charged once."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvloom.server.accounts import ACCOUNTS_NAME, Accounts
from kvloom.server.keys import KeyRing
from tests.unit.server.ledgers import DAY_US, HOUR_US, Used, most_beyond_the_rate, most_in_a_window
from tests.unit.server.quota_child import TIERS

CHILD = Path(__file__).with_name("quota_child.py")
NUM_KILLS = 3
MIN_OPEN = 950
"""Open requests at each kill, of the 1,000 that the tier allows: threads are always between two."""
PATIENCE_S = 60.0


@dataclass
class Story:
    """What the log says."""

    asked: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    had: dict[str, int] = field(default_factory=dict)
    begun: list[Used] = field(default_factory=list)
    uses: list[Used] = field(default_factory=list)
    wants: dict[str, int] = field(default_factory=dict)
    settled: Counter[str] = field(default_factory=Counter)
    left_open: list[int] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    """Those that were open at a kill, by request id."""

    @classmethod
    def of(cls, log: Path) -> Story:
        story = cls()
        open_now: set[str] = set()
        for line in log.read_text(encoding="utf-8").splitlines():
            verb, *words = line.split()
            if verb == "starts":
                story.left_open += [len(open_now)] if open_now else []
                story.left |= open_now
                open_now.clear()
            elif verb == "asks":
                story.asked[words[0]] = int(words[1])
            elif verb == "refused":
                story.refused.add(words[0])
            elif verb == "has":
                story.had[words[0]] = int(words[1])
                story.begun.append(Used(int(words[2]), 1))
                open_now.add(words[0])
            elif verb == "uses":
                story.uses.append(Used(int(words[2]), int(words[1])))
                open_now.discard(words[0])
            elif verb == "settles":
                story.wants[words[0]] = int(words[1])
            elif verb == "settled":
                story.settled[words[0]] += 1
        return story

    def charged_between(self) -> tuple[int, int]:
        """The least and the most that the ledger may hold: a kill may have come before or after a commit."""
        least = most = 0
        for tag, num_tokens in self.asked.items():
            if tag in self.refused:
                continue
            if tag in self.settled:
                least, most = least + self.wants[tag], most + self.wants[tag]
            elif tag in self.had:
                # Left open by a dead process: all of it, but for the few whose settling was under way.
                least, most = least + self.wants.get(tag, num_tokens), most + num_tokens
            else:
                most += num_tokens
        return least, most


def run_and_kill(home: Path, log: Path, tier: str, speed: int, last_s: float, min_open: int) -> None:
    """Three processes, each killed with so many requests open, and one that ends by itself."""
    with Accounts(home) as accounts:
        KeyRing(accounts).add("k")
    log.touch()
    for number in range(NUM_KILLS + 1):
        is_last = number == NUM_KILLS
        words = [home, log, tier, speed, last_s if is_last else PATIENCE_S, TIERS[tier].concurrent_requests]
        child = subprocess.Popen([sys.executable, str(CHILD), *map(str, words)])
        try:
            if not is_last:
                wait_for_work(log, number + 1, min_open)
                child.send_signal(signal.SIGKILL)
            assert child.wait(PATIENCE_S) == (0 if is_last else -signal.SIGKILL)
        finally:
            child.kill()
            child.wait()


def wait_for_work(log: Path, num_starts: int, min_open: int) -> None:
    """Until this process has ended some and has enough open; then a moment: each kill comes elsewhere."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        parts = log.read_text(encoding="utf-8").split("starts\n")
        num_open = parts[-1].count("\nhas ") - parts[-1].count("\nuses ")
        if len(parts) > num_starts and num_open >= min_open and parts[-1].count("\nsettled ") > 100:
            time.sleep(random.random() * 0.02)
            return
        time.sleep(0.01)
    pytest.fail(f"no work was done in {PATIENCE_S:.0f} s")


def total_charged(home: Path, window: str) -> tuple[int, int]:
    with sqlite3.connect(home / ACCOUNTS_NAME) as db:
        (tokens,) = db.execute("SELECT SUM(num_tokens) FROM slots WHERE window = ?", (window,)).fetchone()
        (num_open,) = db.execute("SELECT COUNT(*) FROM reservations").fetchone()
    db.close()
    return tokens, num_open


def test_three_kills_among_a_thousand_open_requests_lose_nothing_and_charge_nothing_twice(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    run_and_kill(home, log, "sums", speed=1, last_s=1.0, min_open=MIN_OPEN)
    story = Story.of(log)
    charged, num_open = total_charged(home, "day")
    least, most = story.charged_between()
    assert least <= charged <= most
    assert most - least < 0.02 * charged, "only what was under way at a kill is uncertain"
    assert num_open == 0
    assert max(story.settled.values()) == 1
    # The whole test lies within one hour of each process's clock, and asks for more than there is.
    assert story.refused
    assert sum(use.num_tokens for use in story.uses) <= charged <= (TIERS["sums"].tokens_per_hour or 0)
    assert all(num_open >= MIN_OPEN for num_open in story.left_open)
    assert len(story.left_open) == NUM_KILLS


def test_no_window_is_overshot_while_hours_and_days_pass_and_processes_are_killed(tmp_path: Path) -> None:
    home, log = tmp_path / "home", tmp_path / "log"
    run_and_kill(home, log, "windows", speed=20_000, last_s=5.5, min_open=1)
    story, tier = Story.of(log), TIERS["windows"]
    spent_hours = (story.uses[-1].at_us - story.uses[0].at_us) / HOUR_US
    assert spent_hours > 26, "it has to be long enough for every window to slide"
    assert story.refused
    most = {
        "tokens_per_hour": most_in_a_window(story.uses, HOUR_US),
        "tokens_per_day": most_in_a_window(story.uses, DAY_US),
        "requests_per_hour": most_in_a_window(story.begun, HOUR_US),
        "burst_tokens": most_beyond_the_rate(story.uses, tier.tokens_per_second or 0),
    }
    print(f"{spent_hours:.0f} hours, {len(story.uses)} requests:", most)
    for name, value in most.items():
        assert 0 < value <= getattr(tier, name), name
    for name in ("tokens_per_hour", "tokens_per_day", "requests_per_hour"):
        assert most[name] > 0.25 * getattr(tier, name), f"{name} was never near, so it was not tested"
