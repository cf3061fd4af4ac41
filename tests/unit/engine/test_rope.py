"""The formulas of RoPE against numbers worked out by hand, and the test that tells right from wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kvloom.engine.llamacpp.rope import RopeParameters, rotation_error
from kvloom.types import F32Array, LayerRope, LayerShape, RopePairing

PLAIN = RopeParameters(RopePairing.NEOX, num_rotated=8, freq_base=10000.0, freq_scale=1.0, original_context=1024)
SHAPE = LayerShape(2, 12, 12)


def test_plain_frequencies_fall_by_a_constant_factor() -> None:
    assert PLAIN.inv_freq() == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-6)


def test_linear_scaling_and_factors_divide() -> None:
    assert replace(PLAIN, freq_scale=0.25).inv_freq() == pytest.approx([0.25, 0.025, 0.0025, 0.00025], rel=1e-6)
    assert replace(PLAIN, factors=(1.0, 2.0, 4.0, 8.0)).inv_freq() == pytest.approx(
        [1, 0.05, 0.0025, 0.000125], rel=1e-6
    )


def test_yarn_keeps_the_fast_pairs_and_interpolates_the_slow_ones() -> None:
    yarn = replace(PLAIN, num_rotated=64, freq_scale=0.25, ext_factor=1.0)
    plain, scaled = replace(PLAIN, num_rotated=64).inv_freq(), yarn.inv_freq()
    ratios = [b / a for a, b in zip(plain, scaled, strict=True)]
    # A pair turns 1024 · f / 2π times over the original context: above beta_fast it is kept, below beta_slow divided.
    turns = [1024 * f / (2 * math.pi) for f in plain]
    assert all(ratio == pytest.approx(1.0) for ratio, turn in zip(ratios, turns, strict=True) if turn > 60)
    assert all(ratio == pytest.approx(0.25) for ratio, turn in zip(ratios, turns, strict=True) if turn < 0.5)
    assert ratios == sorted(ratios, reverse=True)


def turned(rows: F32Array, rope: LayerRope, distance: int) -> F32Array:
    """Complex multiplication, pair by pair: slower than the code under test and nothing like it."""
    out = rows.reshape(len(rows), SHAPE.num_heads, SHAPE.k_head_dim).copy()
    pairs = len(rope.inv_freq)
    for pair, freq in enumerate(rope.inv_freq):
        neox = rope.pairing is RopePairing.NEOX
        i, j = (pair, pair + pairs) if neox else (2 * pair, 2 * pair + 1)
        i, j = i + rope.offset, j + rope.offset
        value = (out[..., i] + 1j * out[..., j]) * np.exp(1j * freq * distance)
        out[..., i], out[..., j] = value.real, value.imag
    return out.reshape(rows.shape)


@pytest.mark.parametrize("pairing", RopePairing)
@pytest.mark.parametrize("offset", [0, 4])
def test_only_the_right_rotation_passes(pairing: RopePairing, offset: int) -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((24, 24)).astype(np.float32)
    right = replace(PLAIN, pairing=pairing, offset=offset)
    after = turned(before, right.layer(), 4000) + 0.001 * rng.standard_normal(before.shape).astype(np.float32)
    assert rotation_error(before, after, right.layer(), 4000, SHAPE) < 0.01
    other = RopePairing.NORM if pairing is RopePairing.NEOX else RopePairing.NEOX
    for wrong in (
        replace(right, pairing=other),
        replace(right, freq_base=10100.0),
        replace(right, freq_scale=0.999),
        replace(right, offset=4 - offset),
        replace(right, num_rotated=6),
    ):
        assert rotation_error(before, after, wrong.layer(), 4000, SHAPE) > 0.1, wrong
    assert rotation_error(before, after, None, 4000, SHAPE) > 0.1
    assert rotation_error(before, before, None, 4000, SHAPE) == 0.0
