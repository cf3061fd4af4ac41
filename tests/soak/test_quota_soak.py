"""1,000 streams at once against a tier, over HTTP, killed three times with `kill -9` and started again: `make soak`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.server.ledgers import DAY_US, HOUR_US, most_beyond_the_rate, most_in_a_window
from tests.unit.server.quota_server_child import TIERS
from tests.unit.server.streams import Run, check_sums

NUM_KILLS = 3


def test_three_kills_among_a_thousand_streams_lose_nothing_and_charge_nothing_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, "sums", speed=1, num_clients=1000)
    asyncio.run(run.go(NUM_KILLS, min_open=950, last_s=5.0, is_holding=True))
    check_sums(run, NUM_KILLS, 950)


def test_no_window_is_overshot_while_hours_pass_and_servers_are_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, "windows", speed=1000, num_clients=60)
    asyncio.run(run.go(NUM_KILLS, min_open=10, last_s=30.0))
    story, tier = run.story(), TIERS["windows"]
    spent_hours = (story.uses[-1].at_us - story.uses[0].at_us) / HOUR_US
    most = {
        "tokens_per_hour": most_in_a_window(story.uses, HOUR_US),
        "tokens_per_day": most_in_a_window(story.uses, DAY_US),
        "requests_per_hour": most_in_a_window(story.begun, HOUR_US),
        "burst_tokens": most_beyond_the_rate(story.uses, tier.tokens_per_second or 0),
    }
    print(f"{spent_hours:.1f} hours, {len(story.uses)} requests:", most, dict(run.heard.statuses))
    assert spent_hours > 5, "it has to be long enough for the hour to slide"
    assert story.refused
    assert story.left_open and len(story.left_open) == NUM_KILLS
    for name, value in most.items():
        assert 0 < value <= getattr(tier, name), name
    for name in ("tokens_per_hour", "requests_per_hour"):
        assert most[name] > 0.5 * getattr(tier, name), f"{name} was never near, so it was not tested"
    for tag, num_tokens in run.heard.whole.items():
        assert story.wants.get(tag, num_tokens) == num_tokens <= story.had[tag]
