"""Casting rows agrees with ggml's reference arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvloom.types import F32Array, KVType
from tests.unit.kv.rows import decode, encode

GGML = {KVType.Q8_0: GGMLQuantizationType.Q8_0, KVType.Q4_0: GGMLQuantizationType.Q4_0}

blocks_of_32 = hnp.arrays(
    np.float32,
    st.integers(1, 6).map(lambda n: (n, 32)),
    # Below 1e-30 the reference overflows: see the next test.
    elements=st.floats(-1000, 1000, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
    | st.sampled_from([0.0, 0.5, -0.5, 1.5, 127.0, -127.0, 63.5, 1e-6, 2e-8]),
)


@pytest.mark.parametrize("kv_type", list(GGML))
@given(values=blocks_of_32)
@settings(max_examples=150, deadline=None)
def test_quantized_bytes_equal_those_of_the_gguf_library(kv_type: KVType, values: F32Array) -> None:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        expected = quants.quantize(values.copy(), GGML[kv_type])
    assert np.array_equal(encode(kv_type, values), expected)


@pytest.mark.parametrize("kv_type", list(GGML))
@pytest.mark.parametrize("value", [1.2e-38, -1e-40, 0.0])
def test_values_next_to_nothing_are_zeros(kv_type: KVType, value: float) -> None:
    values = np.array([[value, 0.0] * 16, [value] * 32], np.float32)
    assert not decode(kv_type, encode(kv_type, values), 32).any()


@pytest.mark.parametrize("kv_type", list(GGML))
def test_decoded_values_equal_those_of_the_gguf_library(kv_type: KVType, rng: np.random.Generator) -> None:
    rows = encode(kv_type, rng.standard_normal((50, 128)).astype(np.float32) * 3)
    assert np.array_equal(decode(kv_type, rows, 128), quants.dequantize(rows, GGML[kv_type]))


def test_every_f16_value_survives_the_way_to_float32_and_back() -> None:
    every = np.arange(65536, dtype=np.uint16)
    every = every[~np.isnan(every.view(np.float16))]
    rows = every.view(np.uint8).reshape(1, -1)
    assert np.array_equal(encode(KVType.F16, decode(KVType.F16, rows, every.size)), rows)


def test_a_value_beyond_the_f16_range_becomes_infinite_without_a_warning() -> None:
    rows = encode(KVType.F16, np.full((1, 2), 1e6, np.float32))
    assert np.isinf(rows.view(np.float16)).all()
