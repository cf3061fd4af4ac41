"""The embedded engine over real models: what tiny random ones cannot show."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvloom.engine.base import Logits, PlacedRows, Run
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.kv.rotate import Rotator
from kvloom.types import F32Array, KVType, ModelFingerprint, SamplingParams, SequenceId

pytestmark = pytest.mark.e2e

TEXT = Path(os.__file__).read_text(encoding="utf-8").encode()


def S(number: int) -> SequenceId:  # noqa: N802 (it reads as the type that it makes)
    return SequenceId(number)


@pytest.fixture(scope="module")
def engine(smollm2_path: Path) -> Iterator[LlamaCppEngine]:
    loaded = LlamaCppEngine(LoadSettings(smollm2_path, 2048, max_sequences=8), ModelFingerprint("2" * 64))
    yield loaded
    loaded.close()


@pytest.fixture
def empty(engine: LlamaCppEngine) -> LlamaCppEngine:
    for number in range(engine.capabilities.max_sequences):
        engine.remove(S(number))
    return engine


def last(engine: LlamaCppEngine, sequence: int, ids: list[int], start: int) -> F32Array:
    logits = engine.decode([Run(S(sequence), ids, start, Logits.LAST)])[0]
    assert logits is not None
    return logits


def divergence(p: F32Array, q: F32Array) -> float:
    """KL(p ‖ q) of the next token, in nats."""
    a, b = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64)) for x in (p, q))
    return float((np.exp(a) * (a - b)).sum())


def test_a_real_model_is_understood(empty: LlamaCppEngine) -> None:
    assert empty.capabilities.can_move_kv
    assert empty.capabilities.can_rotate, empty.capabilities.why_not
    assert empty.rope.is_uniform
    assert empty.vocabulary.token_bytes(empty.sink_token, special=True) == b"<|im_start|>"
    assert empty.train_context == 8192


def test_the_default_model_is_understood_in_every_kv_type(qwen_path: Path, tmp_path: Path) -> None:
    for kv_type in KVType:
        settings = LoadSettings(qwen_path, 256, kv_type, kv_type, max_sequences=2, cache_dir=tmp_path)
        loaded = LlamaCppEngine(settings, ModelFingerprint("3" * 64))
        assert loaded.capabilities.can_rotate, loaded.capabilities.why_not
        assert loaded.layout.hadamard_k is (kv_type is not KVType.F16)
        loaded.close()


def test_rows_moved_by_thousands_of_positions_answer_as_a_prefill_there(empty: LlamaCppEngine) -> None:
    engine = empty
    ids = [engine.sink_token, *engine.vocabulary.tokenize(TEXT, parse_special=False)[:200]]
    rotator = Rotator(engine.layout, engine.rope, engine.row_caster)
    engine.decode([Run(S(0), ids[:-1], 0)])
    _, rows = engine.read(S(0))
    for place in (1, 700, 7000):
        engine.remove(S(1))
        engine.remove(S(2))
        engine.decode([Run(S(1), ids[:-1], place)])
        there = last(engine, 1, ids[-1:], place + 200)
        engine.write(S(2), [PlacedRows(rows, place)], rotator.lay)
        moved = last(engine, 2, ids[-1:], place + 200)
        assert divergence(there, moved) < 0.01, place
        if place > 1:
            engine.write(S(2), [PlacedRows(rows, place)])
            unturned = last(engine, 2, ids[-1:], place + 200)
            assert divergence(there, unturned) > 10 * divergence(there, moved), "the test must see a missing rotation"
    rotator.close()


def test_a_restore_is_identical_to_the_bit(empty: LlamaCppEngine, smollm2_path: Path) -> None:
    engine = empty
    ids = engine.vocabulary.tokenize(TEXT, parse_special=False)[:400]
    reference = []
    for count in (1, 5, 60):
        engine.remove(S(0))
        engine.decode([Run(S(0), ids[:300], 0)])
        _, rows = engine.read(S(0))
        reference.append(last(engine, 0, ids[300 : 300 + count], 300))
    other = LlamaCppEngine(LoadSettings(smollm2_path, 1024, max_sequences=3), ModelFingerprint("2" * 64))
    try:
        for count, wanted in zip((1, 5, 60), reference, strict=True):
            other.write(S(2), [PlacedRows(rows, 0)])
            assert np.array_equal(last(other, 2, ids[300 : 300 + count], 300), wanted), count
    finally:
        other.close()


@pytest.mark.parametrize("byte", [b"a", b" ", b"\n", b"1", b"(", "é".encode(), "漢".encode()])
def test_a_megabyte_of_one_character_is_tokenized(empty: LlamaCppEngine, byte: bytes) -> None:
    text = byte * (1_000_000 // len(byte))
    tokens = empty.vocabulary.tokenize(text, parse_special=False)
    assert b"".join(empty.vocabulary.token_bytes(token, special=False) for token in tokens) == text


def test_a_text_goes_on_as_it_should(empty: LlamaCppEngine) -> None:
    engine = empty
    ids = engine.vocabulary.tokenize(b"Berlin is the capital of Germany. Rome is the capital of", parse_special=False)
    logits = last(engine, 0, ids, 0)
    sampler = engine.sampler(SamplingParams(temperature=0.0))
    reply: list[int] = []
    while len(reply) < 12:
        token = sampler.sample(logits)
        reply.append(token)
        logits = last(engine, 0, [token], len(ids) + len(reply) - 1)
    text = b"".join(engine.vocabulary.token_bytes(token, special=True) for token in reply)
    assert text.startswith(b" Italy"), text


def test_what_python_adds_to_a_token_is_small(empty: LlamaCppEngine) -> None:
    """The driver's own time, native calls left out: of 30 – 50 ms a token 3 % would be a millisecond."""
    engine = empty
    logits = last(engine, 0, engine.vocabulary.tokenize(TEXT[:400], parse_special=False), 0)
    sampler = engine.sampler(SamplingParams(temperature=0.0))
    run = Run(S(1), (5,), 0, Logits.LAST)
    times: list[float] = []
    for _ in range(200):
        start = time.thread_time()
        engine._check_runs([run])
        engine._batch.put_one(run)
        engine._logits(1)[0].copy()
        sampler.sample(logits)
        times.append(time.thread_time() - start)
    assert statistics.median(times) < 0.0005
