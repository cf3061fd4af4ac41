"""The groups of settings: their defaults, what they refuse, and that the rest of the program knows the same words."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from kvloom.config import Paths, load_settings
from kvloom.config.groups import PolicyName
from kvloom.context.policies.base import policy_names
from kvloom.errors import ConfigError


def test_without_anything_set_a_conversation_is_compressed_and_kept_and_memory_is_watched(where: Paths) -> None:
    settings = load_settings()
    assert settings.overflow.policy is None
    assert (settings.overflow.window_tokens, settings.overflow.sink_tokens) == (4096, 256)
    assert settings.compression.enabled
    assert (settings.compression.strategy, settings.compression.threshold) == ("hybrid", 0.8)
    assert (settings.compression.preserve_recent, settings.compression.summary_max_tokens) == (None, 1024)
    assert (settings.snapshots.max_count, settings.snapshots.max_age_days) == (5, None)
    assert (settings.guard.soft, settings.guard.hard, settings.guard.critical) == (0.80, 0.90, 0.95)
    assert (settings.context_target, settings.context_min, settings.context_max) == (16384, 2048, 0)


def test_the_policies_that_may_be_set_are_those_that_there_are() -> None:
    assert sorted(get_args(PolicyName)) == list(policy_names())


@pytest.mark.parametrize(
    "given",
    [
        {"overflow": {"policy": "lru"}},
        {"overflow": {"window_tokens": 0}},
        {"overflow": {"sink_tokens": -1}},
        {"overflow": {"history_tokens": 0}},
        {"compression": {"threshold": 0}},
        {"compression": {"threshold": 1.1}},
        {"compression": {"summary_max_tokens": 8}},
        {"compression": {"min_gain": 1.0}},
        {"compression": {"preserve_recent": -1}},
        {"snapshots": {"auto_threshold": 2}},
        {"snapshots": {"max_age_days": 0}},
        {"guard": {"soft": 0.9, "hard": 0.9}},
        {"guard": {"hard": 0.96}},
        {"guard": {"critical": 1.5}},
        {"guard": {"poll_s": 0}},
        {"guard": {"hysteresis": 0.8}},
        {"context_min": 32},
        {"context_max": -1},
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_name(where: Paths, given: dict[str, Any]) -> None:
    [(name, value)] = given.items()
    option = next(iter(value)) if isinstance(value, dict) else name
    with pytest.raises(ConfigError, match=f"option --{option.replace('_', '-')}: "):
        load_settings(given)


def test_zero_means_no_limit_of_ones_own(where: Paths) -> None:
    assert load_settings({"context_max": 0, "context_min": 100_000}).context_max == 0


def test_a_null_in_the_file_is_the_documented_default(where: Paths) -> None:
    where.config_file.parent.mkdir(parents=True)
    where.config_file.write_text("compression:\n  preserve_recent: null\noverflow:\n  policy:\n", encoding="utf-8")
    settings = load_settings()
    assert settings.compression.preserve_recent is None
    assert settings.overflow.policy is None
