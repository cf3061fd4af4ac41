"""What one of several models may take: its own limits, the others, the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvloom.config import load_settings
from kvloom.errors import ConfigError, EngineMemoryError, ModelFormatError
from kvloom.memory.reading import MemoryReading
from kvloom.session.model_plan import ModelLimits, Others, Planner, read_facts
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.memory.pictures import reading

MIB = 1024**2
ALONE = Others()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", TinyModel(context=8192))


def planner(
    model: Path, limits: ModelLimits | None = None, memory: MemoryReading | None = None, **settings: Any
) -> Planner:
    chosen = load_settings({"guard": {"enabled": False}, "context_min": 512, **settings})
    return Planner(model, chosen, limits or ModelLimits(), read=lambda _: memory)


def bytes_of(model: Path, window: int) -> int:
    return planner(model, context=window).least_bytes


def test_without_limits_the_window_is_the_target_or_the_models_own(model: Path) -> None:
    assert planner(model).plan(ALONE, None).settings.context == 8192
    assert planner(model, context_target=2048).plan(ALONE, None).settings.context == 2048
    assert planner(model, context=1000).plan(ALONE, None).settings.context == 1000


def test_a_budget_bounds_the_window_and_what_others_hold_counts(model: Path) -> None:
    budget = bytes_of(model, 4096)
    assert planner(model).plan(ALONE, budget).settings.context == 4096
    held = budget - bytes_of(model, 1024)
    plan = planner(model).plan(Others(held_bytes=held, num_models=1), budget)
    assert plan.settings.context == 1024
    assert plan.needed_bytes <= budget - held


def test_no_room_for_the_smallest_window_is_told_with_the_numbers(model: Path) -> None:
    with pytest.raises(EngineMemoryError, match=r"a window of 512 tokens needs .* MiB; .* MiB are left"):
        planner(model).plan(Others(held_bytes=1), bytes_of(model, 512))
    planner(model).plan(ALONE, bytes_of(model, 512))


def test_the_machines_soft_limit_is_a_budget_too_whatever_looks_free(model: Path) -> None:
    total = 8 * bytes_of(model, 1024)
    found = planner(model, memory=reading(0, total), memory_reserve_bytes=0, guard={"enabled": False, "soft": 0.5})
    most = found.most_bytes(Others(num_models=1), None)
    assert most is not None
    assert most < total // 2
    assert found.most_bytes(ALONE, None) is None
    held = most - bytes_of(model, 1024)
    assert found.plan(Others(held_bytes=held, num_models=1), None).settings.context == 1024


def test_limits_of_the_model_bound_window_and_stored_entries(model: Path) -> None:
    four = bytes_of(model, 4096)
    plan = planner(model, ModelLimits(max_ram_bytes=four)).plan(ALONE, None)
    assert plan.settings.context == 4096
    assert plan.settings.ram_budget_bytes == four - plan.needed_bytes
    limits = ModelLimits(kv_ram_bytes=8 * MIB)
    plan = planner(model, limits).plan(ALONE, None)
    # Half of it for the cells at most, what is left for entries.
    cells = 8 * MIB - plan.settings.ram_budget_bytes
    assert 0 < cells <= 4 * MIB
    assert (plan.settings.context or 0) >= 512


def test_a_window_that_was_asked_for_may_take_all_that_kv_may_take(model: Path) -> None:
    limits = ModelLimits(kv_ram_bytes=2 * MIB)
    window = planner(model, limits).plan(ALONE, None).settings.context
    assert window is not None
    explicit = planner(model, limits, context=window + 512).plan(ALONE, None)
    assert explicit.settings.context == window + 512


def test_limits_without_room_for_any_window_are_a_mistake_of_the_registry(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_ram_mb.*kv_cache_ram_mb"):
        planner(model, ModelLimits(max_ram_bytes=1)).check_limits()
    with pytest.raises(ConfigError):
        planner(model, ModelLimits(kv_ram_bytes=1)).plan(ALONE, None)


def test_cells_for_more_replies_come_of_what_nobody_needs(model: Path) -> None:
    one = planner(model, context=1024)
    alone = one.plan(ALONE, None, 8)
    assert alone.settings.pool_tokens == 8 * 1024
    tight = one.plan(ALONE, bytes_of(model, 1024), 8)
    assert tight.settings.pool_tokens == 0
    budget = bytes_of(model, 1024) + (alone.needed_bytes - bytes_of(model, 1024)) * 6 // 5
    others = Others(waiting_bytes=bytes_of(model, 1024), num_models=1)
    beside = one.plan(others, budget, 8)
    assert beside.needed_bytes <= budget - others.waiting_bytes
    assert one.plan(ALONE, budget, 8).needed_bytes > beside.needed_bytes


# --- facts -----------------------------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32768, "sliding_window": 4096,
}  # fmt: skip


def test_what_the_header_says_comes_first_and_a_config_fills_the_rest(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    known = write_tiny(tmp_path / "known.gguf", TinyModel(context=2048))
    assert read_facts(known).longest == 2048
    facts = read_facts(known, config)
    assert (facts.longest, facts.sliding_window) == (2048, 4096)
    silent = write_tiny(tmp_path / "silent.gguf", TinyModel(context=0))
    assert read_facts(silent).longest == 0
    assert read_facts(silent, config).longest == 32768
    plan = Planner(
        silent, load_settings({"guard": {"enabled": False}, "context_target": 100_000}), ModelLimits(), config,
        lambda _: None,
    ).plan(ALONE, None)  # fmt: skip
    assert plan.settings.context == 32768


def test_a_config_that_is_none_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert read_facts(write_tiny(tmp_path / "a.gguf", TinyModel()), config).longest == 4096
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        read_facts(write_tiny(tmp_path / "b.gguf", TinyModel(context=0)), config)
