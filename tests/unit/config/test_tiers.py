"""Tiers in the settings: named groups, each whole by its defaults, mistakes told by line and nearest name."""

from __future__ import annotations

import pytest

from kvloom.config import Paths, QuotaTier, load_settings
from kvloom.errors import ConfigError


def write(where: Paths, text: str) -> None:
    where.config_file.parent.mkdir(parents=True, exist_ok=True)
    where.config_file.write_text(text, encoding="utf-8")


def test_a_tier_takes_what_it_does_not_say_from_the_defaults(where: Paths) -> None:
    write(where, "tiers:\n  gold:\n    tokens_per_day: 50000000\n    requests_per_hour: null\n")
    tiers = load_settings().tiers
    assert tiers["gold"].tokens_per_day == 50_000_000
    assert tiers["gold"].requests_per_hour is None
    assert tiers["gold"].tokens_per_hour == 1_000_000


def test_the_default_tier_is_there_beside_others_and_can_be_changed(where: Paths) -> None:
    write(where, "tiers:\n  gold: {}\n")
    assert load_settings().tiers == {"default": QuotaTier(), "gold": QuotaTier()}
    write(where, "tiers:\n  default:\n    burst_tokens: 7\n")
    assert load_settings().tiers == {"default": QuotaTier(burst_tokens=7)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiers:\n  gold:\n    tokens_per_dya: 5\n", r"line 3: .*`tiers.gold.tokens_per_dya`; did you mean"),
        ("tiers:\n  gold:\n    tokens_per_day: 0\n", r"line 3: `tiers.gold.tokens_per_day`: .*greater than 0"),
        ("tiers:\n  gold: 5\n", r"line 2: `tiers.gold` is a group; expected tokens_per_second"),
        ("tiers: 5\n", r"line 1: `tiers`: .*dictionary"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_tier_is_told_with_its_line(where: Paths, text: str, message: str) -> None:
    write(where, text)
    with pytest.raises(ConfigError, match=message):
        load_settings()
