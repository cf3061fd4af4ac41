"""Values in even steps: none is further off than half a step of its row, and one large row spoils no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvloom.kv.packing import Blocks, Packing, Steps
from kvloom.types import F32Array, KVType, U8Array
from tests.unit.kv.rows import CASTER

STEPS = Steps(k=0.12, v=0.265)
HEADS = 2
planes = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.just(HEADS), st.just(32)),
    elements=st.floats(-60000, 60000, width=32) | st.sampled_from([0.0, 1e-7, -1e-5, 1.0]),
)


def packed(packing: Packing, plane: F32Array, *, is_k: bool = True) -> U8Array:
    out = np.empty(packing.num_bytes(plane.shape), np.uint8)
    packing.pack(plane.copy(), out, CASTER, is_k=is_k)
    return out


def unpacked(packing: Packing, data: U8Array, like: F32Array) -> F32Array:
    out = np.empty_like(like)
    packing.unpack(data, out, CASTER)
    return out


def steps_of(data: U8Array, plane: F32Array) -> tuple[F32Array, U8Array]:
    """As docs/formats.md has them: (num_rows, num_heads, 1), and the powers."""
    num_rows, num_heads, _ = plane.shape
    powers = data[4 * num_heads :][: num_rows * num_heads].reshape(num_rows, num_heads, 1)
    return data[: 4 * num_heads].copy().view(np.float32)[:, None] * np.float32(2) ** powers, powers


@given(plane=planes, is_k=st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_value_is_further_off_than_half_a_step_of_its_row(plane: F32Array, is_k: bool) -> None:
    data = packed(STEPS, plane, is_k=is_k)
    off = np.abs(unpacked(STEPS, data, plane).astype(np.float64) - plane)
    assert (off <= 0.501 * steps_of(data, plane)[0]).all()


@given(plane=planes)
@settings(max_examples=100, deadline=None)
def test_a_rows_steps_are_twice_as_large_only_where_its_values_need_it(plane: F32Array) -> None:
    steps, powers = steps_of(packed(STEPS, plane), plane)
    largest = np.abs(plane).max(axis=2, keepdims=True)
    assert (127 * steps / 2 < 1.001 * largest)[powers > 0].all()


def test_steps_are_a_share_of_what_a_heads_rows_are_like_and_finer_for_keys(rng: np.random.Generator) -> None:
    plane = rng.standard_normal((300, HEADS, 64)).astype(np.float32) * np.array([3, 0.01], np.float32)[:, None]
    for is_k, share in ((True, STEPS.k), (False, STEPS.v)):
        for factor in (1, 100):  # of one row in 300: it moves the others' steps by a percent or two
            plane[7] *= factor
            steps = packed(STEPS, plane, is_k=is_k)[: 4 * HEADS].copy().view(np.float32)
            assert steps == pytest.approx(np.array([3, 0.01]) * share, rel=0.03)
            plane[7] /= factor


@pytest.mark.parametrize("packing", [STEPS, Blocks(KVType.Q8_0)])
def test_zeros_stay_zeros(packing: Packing) -> None:
    plane = np.zeros((4, HEADS, 32), np.float32)
    assert not unpacked(packing, packed(packing, plane), plane).any()


@pytest.mark.parametrize("step", [0.0, -1.0, np.inf, np.nan])
def test_steps_that_no_pack_has_written_are_refused(step: float, rng: np.random.Generator) -> None:
    plane = rng.standard_normal((5, HEADS, 32)).astype(np.float32)
    data = packed(STEPS, plane)
    data[4:8] = np.array([step], np.float32).view(np.uint8)
    with pytest.raises(ValueError, match="doubled"):
        unpacked(STEPS, data, plane)


def test_a_power_that_no_pack_has_written_is_refused(rng: np.random.Generator) -> None:
    plane = rng.standard_normal((5, HEADS, 32)).astype(np.float32)
    data = packed(STEPS, plane)
    data[4 * HEADS] = 65
    with pytest.raises(ValueError, match="doubled 65 times"):
        unpacked(STEPS, data, plane)
