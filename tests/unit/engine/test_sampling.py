"""llama.cpp's samplers over our logits."""

from __future__ import annotations

import numpy as np
import pytest

from kvloom.engine.llamacpp.sampling import LlamaCppSampler, SamplingDefaults
from kvloom.errors import EngineStateError
from kvloom.types import F32Array, SamplingParams

SIZE = 1000


def logits_of(**chosen: float) -> F32Array:
    logits = np.full(SIZE, -20.0, np.float32)
    for name, value in chosen.items():
        logits[int(name[1:])] = value
    return logits


def draw(params: SamplingParams, logits: F32Array, count: int, defaults: SamplingDefaults | None = None) -> list[int]:
    sampler = LlamaCppSampler(params, defaults or SamplingDefaults(), SIZE)
    try:
        return [sampler.sample(logits) for _ in range(count)]
    finally:
        sampler.close()


def test_the_same_candidates_are_seen_at_every_call() -> None:
    """The samplers sort in place: ids that were not reset would drift."""
    logits = logits_of(t3=5.0, t900=4.0, t41=4.5)
    drawn = draw(SamplingParams(temperature=1.0, seed=5), logits, 400)
    assert set(drawn) == {3, 41, 900}
    assert drawn.count(3) > drawn.count(900) > 20


def test_top_k_one_is_greedy_and_min_p_cuts_the_tail() -> None:
    logits = logits_of(t3=5.0, t900=4.9, t41=1.0)
    assert set(draw(SamplingParams(temperature=1.0, top_k=1, seed=1), logits, 50)) == {3}
    assert set(draw(SamplingParams(temperature=1.0, min_p=0.5, seed=1), logits, 200)) == {3, 900}


def test_a_penalty_moves_greedy_off_what_it_said() -> None:
    logits = logits_of(t3=5.0, t900=4.9)
    assert draw(SamplingParams(temperature=0.0), logits, 3) == [3, 3, 3]
    assert draw(SamplingParams(temperature=0.0, repeat_penalty=1.5), logits, 2) == [3, 900]


def test_what_a_request_leaves_open_is_the_models_own() -> None:
    logits = logits_of(t3=5.0, t900=4.9)
    assert set(draw(SamplingParams(seed=1), logits, 60, SamplingDefaults(top_k=1))) == {3}
    assert set(draw(SamplingParams(seed=1, top_k=2), logits, 60, SamplingDefaults(top_k=1))) == {3, 900}
    assert draw(SamplingParams(seed=1), logits, 3, SamplingDefaults(temperature=0.0)) == [3, 3, 3]


def test_logits_of_another_size_never_reach_the_native_side() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineStateError, match="logits of shape"):
            draw(SamplingParams(temperature=temperature), np.zeros(SIZE - 1, np.float32), 1)
