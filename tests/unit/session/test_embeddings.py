"""Embeddings beside replies: made on demand where memory has room, in turns, cancelled, given back when idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvloom.engine.base import Embedder, Run
from kvloom.engine.fake import END_OF_TEXT, IM_END, FakeEngine
from kvloom.errors import (
    CancelledError,
    ContextOverflowError,
    EngineMemoryError,
    EngineUnsupportedError,
    LoomClosedError,
    UsageError,
)
from kvloom.session.embeddings import GROUP_TOKENS, LEAST_TOKENS, Embeddings
from kvloom.session.loom import Loom
from kvloom.session.requests import RawPrompt, Request
from kvloom.types import F32Array, SamplingParams
from tests.unit.session.fakes import fake_loom

BYTES_PER_TOKEN = 1000
STEP_ROWS = 128
PATIENCE_S = 20.0


class CountingEmbedder(Embedder):
    """A vector of a text's length and sum; tells the engine when it computes."""

    def __init__(self, engine: EmbeddingEngine, max_tokens: int) -> None:
        self.engine, self.max_tokens, self.num_bytes = engine, max_tokens, max_tokens * BYTES_PER_TOKEN
        self.is_open = True

    def embed(self, texts: Sequence[Sequence[int]]) -> Generator[list[F32Array], None, None]:
        for text in texts:
            assert self.is_open and len(text) <= self.max_tokens
            for _ in range(0, len(text) - STEP_ROWS, STEP_ROWS):
                self.engine.computes("embedder")
                yield []
            self.engine.computes("embedder")
            vector = np.array([len(text), sum(text), 1.0], np.float32)
            yield [vector / np.float32(np.linalg.norm(vector))]

    def close(self) -> None:
        self.is_open = False


class EmbeddingEngine(FakeEngine):
    """Fails the test where two of it compute at once. `log`: who computed, in order."""

    def __init__(self) -> None:
        super().__init__(num_cells=4096)
        self.log: list[str] = []
        self.made: list[CountingEmbedder] = []
        self._busy = threading.Semaphore()

    def computes(self, who: str) -> None:
        assert self._busy.acquire(blocking=False), "two contexts compute at once"
        try:
            self.log.append(who)
            time.sleep(0.0005)  # long enough for another to come in, if it could
        finally:
            self._busy.release()

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        self.computes("replies")
        return super().decode(runs)

    @property
    def has_embeddings(self) -> bool:
        return True

    def embedder_bytes(self, max_tokens: int) -> int:
        return max_tokens * BYTES_PER_TOKEN

    def embedder(self, max_tokens: int) -> Embedder:
        self.made.append(CountingEmbedder(self, max_tokens))
        return self.made[-1]


@contextmanager
def opened(home: Path) -> Iterator[tuple[Loom, EmbeddingEngine]]:
    engine = EmbeddingEngine()
    with fake_loom(home, engine) as loom:
        yield loom, engine


def never() -> bool:
    return False


def test_texts_and_ids_become_vectors_and_tokens_are_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        vectors, num_tokens = loom.embed(["ab", [97, 98], "abc"])
        assert num_tokens == 7
        assert np.array_equal(vectors[0], vectors[1]) and not np.array_equal(vectors[0], vectors[2])
        assert [embedder.max_tokens for embedder in engine.made] == [LEAST_TOKENS]
        loom.embed(["a" * (LEAST_TOKENS + 1)])
        assert [embedder.is_open for embedder in engine.made] == [False, True]
        assert loom.embeddings.num_bytes == engine.made[1].num_bytes
    assert not engine.made[1].is_open


