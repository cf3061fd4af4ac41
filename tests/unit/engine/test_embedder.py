"""Vectors of tiny real models: the same whatever else is in a batch and wherever it is cut, pooled as the file says."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from kvloom.engine.base import Logits, Run
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.engine.llamacpp.embedder import NUM_SEQUENCES, STEP_ROWS
from kvloom.errors import EngineStateError, EngineUnsupportedError
from kvloom.types import F32Array, ModelFingerprint, SequenceId
from tests.tiny_gguf import TinyModel, write_tiny

CLOSE = 1e-3
"""Cosine distance. Batches of other sizes take other paths in the products, and random weights make much of it."""


def engine_of(path: Path, model: TinyModel | None = None) -> LlamaCppEngine:
    if not path.exists():
        write_tiny(path, model or TinyModel())
    return LlamaCppEngine(LoadSettings(path, num_cells=512, num_threads=1), ModelFingerprint("a" * 64))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppEngine]:
    opened = engine_of(tmp_path_factory.mktemp("model") / "tiny.gguf")
    yield opened
    opened.close()


def vectors_of(engine: LlamaCppEngine, texts: Sequence[Sequence[int]], max_tokens: int = 1024) -> list[F32Array]:
    embedder = engine.embedder(max_tokens)
    try:
        return [vector for done in embedder.embed(texts) for vector in done]
    finally:
        embedder.close()


def text_of(engine: LlamaCppEngine, number: int, num_words: int) -> list[int]:
    words = [f"the {number * 31 + i} in" for i in range(num_words)]
    return engine.vocabulary.tokenize_whole(" ".join(words).encode())


def distance(one: F32Array, other: F32Array) -> float:
    return 1.0 - float(np.dot(one, other))


def test_a_vector_is_the_same_alone_and_among_others(engine: LlamaCppEngine) -> None:
    texts = [text_of(engine, number, 1 + number % 9) for number in range(2 * NUM_SEQUENCES)]
    together = vectors_of(engine, texts)
    assert all(abs(float(np.linalg.norm(vector)) - 1) < 1e-5 for vector in together)
    for number in (0, 7, NUM_SEQUENCES + 3):
        [alone] = vectors_of(engine, [texts[number]])
        assert distance(alone, together[number]) < CLOSE
    assert distance(together[0], together[7]) > 10 * CLOSE


def test_a_text_of_many_batches_is_read_as_a_whole(engine: LlamaCppEngine) -> None:
    long = text_of(engine, 1, 150)
    assert len(long) > 5 * STEP_ROWS
    around = [text_of(engine, 5, 3), long, text_of(engine, 6, 4)]
    [alone] = vectors_of(engine, [long], len(long))
    assert distance(alone, vectors_of(engine, around, len(long))[1]) < CLOSE
    # Were only its last batch in it, it would be the vector of its end.
    assert distance(alone, vectors_of(engine, [long[-STEP_ROWS:]])[0]) > 10 * CLOSE


@pytest.mark.parametrize(("number", "place"), [(2, 0), (3, -1)])
def test_pooling_is_what_the_file_says(tmp_path: Path, number: int, place: int) -> None:
    """1: the mean, 2: the first token's state, 3: the last one's."""
    means = engine_of(tmp_path / "mean.gguf", TinyModel(extra={"llama.pooling_type": 1}))
    other = engine_of(tmp_path / "other.gguf", TinyModel(extra={"llama.pooling_type": number}))
    try:
        tokens = text_of(other, 3, 60)
        [pooled] = vectors_of(other, [tokens])
        # The state of one token is the mean of a text of one; that of the last one is what all before have made of it.
        [single] = vectors_of(means, [tokens[:1]])
        [mean] = vectors_of(means, [tokens])
        assert distance(pooled, mean) > 10 * CLOSE
        assert (distance(pooled, single) < CLOSE) == (place == 0)
    finally:
        means.close()
        other.close()


def test_a_model_that_ranks_has_no_vectors(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "ranks.gguf", TinyModel(extra={"llama.pooling_type": 4}))
    assert not engine.has_embeddings
    with pytest.raises(EngineUnsupportedError, match="ranks"):
        engine.embedder(64)
    engine.close()


@pytest.mark.parametrize("arch", ["qwen2", "gpt2", "mamba"])
def test_other_kinds_of_models_make_vectors_too(tmp_path: Path, arch: str) -> None:
    engine = engine_of(tmp_path / f"{arch}.gguf", TinyModel(arch=arch))
    texts = [text_of(engine, number, 4) for number in range(3)]
    together = vectors_of(engine, texts)
    assert all(
        distance(vectors_of(engine, [text])[0], vector) < CLOSE for text, vector in zip(texts, together, strict=True)
    )
    engine.close()


def test_the_cells_of_replies_are_none_of_its_business(engine: LlamaCppEngine) -> None:
    sequence = SequenceId(0)
    before = engine.decode([Run(sequence, text_of(engine, 2, 20), 0, Logits.LAST)])[0]
    engine.remove(sequence)
    used = engine.used_cells()
    engine.decode([Run(sequence, text_of(engine, 2, 20)[:-1], 0)])
    vectors_of(engine, [text_of(engine, 9, 30)])
    tokens = text_of(engine, 2, 20)
    behind = engine.decode([Run(sequence, tokens[-1:], len(tokens) - 1, Logits.LAST)])[0]
    assert before is not None and behind is not None
    assert before.argmax() == behind.argmax()
    engine.remove(sequence)
    assert engine.used_cells() == used


def test_one_that_is_left_in_the_middle_begins_anew(engine: LlamaCppEngine) -> None:
    embedder = engine.embedder(2048)
    long, short = text_of(engine, 1, 100), text_of(engine, 4, 5)
    [wanted] = [vector for done in embedder.embed([short]) for vector in done]
    steps = embedder.embed([short, long])
    next(steps)
    steps.close()
    [again] = [vector for done in embedder.embed([short]) for vector in done]
    assert distance(wanted, again) < CLOSE
    embedder.close()
    embedder.close()
    with pytest.raises(EngineStateError, match="closed"):
        list(embedder.embed([short]))


def test_what_cannot_be_read_is_refused_before_a_native_call(engine: LlamaCppEngine) -> None:
    embedder = engine.embedder(64)
    for wrong, said in (([], "0 tokens"), ([1] * 65, "65 tokens"), ([10**6], "not among"), ([-1], "not among")):
        with pytest.raises(EngineStateError, match=said):
            embedder.embed([wrong])
    embedder.close()


def own_bytes() -> int:
    """What the process holds of its own: pages of the model's file come and go with what others need."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def taken_and_forecast(path: Path) -> tuple[int, int]:
    """Bytes, in a process of its own: what tests before gave back would be taken again without the process growing."""
    engine = LlamaCppEngine(LoadSettings(path, num_cells=256, num_threads=1), ModelFingerprint("b" * 64))
    try:
        tokens = text_of(engine, 1, 60)
        vectors_of(engine, [tokens])  # what the library keeps for itself is there now
        before = own_bytes()
        embedder = engine.embedder(2048)
        list(embedder.embed([tokens]))
        taken = own_bytes() - before
        embedder.close()
        return taken, engine.embedder_bytes(2048)
    finally:
        engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds of its own")
def test_the_forecast_is_what_it_takes(smollm2_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        taken, forecast = fresh.submit(taken_and_forecast, smollm2_path).result()
    # Cells that nothing was written to yet are not resident.
    assert 0.4 * forecast < taken < 1.15 * forecast
