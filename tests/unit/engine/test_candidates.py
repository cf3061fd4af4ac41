"""The most likely of many logits, and log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.engine.candidates import most_likely, token_scores
from kvloom.errors import EngineStateError
from kvloom.types import F32Array


def draw_logits(seed: int, size: int, spread: float, levels: int, ruled_out: float) -> F32Array:
    """Random logits; few `levels` make many of them tie, `ruled_out` is the share of -inf."""
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(0, spread, size) * levels) / levels
    logits[random.random(size) < ruled_out] = -np.inf
    logits[random.integers(size)] = spread
    return logits.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 20_000),
    count=st.integers(1, 300),
    spread=st.sampled_from([0.01, 1.0, 4.0, 1000.0]),
    levels=st.sampled_from([1, 8, 4096]),
    ruled_out=st.sampled_from([0.0, 0.5, 0.999]),
)
def test_nothing_left_out_could_have_been_among_the_most_likely(
    seed: int, size: int, count: int, spread: float, levels: int, ruled_out: float
) -> None:
    logits = draw_logits(seed, size, spread, levels, ruled_out)
    ids = most_likely(logits, count)
    assert (np.diff(ids) > 0).all()
    finite = np.flatnonzero(logits > -np.inf)
    assert len(ids) >= min(count, len(finite))
    assert np.isin(ids, finite).all()
    left_out = np.setdiff1d(finite, ids)
    if len(left_out):
        assert logits[left_out].max() < np.sort(logits[ids])[-count:].min()


def test_few_are_handed_out_of_a_large_vocabulary() -> None:
    logits = draw_logits(3, 151_936, 2.5, 4096, 0.0)
    assert 40 <= len(most_likely(logits, 40)) <= 640


def test_logits_that_are_no_numbers_are_refused() -> None:
    for bad in (np.nan, np.inf):
        logits = np.zeros(5000, np.float32)
        logits[100] = bad
        with pytest.raises(EngineStateError, match="no token can be chosen"):
            most_likely(logits, 40)
    with pytest.raises(EngineStateError, match="-inf"):
        most_likely(np.full(5000, -np.inf, np.float32), 40)


def test_log_probabilities_are_those_of_the_softmax() -> None:
    logits = draw_logits(5, 151_936, 3.0, 4096, 0.01)
    exact = logits.astype(np.float64)
    exact = exact - exact.max()
    exact -= np.log(np.exp(exact).sum())
    token = int(np.flatnonzero(np.isfinite(logits))[1234])
    scores = token_scores(logits, token, 20)
    assert scores.logprob == pytest.approx(exact[token], abs=1e-4)
    best = np.argsort(-exact, kind="stable")[:20]
    assert scores.top_ids == tuple(best.tolist())
    assert scores.top_logprobs == pytest.approx(exact[best], abs=1e-4)


def test_equal_logits_are_reported_in_the_order_of_their_ids() -> None:
    scores = token_scores(np.zeros(1000, np.float32), 7, 3)
    assert scores.top_ids == (0, 1, 2)
    assert scores.logprob == pytest.approx(-np.log(1000), abs=1e-5)
    assert token_scores(np.zeros(10, np.float32), 7, 0).top_ids == ()
    assert len(token_scores(np.zeros(10, np.float32), 7, 50).top_ids) == 10


def test_a_token_beyond_the_vocabulary_has_no_log_probability() -> None:
    with pytest.raises(EngineStateError, match="token 10"):
        token_scores(np.zeros(10, np.float32), 10, 1)