def test_what_cannot_be_embedded_is_refused_with_the_reason(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        for wrong, said in (("", "text 1 is empty"), ([], "text 1 is empty"), ([999_999], "no token 999999")):
            with pytest.raises(UsageError, match=said):
                loom.embed(["x", wrong])
        with pytest.raises(ContextOverflowError, match="window of 2048") as overflow:
            loom.embed(["x" * 2049])
        assert (overflow.value.num_needed_tokens, overflow.value.num_window_tokens) == (2049, 2048)
        assert not engine.made
    with pytest.raises(LoomClosedError):
        loom.embed(["x"])
    with fake_loom(tmp_path / "other") as plain:
        assert not plain.embeddings.is_possible
        with pytest.raises(EngineUnsupportedError, match="no embeddings"):
            plain.embed(["x"])


def test_it_is_refused_where_memory_does_not_have_it(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        spare = LEAST_TOKENS * BYTES_PER_TOKEN
        embeddings = Embeddings(loom.device, lambda: spare - sum(e.num_bytes for e in engine.made if e.is_open))
        with pytest.raises(EngineMemoryError, match="MiB"):
            embeddings.embed([[1] * (LEAST_TOKENS + 1)], 2048, never)
        assert not engine.made
        assert len(embeddings.embed([[1] * 8], 2048, never)) == 1
        with pytest.raises(EngineMemoryError):
            embeddings.embed([[1] * (LEAST_TOKENS + 1)], 2048, never)
        assert engine.made[0].is_open  # the smaller one stays
        embeddings.close()


def test_it_computes_in_turns_with_the_replies_and_neither_keeps_the_other_out(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        loom.embed(["warm"])
        endless = SamplingParams(temperature=0.0, logit_bias=((END_OF_TEXT, -100.0), (IM_END, -100.0)))
        is_told = threading.Event()

        def embed() -> None:
            assert is_told.wait(PATIENCE_S)
            loom.embed(["x" * 1900] * 4)

        worker = threading.Thread(target=embed)
        worker.start()
        stream = loom.complete(Request(RawPrompt("tell me"), max_tokens=1000, sampling=endless))
        next(stream)
        engine.log.clear()
        is_told.set()
        for _ in stream:
            if not worker.is_alive():
                break
        stream.close()
        for _ in stream:
            pass
        worker.join(PATIENCE_S)
        both = [i for i, who in enumerate(engine.log) if who == "embedder"]
        assert len(both) == 4 * 15
        replies_between = engine.log[both[0] : both[-1]].count("replies")
        assert 0.5 * len(both) < replies_between < 2 * len(both)


def test_requests_come_in_between_and_a_cancelled_one_ends(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        has_left = threading.Event()
        errors: list[BaseException] = []

        def many() -> None:
            try:
                loom.embed(["x" * GROUP_TOKENS] * 600, has_left.is_set)
            except CancelledError as error:
                errors.append(error)

        worker = threading.Thread(target=many)
        worker.start()
        while not engine.log:
            time.sleep(0.001)
        assert loom.embed(["short"])[1] == 5
        assert worker.is_alive()
        has_left.set()
        worker.join(PATIENCE_S)
        assert not worker.is_alive() and len(errors) == 1


def test_an_idle_context_is_given_back_and_made_again(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        embeddings = Embeddings(loom.device, lambda: None, idle_s=0.05)
        embeddings.embed([[1, 2]], 2048, never)
        until_s = time.monotonic() + PATIENCE_S
        while engine.made[0].is_open and time.monotonic() < until_s:
            time.sleep(0.01)
        assert not engine.made[0].is_open and embeddings.num_bytes == 0
        embeddings._idle_s = PATIENCE_S
        embeddings.embed([[1, 2]], 2048, never)
        assert len(engine.made) == 2
        assert embeddings.release() == LEAST_TOKENS * BYTES_PER_TOKEN
        assert embeddings.release() == 0
        embeddings.close()


def test_low_memory_gives_it_back(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        loom.embed(["x"])
        assert "was given back" in loom.guard._release_embedder()
        assert not engine.made[0].is_open
        assert not loom.guard._release_embedder()


def test_tenants_share_it(tmp_path: Path) -> None:
    with opened(tmp_path) as (loom, engine):
        loom.tenant("one").embed(["x"])
        loom.tenant("two").embed(["y"])
        assert len(engine.made) == 1
