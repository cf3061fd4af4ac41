"""Distances between distributions, checked against arithmetic done by hand and against SciPy-like definitions."""

from __future__ import annotations

import numpy as np
import pytest

from kvloom.bench.distance import Distance, distance, interval, mean, summary
from kvloom.types import F32Array


def log_probs(*rows: list[float]) -> F32Array:
    return np.log(np.array(rows, dtype=np.float32))


def test_kl_top1_and_nll_are_what_a_hand_calculation_gives() -> None:
    reference = log_probs([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
    other = log_probs([0.25, 0.5, 0.25], [0.1, 0.8, 0.1])
    found = distance(reference, other, answer=[1])
    assert found.kl == pytest.approx([0.5 * np.log(2) - 0.25 * np.log(2), 0.0], abs=1e-6)
    assert found.agrees.tolist() == [0.0, 1.0]
    assert found.nll == pytest.approx(-np.log(0.8), abs=1e-6)


def test_equal_distributions_have_no_distance() -> None:
    rows = log_probs([0.2, 0.3, 0.5], [0.6, 0.3, 0.1])
    found = distance(rows, rows.copy(), answer=[2, 0])
    assert found.kl.tolist() == [0.0, 0.0]
    assert found.nll == found.reference_nll


def test_an_interval_over_draws_holds_the_mean_and_is_wider_than_one_over_positions() -> None:
    rng = np.random.default_rng(0)
    draws = [np.full(50, level) for level in rng.exponential(1.0, 30)]
    low, high = interval(draws, mean)
    pooled = np.concatenate(draws)
    assert low < pooled.mean() < high
    # Positions of one draw hang together: 1,500 of them are worth 30.
    assert high - low > 4 * pooled.std() / np.sqrt(pooled.size)


def test_a_summary_pools_all_positions() -> None:
    draws = [
        Distance(np.array([0.0, 1.0]), np.array([1.0, 0.0]), 2.0, 1.0, 0.1, 0.15),
        Distance(np.array([2.0, 3.0]), np.array([1.0, 1.0]), 4.0, 3.0, 0.1, 0.05),
    ]
    found = summary(draws)
    assert (found["kl_mean"], found["kl_median"], found["top1"]) == (1.5, 1.5, 0.75)
    assert (found["num_draws"], found["num_positions"], found["share"]) == (2, 4, 0.1)
    assert (found["nll"], found["nll_full_prefill"]) == (3.0, 2.0)
