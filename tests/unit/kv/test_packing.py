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
planes = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.just(64)),
    elements=st.floats(-60000, 60000, width=32) | st.sampled_from([0.0, 1e-7, -1e-5, 1.0]),
)


def packed(packing: Packing, plane: F32Array, *, is_k: bool = True) -> U8Array:
    out = np.empty(packing.num_bytes(*plane.shape), np.uint8)
    packing.pack(plane.copy(), out, CASTER, is_k=is_k)
    return out


def unpacked(packing: Packing, data: U8Array, like: F32Array) -> F32Array:
    out = np.empty_like(like)
    packing.unpack(data, out, CASTER)
    return out


def steps_of(data: U8Array, num_rows: int) -> F32Array:
    """As docs/formats.md has them: (num_rows, 1)."""
    return data[:4].copy().view(np.float32) * np.float32(2) ** data[4:][:num_rows].astype(np.float32)[:, None]


@given(plane=planes, is_k=st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_value_is_further_off_than_half_a_step_of_its_row(plane: F32Array, is_k: bool) -> None:
    data = packed(STEPS, plane, is_k=is_k)
    off = np.abs(unpacked(STEPS, data, plane).astype(np.float64) - plane)
    assert (off <= 0.501 * steps_of(data, len(plane))).all()


@given(plane=planes)
@settings(max_examples=100, deadline=None)
def test_a_rows_steps_are_twice_as_large_only_where_its_values_need_it(plane: F32Array) -> None:
    data = packed(STEPS, plane)
    powers = data[4:][: len(plane)]
    largest = np.abs(plane).max(axis=1, keepdims=True)
    half = steps_of(data, len(plane)) / 2
    assert (127 * half < 1.001 * largest)[powers > 0].all()


def test_steps_are_a_share_of_what_rows_are_like_and_finer_for_keys(rng: np.random.Generator) -> None:
    plane = rng.standard_normal((300, 128)).astype(np.float32) * 3
    for is_k, share in ((True, STEPS.k), (False, STEPS.v)):
        for factor in (1, 100):  # of one row in 300: it moves the others' steps by a percent or two
            plane[7] *= factor
            step = packed(STEPS, plane, is_k=is_k)[:4].copy().view(np.float32)[0]
            assert step == pytest.approx(3 * share, rel=0.03)
            plane[7] /= factor


@pytest.mark.parametrize("packing", [STEPS, Blocks(KVType.Q8_0)])
def test_zeros_stay_zeros(packing: Packing) -> None:
    plane = np.zeros((4, 64), np.float32)
    assert not unpacked(packing, packed(packing, plane), plane).any()


def test_bytes_that_no_pack_wrote_give_some_values_and_no_warning(rng: np.random.Generator) -> None:
    plane = np.empty((5, 64), np.float32)
    data = rng.integers(0, 256, STEPS.num_bytes(*plane.shape), dtype=np.uint8)
    data[:4] = np.array([3e38], np.float32).view(np.uint8)
    assert unpacked(STEPS, data, plane).shape == plane.shape
