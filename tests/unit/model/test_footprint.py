from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.model.footprint import CacheSpec, footprint_of_shape, kv_bytes, largest_fitting
from kvloom.model.shape import KVLayer, ModelShape, expand_pattern
from kvloom.types import KVType

MIB = 1024**2


def shape(num_layers: int, num_kv_heads: int, head_dim: int = 128, context: int = 131072) -> ModelShape:
    return ModelShape(
        architecture="llama",
        num_layers=num_layers,
        embedding_size=4096,
        feed_forward_size=14336,
        num_heads=32,
        vocab_size=128256,
        context_length=context,
        layers=(KVLayer(num_kv_heads, head_dim, head_dim),) * num_layers,
    )


LLAMA_3_8B = shape(32, 8)


def test_the_kv_of_a_token_counts_kv_heads_and_not_parameters() -> None:
    assert LLAMA_3_8B.kv_token_bytes() == 131_072
    assert LLAMA_3_8B.kv_token_bytes(KVType.Q8_0, KVType.Q8_0) == 131_072 / 2 * 1.0625
    assert LLAMA_3_8B.kv_token_bytes(KVType.Q4_0, KVType.Q4_0) == 131_072 / 2 * 0.5625


@pytest.mark.parametrize(
    ("model", "num_cells", "kv_type", "expected"),
    [
        (LLAMA_3_8B, 32768, KVType.F16, 4_294_967_296),
        (LLAMA_3_8B, 32768, KVType.Q8_0, 2_281_701_376),
        (shape(32, 32), 2048, KVType.F16, 1024 * MIB),
        (shape(40, 40), 2048, KVType.F16, 1600 * MIB),
        (shape(80, 8), 2048, KVType.F16, 640 * MIB),
        (shape(80, 64), 2048, KVType.F16, 5120 * MIB),
    ],
)
def test_kv_bytes_of_known_models(model: ModelShape, num_cells: int, kv_type: KVType, expected: int) -> None:
    assert kv_bytes(model, CacheSpec(num_cells=num_cells, k_type=kv_type, v_type=kv_type)) == expected


def test_k_and_v_may_differ_in_type() -> None:
    mixed = kv_bytes(LLAMA_3_8B, CacheSpec(k_type=KVType.Q8_0, v_type=KVType.Q4_0))
    k_only = kv_bytes(LLAMA_3_8B, CacheSpec(k_type=KVType.Q8_0, v_type=KVType.Q8_0)) // 2
    assert mixed == k_only + k_only // 34 * 18


def test_windowed_layers_need_cells_for_their_window_only_unless_told_otherwise() -> None:
    model = shape(6, 4).with_window(expand_pattern(6, 6), 1024)
    full = kv_bytes(model, CacheSpec(num_cells=32768))
    small = kv_bytes(model, CacheSpec(num_cells=32768, num_sequences=1, full_window=False))
    per_layer = full // 6
    assert full == kv_bytes(shape(6, 4), CacheSpec(num_cells=32768))
    assert small == per_layer + 5 * per_layer * 1536 // 32768


@given(cells=st.integers(1, 200_000), more=st.integers(0, 100_000), sequences=st.integers(1, 255))
def test_a_larger_window_never_takes_less(cells: int, more: int, sequences: int) -> None:
    model = shape(4, 2).with_window(expand_pattern(2, 4), 512)
    for full in (True, False):
        low, high = (
            footprint_of_shape(
                model, 1000, CacheSpec(num_cells=n, num_sequences=sequences, full_window=full)
            ).total_bytes
            for n in (cells, cells + more)
        )
        assert 1000 < low <= high


@given(budget=st.integers(0, 40 * 1024**3), most=st.integers(1, 200_000))
def test_the_largest_that_fits_does_and_the_next_step_does_not(budget: int, most: int) -> None:
    def fits(cells: int) -> bool:
        spec = CacheSpec(num_cells=cells)
        return footprint_of_shape(LLAMA_3_8B, 5 * 1024**3, spec).total_bytes <= budget

    cells = largest_fitting(fits, most, 256)
    assert cells == most or cells % 256 == 0
    assert cells == 0 or fits(cells)
    assert cells == most or not fits(min(most, cells + 256))


@given(limit=st.integers(-5, 50), most=st.integers(-5, 50), step=st.integers(1, 9))
def test_the_largest_that_fits_is_the_one_that_a_search_of_all_finds(limit: int, most: int, step: int) -> None:
    tried = [size for size in range(1, most + 1) if size == most or size % step == 0]
    expected = max((size for size in tried if size <= limit), default=0)
    assert largest_fitting(lambda size: size <= limit, most, step) == expected


def test_a_model_with_state_is_marked_as_not_covered() -> None:
    from dataclasses import replace

    assert footprint_of_shape(LLAMA_3_8B, 1, CacheSpec()).is_complete
    assert not footprint_of_shape(replace(LLAMA_3_8B, has_state=True), 1, CacheSpec()).is_complete
