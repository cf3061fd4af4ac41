from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvloom.errors import EngineMemoryError, UsageError
from kvloom.memory.guard import Guard, Level, Thresholds
from kvloom.memory.sizing import (
    WINDOW_STEP,
    Bound,
    Demand,
    Room,
    SizingLimits,
    auto_size,
    budget_bytes,
    explicit_size,
    window_ceiling,
)
from kvloom.model.footprint import CacheSpec
from kvloom.model.shape import KVLayer, ModelShape
from kvloom.types import KVType
from tests.unit.memory.pictures import reading

GIB, MIB = 1024**3, 1024**2

LLAMA_8B = ModelShape(
    architecture="llama",
    num_layers=32,
    embedding_size=4096,
    feed_forward_size=14336,
    num_heads=32,
    vocab_size=128256,
    context_length=131072,
    layers=(KVLayer(8, 128, 128),) * 32,
)
Q4_WEIGHTS = 4_900_000_000


def with_slack(window: int) -> int:
    return window + max(512, window // 6)


def demand(trained: int = 131072, kv_type: KVType = KVType.F16, weights: int = Q4_WEIGHTS) -> Demand:
    spec = CacheSpec(k_type=kv_type, v_type=kv_type)
    return Demand(replace(LLAMA_8B, context_length=trained), weights, spec, with_slack)


def room(total_gib: float, used_gib: float = 0.0) -> Room:
    total = int(total_gib * GIB)
    return Room(total, total - int(used_gib * GIB))


def test_with_room_enough_the_target_is_taken() -> None:
    sizing = auto_size(demand(), room(64), SizingLimits())
    assert (sizing.context, sizing.bound) == (16384, Bound.TARGET)
    assert sizing.warning == ""
    assert sizing.num_cells >= with_slack(16384)


@pytest.mark.parametrize(
    ("limits", "trained", "context", "bound"),
    [
        (SizingLimits(), 8192, 8192, Bound.MODEL),
        (SizingLimits(target=200_000), 131072, 131072, Bound.MODEL),
        (SizingLimits(maximum=4096), 131072, 4096, Bound.MAXIMUM),
        (SizingLimits(maximum=200_000), 131072, 16384, Bound.TARGET),
        (SizingLimits(target=1000), 131072, 2048, Bound.MINIMUM),
        (SizingLimits(target=1000, minimum=500), 131072, 1000, Bound.TARGET),
        (SizingLimits(), 1024, 1024, Bound.MODEL),  # the minimum cannot stretch a model
        (SizingLimits(), 0, 16384, Bound.TARGET),  # a trained length that is not known
    ],
)
def test_target_maximum_and_model_bound_the_window(
    limits: SizingLimits, trained: int, context: int, bound: Bound
) -> None:
    sizing = auto_size(demand(trained), room(64), limits)
    assert (sizing.context, sizing.bound) == (context, bound)
    assert f"{context:,}" in sizing.reason
    assert window_ceiling(demand(trained).shape, limits) == context


def test_memory_bounds_the_window_in_steps_and_the_next_step_would_not_fit() -> None:
    limits, place, wanted = SizingLimits(target=131072), room(8, 0.6), demand()
    sizing = auto_size(wanted, place, limits)
    assert sizing.bound is Bound.MEMORY
    assert 2048 < sizing.context < 16384
    assert sizing.context % WINDOW_STEP == 0
    assert sizing.needed_bytes == wanted.total_bytes(sizing.context) <= sizing.budget_bytes
    assert wanted.total_bytes(sizing.context + WINDOW_STEP) > sizing.budget_bytes
    assert "in reserve" in sizing.reason


def test_a_quantized_cache_gives_a_larger_window() -> None:
    limits = SizingLimits(target=131072)
    sizes = [
        auto_size(demand(kv_type=kind), room(10), limits).context for kind in (KVType.F16, KVType.Q8_0, KVType.Q4_0)
    ]
    assert sizes == sorted(set(sizes))


def test_weights_that_are_loaded_already_take_nothing_more() -> None:
    limits, place = SizingLimits(target=131072), room(8, 4.8)
    assert auto_size(demand(weights=0), place, limits).context > 2048
    with pytest.raises(EngineMemoryError):
        auto_size(demand(), place, limits)


@given(
    total=st.integers(1, 256 * GIB),
    available_share=st.floats(0, 1),
    target=st.integers(1, 300_000),
    minimum=st.integers(1, 8192),
    maximum=st.integers(0, 300_000),
    reserve=st.integers(0, 4 * GIB),
    soft=st.floats(0.1, 1),
    trained=st.sampled_from([0, 512, 4096, 131072]),
)
def test_an_automatic_window_always_ends_below_the_guards_soft_limit(
    total: int, available_share: float, target: int, minimum: int, maximum: int, reserve: int, soft: float, trained: int
) -> None:
    assume(maximum == 0 or minimum <= maximum)
    place = Room(total, int(total * available_share))
    limits = SizingLimits(target, minimum, maximum, reserve, soft)
    wanted = demand(trained)
    try:
        sizing = auto_size(wanted, place, limits)
    except EngineMemoryError:
        least = min(minimum, window_ceiling(wanted.shape, limits))
        assert wanted.total_bytes(least) > budget_bytes(place, limits)
        return
    used_then = total - place.available_bytes + sizing.needed_bytes
    assert used_then / total < soft
    assert place.available_bytes - sizing.needed_bytes >= reserve
    assert 1 <= sizing.context <= max(target, minimum)
    assert sizing.context >= min(minimum, window_ceiling(wanted.shape, limits))
    assert trained == 0 or sizing.context <= trained
    assert maximum == 0 or sizing.context <= maximum
    if soft <= 0.8:
        guard = Guard(Thresholds())
        guard.observe(used_then, total)
        assert guard.level is Level.NORMAL


def test_where_not_even_the_minimum_fits_the_numbers_and_ways_out_are_told() -> None:
    with pytest.raises(EngineMemoryError) as caught:
        auto_size(demand(), room(5), SizingLimits())
    text = str(caught.value)
    for part in (
        "2,048 tokens",
        "weights 4,673 MiB",
        "KV 320 MiB",
        "5,120 MiB of 5,120 MiB",
        "512 MiB",
        "80%",
        "--kv-type",
    ):
        assert part in text


def test_an_explicit_window_is_given_back_as_it_is() -> None:
    for window in (1, 100, 20_000, 131_072):
        sizing = explicit_size(window, demand(), room(64), SizingLimits(maximum=4096))
        assert (sizing.context, sizing.bound, sizing.warning) == (window, Bound.EXPLICIT, "")


def test_an_explicit_window_beyond_the_trained_length_is_warned_of() -> None:
    sizing = explicit_size(10_000, demand(8192), room(64), SizingLimits())
    assert sizing.context == 10_000
    assert "8,192" in sizing.warning
    assert "10,000" in sizing.warning


def test_an_explicit_window_that_passes_the_soft_limit_is_warned_of_and_one_past_the_memory_refused() -> None:
    wanted = demand()
    tight = Room(10 * GIB, wanted.total_bytes(16384) + MIB)
    sizing = explicit_size(16384, wanted, tight, SizingLimits())
    assert "soft limit" in sizing.warning
    with pytest.raises(EngineMemoryError, match=r"65,536 tokens needs .* MiB .* are available; .* fit"):
        explicit_size(65536, wanted, room(8), SizingLimits())
    with pytest.raises(EngineMemoryError, match="no window fits"):
        explicit_size(2048, wanted, room(2), SizingLimits())


def test_a_refusal_offers_no_window_beyond_the_trained_length() -> None:
    with pytest.raises(EngineMemoryError, match=r"; 8,192 tokens fit"):
        explicit_size(1_000_000, demand(8192), room(64), SizingLimits())


@pytest.mark.parametrize("window", [0, -5])
def test_a_window_that_is_none_is_refused(window: int) -> None:
    with pytest.raises(UsageError, match=str(window)):
        explicit_size(window, demand(), room(64), SizingLimits())


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (SizingLimits(minimum=8192, maximum=4096), "8,192 tokens.* above its maximum .*4,096"),
        (SizingLimits(target=0), "target"),
        (SizingLimits(minimum=-1), "minimum"),
        (SizingLimits(maximum=-1), "negative"),
        (SizingLimits(reserve_bytes=-1), "negative"),
        (SizingLimits(soft_share=0.0), "soft share"),
        (SizingLimits(soft_share=1.2), "soft share"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits: SizingLimits, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        auto_size(demand(), room(64), limits)


@pytest.mark.parametrize("place", [Room(0, 0), Room(-1, 0), Room(100, -1), Room(100, 101)])
def test_a_memory_that_cannot_be_is_refused(place: Room) -> None:
    for call in (
        lambda: auto_size(demand(), place, SizingLimits()),
        lambda: explicit_size(2048, demand(), place, SizingLimits()),
        lambda: budget_bytes(place, SizingLimits()),
    ):
        with pytest.raises(UsageError, match="cannot be"):
            call()


def test_a_reading_is_a_room() -> None:
    assert Room.of(reading(30, 100)) == Room(100, 70)
