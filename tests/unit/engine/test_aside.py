"""Prefills in a context of their own: the same rows as computed alone, and never rows of what a sequence was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.engine.base import Logits, PlacedRows, Run
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings, side
from kvloom.errors import EngineMemoryError
from kvloom.types import F32Array, ModelFingerprint, SequenceId
from tests.tiny_gguf import TinyModel, write_tiny

OTHER, MINE, THIRD = SequenceId(0), SequenceId(1), SequenceId(2)
NUM_OTHER = 640


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("aside") / "tiny.gguf", TinyModel(arch="qwen2", head_dim=32))


def load(model: Path, aside_cells: int) -> LlamaCppEngine:
    chosen = LoadSettings(model, num_cells=4096, max_sequences=4, num_threads=1, aside_cells=aside_cells)
    return LlamaCppEngine(chosen, ModelFingerprint("ab" * 32))


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaCppEngine]:
    engine = load(model, 1024)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[LlamaCppEngine]:
    engine = load(model, 0)
    yield engine
    engine.close()


def prompt(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 90, length)]


def begin(engine: LlamaCppEngine) -> None:
    """Empty, but for the cells of another sequence."""
    for number in range(4):
        engine.remove(SequenceId(number))
    engine.decode([Run(OTHER, prompt(0, NUM_OTHER), 0)])


def is_held(engine: LlamaCppEngine, sequence: SequenceId, stop: int) -> bool:
    beside = engine._aside
    return beside is not None and beside.holds(sequence, stop)


def test_rows_are_those_of_a_prefill_alone_to_the_bit(engine: LlamaCppEngine, plain: LlamaCppEngine) -> None:
    tokens = prompt(1, 300)
    for number in range(4):
        plain.remove(SequenceId(number))
    begin(engine)
    found = []
    for one in (plain, engine):
        one.decode([Run(MINE, tokens[:128], 0)])
        found.append((one.decode([Run(MINE, tokens[128:], 128, Logits.LAST)])[0], one.read(MINE)[1].data))
    assert is_held(engine, MINE, 300)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert engine.used_cells() == NUM_OTHER + 300


def test_short_runs_and_few_cells_of_others_stay_where_they_are(engine: LlamaCppEngine) -> None:
    begin(engine)
    engine.decode([Run(MINE, prompt(1, 63), 0)])
    assert not is_held(engine, MINE, 63)
    engine.remove(OTHER, 100)
    engine.remove(MINE)
    engine.decode([Run(MINE, prompt(1, 128), 0)])
    assert not is_held(engine, MINE, 128)


def test_a_prompt_that_is_too_long_for_it_is_computed_among_the_others(engine: LlamaCppEngine) -> None:
    begin(engine)
    logits = engine.decode([Run(MINE, prompt(1, 1100), 0, Logits.LAST)])[0]
    assert logits is not None
    assert not is_held(engine, MINE, 1100)


STEPS = st.lists(
    st.tuples(st.sampled_from(["prefill", "token", "cut", "share", "write", "all"]), st.integers(0, 3)),
    min_size=3,
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_whatever_happens_to_a_sequence_the_next_prefill_stands_behind_what_it_is_now(
    engine: LlamaCppEngine, plain: LlamaCppEngine, steps: list[tuple[str, int]]
) -> None:
    begin(engine)
    for number in range(4):
        plain.remove(SequenceId(number))
    for place, step in enumerate(steps):
        found = [_done(one, place, *step) for one in (engine, plain)]
        for ours, theirs in zip(found[0], found[1], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-2)
    assert engine.num_tokens(MINE) == plain.num_tokens(MINE)


def _done(engine: LlamaCppEngine, place: int, kind: str, number: int) -> list[F32Array]:
    """One step on an engine: the logits that it gave."""
    last = engine.last_position(MINE)
    start = 0 if last is None else last + 1
    if kind in ("prefill", "token", "all"):
        count = {"prefill": 70 + 50 * number, "token": 1, "all": 66}[kind]
        logits = engine.decode(
            [Run(MINE, prompt(place + 10, count), start, Logits.ALL if kind == "all" else Logits.LAST)]
        )
        return [found for found in logits if found is not None]
    if kind == "cut" and start:
        engine.remove(MINE, start * number // 4)
    elif kind == "share" and start:
        engine.remove(THIRD)
        engine.copy(MINE, THIRD, 0, start)
        engine.remove(MINE)
        engine.copy(THIRD, MINE, 0, max(1, start - number))
    elif kind == "write" and start:
        _, rows = engine.read(MINE)
        engine.write(MINE, [PlacedRows(rows, 0)])
    return []


def test_where_it_cannot_be_had_prefills_are_computed_as_ever(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(model, 1024)

    def refuse(*_: object, **__: object) -> int:
        raise EngineMemoryError("no memory")

    monkeypatch.setattr(side, "open_context", refuse)
    begin(engine)
    logits = engine.decode([Run(MINE, prompt(1, 128), 0, Logits.LAST)])[0]
    assert logits is not None
    engine.close()


def test_giving_all_cells_back_gives_its_own_back_too(model: Path) -> None:
    engine = load(model, 1024)
    begin(engine)
    engine.decode([Run(MINE, prompt(1, 128), 0)])
    assert is_held(engine, MINE, 128)
    engine.resize(0)
    assert engine._aside is not None
    assert engine._aside._side is None
    engine.resize(4096)
    begin(engine)
    engine.decode([Run(MINE, prompt(1, 128), 0)])
    assert is_held(engine, MINE, 128)
    engine.close()
