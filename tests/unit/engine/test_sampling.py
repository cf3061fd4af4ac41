"""llama.cpp's samplers over our logits."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest

from kvloom.engine.fake import FakeVocabulary
from kvloom.engine.grammar import GrammarGuides
from kvloom.engine.llamacpp.sampling import LlamaCppSampler, SamplingDefaults
from kvloom.errors import EngineStateError, UsageError
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


class WholeChain:
    """The native chain over every candidate, as llama.cpp's own programs run it: what ours must equal."""

    def __init__(self, size: int, params: SamplingParams, *, penalty_tokens: int = 64) -> None:
        self.size = size
        self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        biases = (llama_cpp.llama_logit_bias * max(1, len(params.logit_bias)))()
        for i, pair in enumerate(params.logit_bias):
            biases[i] = llama_cpp.llama_logit_bias(*pair)
        penalties = (params.repeat_penalty or 1.0, params.frequency_penalty or 0.0, params.presence_penalty or 0.0)
        assert params.top_k is not None and params.top_p is not None and params.min_p is not None
        assert params.temperature is not None and params.seed is not None
        for sampler in (
            llama_cpp.llama_sampler_init_logit_bias(size, len(params.logit_bias), biases),
            llama_cpp.llama_sampler_init_penalties(size, penalty_tokens, *penalties),
            llama_cpp.llama_sampler_init_top_k(params.top_k),
            llama_cpp.llama_sampler_init_top_p(params.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(params.min_p, 1),
            llama_cpp.llama_sampler_init_temp(params.temperature),
            llama_cpp.llama_sampler_init_dist(params.seed),
        ):
            llama_cpp.llama_sampler_chain_add(self.chain, sampler)

    def sample(self, logits: F32Array) -> int:
        data = (llama_cpp.llama_token_data * self.size)()
        for token, logit in enumerate(logits.tolist()):
            data[token] = llama_cpp.llama_token_data(token, logit, 0.0)
        array = llama_cpp.llama_token_data_array(data=data, size=self.size, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self.chain, token)
        return token

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self.chain)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0, 40, 0.95, 0.05, 1.0, 11),
        SamplingParams(0.7, 5, 1.0, 0.0, 1.0, 12),
        SamplingParams(1.5, 300, 0.9, 0.0, 1.3, 13),
        SamplingParams(1.0, 40, 1.0, 0.0, 1.2, 14, 0.7, 1.1),
        SamplingParams(1.0, 40, 0.8, 0.0, 1.0, 15, -1.0, -0.5, ((3, 9.0), (100, -100.0), (2999, 4.0))),
        SamplingParams(1.0, 0, 0.9, 0.0, 1.0, 16),
        SamplingParams(1.0, 0, 1.0, 0.1, 1.0, 17),
        SamplingParams(1.0, 10_000, 0.5, 0.0, 1.1, 18),
    ],
)
def test_the_filtered_chain_chooses_what_the_whole_chain_chooses(params: SamplingParams) -> None:
    size = 3000
    random = np.random.default_rng(params.seed)
    steps = [random.permutation(np.linspace(-9, 9, size)).astype(np.float32) for _ in range(4)]
    ours, whole = LlamaCppSampler(params, SamplingDefaults(), size), WholeChain(size, params)
    try:
        for step in range(60):  # fewer than the penalties' window: presence and frequency count the same tokens
            logits = steps[step % 4]
            before = logits.copy()
            assert ours.sample(logits) == whole.sample(logits)
            assert (logits == before).all()
    finally:
        ours.close()
        whole.close()


def test_presence_counts_a_token_once_and_frequency_each_time() -> None:
    logits = logits_of(t3=5.0, t900=3.9, t41=3.5)
    assert draw(SamplingParams(0.0, presence_penalty=1.0), logits, 4) == [3, 3, 3, 3]
    assert draw(SamplingParams(0.0, presence_penalty=1.2), logits, 4) == [3, 900, 3, 3]
    assert draw(SamplingParams(0.0, frequency_penalty=1.0), logits, 4) == [3, 3, 900, 41]


def test_presence_and_frequency_reach_back_to_the_start_of_the_reply() -> None:
    """OpenAI's are of the whole text; only the repeat penalty has the model's window."""
    random = np.random.default_rng(1)
    sampler = LlamaCppSampler(SamplingParams(0.0, presence_penalty=2.0), SamplingDefaults(penalty_tokens=8), SIZE)
    said = {sampler.sample(random.normal(0, 0.1, SIZE).astype(np.float32)) for _ in range(200)}
    assert len(said) == 200


def test_a_bias_forces_and_bans() -> None:
    logits = logits_of(t3=5.0, t900=4.9)
    assert set(draw(SamplingParams(1.0, seed=1, logit_bias=((41, 100.0),)), logits, 40)) == {41}
    assert set(draw(SamplingParams(1.0, seed=1, logit_bias=((3, -100.0),)), logits, 40)) == {900}
    assert draw(SamplingParams(0.0, logit_bias=((3, -np.inf),)), logits, 2) == [900, 900]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(logit_bias=((SIZE, 1.0),)), "names token 1000"),
        (SamplingParams(logit_bias=((-1, 1.0),)), "names token -1"),
        (SamplingParams(logit_bias=((1, float("nan")),)), "token 1 is nan"),
        (SamplingParams(logit_bias=((1, 1.0), (1, 2.0))), "twice"),
        (SamplingParams(repeat_penalty=0.0), "repeat_penalty is 0"),
        (SamplingParams(presence_penalty=float("inf")), "presence_penalty is inf"),
        (SamplingParams(frequency_penalty=float("nan")), "frequency_penalty is nan"),
    ],
)
def test_adjustments_that_make_no_sense_are_named(params: SamplingParams, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LlamaCppSampler(params, SamplingDefaults(), SIZE)


def test_logits_that_are_no_numbers_choose_no_token() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineStateError, match="nan: no token can be chosen"):
            draw(SamplingParams(temperature=temperature), np.full(SIZE, np.nan, np.float32), 1)


def test_a_grammar_rules_out_before_the_cuts_and_ends_where_it_ends() -> None:
    """Tokens that the model finds a million times likelier do not take the places of top-k."""
    vocabulary = FakeVocabulary()
    guides = GrammarGuides(vocabulary)
    logits = np.linspace(0, 40, vocabulary.size).astype(np.float32)
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature, top_k=2, seed=3)
        guide = guides.start('start: "a" /[bc]/ "d"')
        sampler = LlamaCppSampler(params, SamplingDefaults(), vocabulary.size, guide)
        said = [sampler.sample(logits) for _ in range(4)]
        sampler.close()
        assert chr(said[0]) == "a" and chr(said[1]) in "bc" and chr(said[2]) == "d"
        assert vocabulary.is_end(said[3])


def test_a_penalty_never_lets_a_refused_token_in() -> None:
    vocabulary = FakeVocabulary()
    guide = GrammarGuides(vocabulary).start('start: "ab"+')
    params = SamplingParams(0.0, repeat_penalty=1.9, presence_penalty=2.0, logit_bias=((120, 100.0), (257, -100.0)))
    sampler = LlamaCppSampler(params, SamplingDefaults(), vocabulary.size, guide)
    logits = np.zeros(vocabulary.size, np.float32)
    logits[256:] = -50
    assert bytes(sampler.sample(logits) for _ in range(20)) == b"ab" * 10
    sampler.close()
