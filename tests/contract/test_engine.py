"""One contract for every engine: the fake one, and llama.cpp over tiny random models of many shapes."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import kvloom.engine.llamacpp
from kvloom.engine.base import Engine, Logits, PlacedRows, Run
from kvloom.engine.fake import FakeEngine
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings, RopeOverrides, RopeScaling
from kvloom.errors import EngineError, EngineMemoryError, EngineStateError, EngineUnsupportedError
from kvloom.kv.quantize import NumpyRowCaster
from kvloom.kv.rotate import Rotator
from kvloom.types import F32Array, KVLayout, KVRows, KVType, ModelFingerprint, RopePairing, SamplingParams, SequenceId
from tests.tiny_gguf import TinyModel, write_tiny

NUM_CELLS = 1024
NUM_SEQUENCES = 6
FINGERPRINT = ModelFingerprint("ab" * 32)


@dataclass(frozen=True)
class Case:
    """An engine to test.

    `rotation_error`: how far the logits may be from a prefill at the place (0: to the bit; None: so coarse a type says
    nothing). `row_error`: how far the rotated K rows of layer 0 may be from those computed there.
    """

    name: str
    model: TinyModel | None = None
    kv_type: KVType = KVType.F16
    rotation_error: float | None = 0.06
    row_error: float = 0.005
    rope: RopeOverrides = field(default_factory=RopeOverrides)


WIDE = TinyModel(head_dim=64, num_kv_heads=4)
CASES = [
    Case("fake", rotation_error=0.0),
    Case("norm", TinyModel()),
    Case("neox", TinyModel(arch="qwen2", num_kv_heads=1)),
    Case("mha", TinyModel(num_kv_heads=4)),
    Case("q8_0", WIDE, KVType.Q8_0, 0.15, 0.02),
    Case("q4_0", WIDE, KVType.Q4_0, None, 0.2),
    Case("q8_0-unturned", TinyModel(head_dim=32), KVType.Q8_0, 0.15, 0.02),
    Case("partial", TinyModel(arch="phi2", num_rotated=8, num_kv_heads=4)),
    Case("linear", TinyModel(scaling={"type": "linear", "factor": 4.0})),
    Case(
        "yarn",
        TinyModel(arch="qwen2", head_dim=32, scaling={"type": "yarn", "factor": 4.0, "original_context_length": 1024}),
    ),
    Case(
        "yarn-override",
        TinyModel(arch="qwen2", head_dim=32, context=1024),
        rope=RopeOverrides(scaling=RopeScaling.YARN, freq_scale=0.25, yarn_original_context=1024),
    ),
    Case("llama-3", TinyModel(rope_freqs=True, freq_base=500000.0)),
    Case("longrope", TinyModel(long_factors=True, scaling={"type": "longrope", "original_context_length": 512})),
    Case("some-layers-without-rope", TinyModel(arch="smollm3", num_layers=5)),
    Case("alibi", TinyModel(arch="mpt", num_kv_heads=4, context=2048)),
]
SHAPES = [case for case in CASES if case.name in ("fake", "norm", "neox", "q8_0")]


def S(number: int) -> SequenceId:  # noqa: N802 (it reads as the type that it makes)
    return SequenceId(number)


def load(path: Path, case: Case, num_cells: int = NUM_CELLS, max_sequences: int = NUM_SEQUENCES) -> LlamaCppEngine:
    settings = LoadSettings(
        path,
        num_cells=num_cells,
        kv_type_k=case.kv_type,
        kv_type_v=case.kv_type,
        max_sequences=max_sequences,
        num_threads=1,
        rope=case.rope,
    )
    return LlamaCppEngine(settings, FINGERPRINT)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """Engines by case name, loaded when first asked for, closed at the end."""
    folder = tmp_path_factory.mktemp("tiny")

    class Engines(dict[str, Engine]):
        def __missing__(self, name: str) -> Engine:
            case = next(case for case in CASES if case.name == name)
            if case.model is None:
                engine: Engine = FakeEngine(NUM_CELLS, NUM_SEQUENCES)
            else:
                engine = load(write_tiny(folder / f"{name}.gguf", case.model), case)
            self[name] = engine
            return engine

    engines = Engines()
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


@pytest.fixture
def any_engine(loaded: dict[str, Engine], case: Case) -> Engine:
    """Every case."""
    return emptied(loaded[case.name])


@pytest.fixture(params=SHAPES, ids=lambda case: case.name)
def engine(loaded: dict[str, Engine], request: pytest.FixtureRequest) -> Engine:
    """The few shapes that matter where positions do not."""
    return emptied(loaded[request.param.name])


def emptied(engine: Engine) -> Engine:
    for number in range(NUM_SEQUENCES):
        engine.remove(S(number))
    assert engine.used_cells() == 0
    return engine


def tokens(engine: Engine, count: int, seed: int = 1) -> list[int]:
    size = min(256, engine.vocabulary.size)
    return [int(token) for token in np.random.default_rng(seed).integers(0, size, count)]


def last_logits(engine: Engine, sequence: int, ids: list[int], start: int) -> F32Array:
    logits = engine.decode([Run(S(sequence), ids, start, Logits.LAST)])[0]
    assert logits is not None
    return logits


def spread(a: F32Array, b: F32Array) -> float:
    """How far two logits are apart, as a share of their own spread."""
    return float(np.abs(a - b).mean() / a.std())


def row_error(rows: KVRows, wanted: KVRows) -> float:
    """Relative distance of the K rows of layer 0, which depend on token and position alone."""
    shape = rows.layout.layers[0]
    caster = NumpyRowCaster()
    values: list[F32Array] = []
    for part in (rows, wanted):
        values.append(np.empty(part.num_tokens * shape.num_heads * shape.k_head_dim, np.float32))
        caster.to_f32(part.layout.k_type, part.k(0).reshape(-1), values[-1])
    return float(np.linalg.norm(values[0] - values[1]) / np.linalg.norm(values[1]))


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_logits_come_for_the_rows_that_asked(engine: Engine) -> None:
    ids = tokens(engine, 5)
    every = engine.decode([Run(S(0), ids, 0, Logits.ALL)])[0]
    assert every is not None
    assert every.shape == (5, engine.vocabulary.size)
    last = last_logits(engine, 1, ids, 0)
    assert np.array_equal(every[-1], last)
    assert engine.decode([Run(S(2), ids, 0)]) == [None]


def test_a_sequence_starts_anywhere_and_goes_on_at_its_end(engine: Engine) -> None:
    ids = tokens(engine, 20)
    engine.decode([Run(S(0), ids[:10], 500)])
    assert engine.last_position(S(0)) == 509
    engine.decode([Run(S(0), ids[10:], 510)])
    assert engine.last_position(S(0)) == 519
    assert engine.last_position(S(1)) is None


@pytest.mark.parametrize("start", [0, 9, 11, 12])
def test_a_gap_or_an_overlap_is_refused_and_nothing_changes(engine: Engine, start: int) -> None:
    ids = tokens(engine, 10)
    engine.decode([Run(S(0), ids, 0)])
    with pytest.raises(EngineStateError, match="must start at 10"):
        engine.decode([Run(S(1), ids, 0), Run(S(0), ids, start)])
    assert engine.used_cells() == 10
    assert engine.last_position(S(1)) is None
    assert last_logits(engine, 0, ids, 10).shape == (engine.vocabulary.size,)


@pytest.mark.parametrize("position", [-1, 2**31 - 1])
def test_a_position_that_no_cell_can_hold_is_refused(engine: Engine, position: int) -> None:
    with pytest.raises(EngineStateError):
        engine.decode([Run(S(0), [1], position)])


def test_wrong_ids_and_sequences_are_refused_before_they_reach_the_native_side(engine: Engine) -> None:
    for wrong in (-1, engine.vocabulary.size):
        with pytest.raises(EngineStateError, match="token"):
            engine.decode([Run(S(0), [1, wrong, 1], 0)])
    for number in (-1, engine.capabilities.max_sequences):
        with pytest.raises(EngineStateError, match="does not exist"):
            engine.decode([Run(S(number), [1], 0)])
        with pytest.raises(EngineStateError, match="does not exist"):
            engine.copy(S(0), S(number), 0, 1)
        with pytest.raises(EngineStateError, match="does not exist"):
            engine.remove(S(number))
    with pytest.raises(EngineStateError):
        engine.decode([Run(S(0), [], 0)])
    with pytest.raises(EngineStateError, match="two runs"):
        engine.decode([Run(S(0), [1], 0), Run(S(0), [1], 1)])
    assert engine.used_cells() == 0


def test_runs_of_many_sequences_in_one_call_are_as_if_alone(any_engine: Engine) -> None:
    """What blend does: 8 – 96 tokens each, in different sequences, over a shared prefix."""
    engine = any_engine
    prefix = tokens(engine, 40)
    engine.decode([Run(S(0), prefix, 0)])
    lengths = (8, 96, 33, 70)
    runs = [Run(S(1 + i), tokens(engine, length, i), 40, Logits.LAST) for i, length in enumerate(lengths)]
    for run in runs:
        engine.copy(S(0), run.sequence, 0, 40)
    together = engine.decode(runs)
    assert engine.used_cells() == 40 + sum(lengths)
    for run, logits in zip(runs, together, strict=True):
        assert logits is not None
        engine.remove(run.sequence)
        engine.copy(S(0), run.sequence, 0, 40)
        alone = last_logits(engine, run.sequence, list(run.tokens), 40)
        assert spread(alone, logits) < 0.02


def test_a_wrong_token_earlier_changes_the_logits(any_engine: Engine) -> None:
    ids = tokens(any_engine, 30)
    right = last_logits(any_engine, 0, ids, 0)
    for at in (0, 13, 28):
        changed = [*ids]
        changed[at] = (ids[at] + 1) % 200
        assert spread(right, last_logits(any_engine, 1, changed, 0)) > 0.002
        any_engine.remove(S(1))


# --- cuts and padding (llama.cpp) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[448, 152], [64, 536], [100, 500], [65, 64, 471], [512, 88]])
def test_cuts_of_at_least_a_quantum_agree_to_the_bit(loaded: dict[str, Engine], cuts: list[int]) -> None:
    engine = emptied(loaded["neox"])
    assert engine.capabilities.prefill_quantum == 64
    ids = tokens(engine, 600)
    whole = last_logits(engine, 0, ids, 0)
    _, rows = engine.read(S(0))
    engine.remove(S(0))
    start = 0
    for size in cuts:
        logits = last_logits(engine, 0, ids[start : start + size], start)
        start += size
    assert np.array_equal(whole, logits)
    assert np.array_equal(rows.data, engine.read(S(0))[1].data)


def test_a_small_prefill_is_padded_to_the_bits_of_a_large_one(loaded: dict[str, Engine]) -> None:
    """520 = 512 + 8 would leave 8 rows: the last batch takes 64 more from the one before."""
    engine = emptied(loaded["neox"])
    ids = tokens(engine, 600)
    every = engine.decode([Run(S(0), ids, 0, Logits.ALL)])[0]
    assert every is not None
    for count in (54, 63, 520, 575):
        engine.remove(S(0))
        assert np.array_equal(last_logits(engine, 0, ids[:count], 0), every[count - 1]), count


def test_padding_leaves_no_trace(loaded: dict[str, Engine]) -> None:
    engine = emptied(loaded["norm"])
    engine.decode([Run(S(0), tokens(engine, 20), 0)])
    assert engine.used_cells() == 20
    positions, _ = engine.read(S(0))
    assert positions.tolist() == list(range(20))
    # Cells that padding still held could not be had here.
    engine.decode([Run(S(1), tokens(engine, NUM_CELLS - 20), 0)])
    assert engine.used_cells() == NUM_CELLS


def test_where_there_is_no_room_for_padding_there_is_none(loaded: dict[str, Engine]) -> None:
    engine = emptied(loaded["norm"])
    engine.decode([Run(S(1), tokens(engine, NUM_CELLS - 20), 0)])
    engine.decode([Run(S(0), tokens(engine, 20), 0)])
    assert engine.used_cells() == NUM_CELLS


def test_an_interrupt_between_batches_leaves_the_sequences_as_they_were(loaded: dict[str, Engine]) -> None:
    engine = emptied(loaded["neox"])
    ids = tokens(engine, 900)
    engine.decode([Run(S(0), ids[:50], 0)])
    reference = last_logits(engine, 0, ids[:3], 50)
    engine.remove(S(0), 50)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    num_interrupted = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay_s in (0.002, 0.004, 0.008, 0.016):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, delay_s)
                    engine.decode([Run(S(0), ids[:450], 50, Logits.ALL), Run(S(1), ids[450:], 7)])
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                num_interrupted += 1
            engine.remove(S(0), 50)
            engine.remove(S(1))
            assert engine.used_cells() == 50
            assert np.array_equal(last_logits(engine, 0, ids[:3], 50), reference)
            engine.remove(S(0), 50)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert num_interrupted


# --- room -------------------------------------------------------------------------------------------------------------


def test_out_of_cells_raises_with_the_numbers_and_leaves_everything(engine: Engine) -> None:
    ids = tokens(engine, 1000)
    engine.decode([Run(S(0), ids, 0)])
    with pytest.raises(EngineMemoryError, match=r"25 cells.* 24 of 1024"):
        engine.decode([Run(S(1), ids[:20], 0), Run(S(2), ids[:5], 0)])
    assert engine.used_cells() == 1000
    assert engine.last_position(S(1)) is None
    engine.decode([Run(S(1), ids[:24], 0)])
    with pytest.raises(EngineMemoryError):
        engine.decode([Run(S(0), [1], 1000)])
    assert engine.last_position(S(0)) == 999


def test_writing_more_than_fits_is_refused_before_the_old_is_gone(engine: Engine) -> None:
    ids = tokens(engine, 700)
    engine.decode([Run(S(0), ids, 0)])
    _, rows = engine.read(S(0))
    with pytest.raises(EngineMemoryError):
        engine.write(S(1), [PlacedRows(rows, 0)])
    assert engine.last_position(S(1)) is None
    engine.write(S(0), [PlacedRows(rows, 0)])  # its own cells are given back first
    assert engine.used_cells() == 700


# --- copy and remove --------------------------------------------------------------------------------------------------


def test_a_copy_shares_cells_and_is_the_same_context(any_engine: Engine) -> None:
    engine = any_engine
    ids = tokens(engine, 50)
    engine.decode([Run(S(0), ids[:40], 0)])
    engine.copy(S(0), S(1), 0, 40)
    assert engine.used_cells() == 40
    assert np.array_equal(last_logits(engine, 0, ids[40:44], 40), last_logits(engine, 1, ids[40:44], 40))
    assert engine.used_cells() == 48
    engine.remove(S(0))
    assert engine.used_cells() == 44
    assert engine.last_position(S(1)) == 43


def test_a_copy_onto_held_positions_is_refused(engine: Engine) -> None:
    ids = tokens(engine, 20)
    engine.decode([Run(S(0), ids, 0), Run(S(1), ids[:5], 10)])
    with pytest.raises(EngineStateError, match="already holds position 10"):
        engine.copy(S(0), S(1), 0, 20)
    engine.copy(S(0), S(1), 0, 10)
    assert engine.last_position(S(1)) == 14
    assert engine.read(S(1))[0].tolist() == list(range(15))


def test_what_a_hole_held_is_outside_the_attention(any_engine: Engine) -> None:
    engine = any_engine
    parts = {name: tokens(engine, 20, seed) for seed, name in enumerate(("head", "secret", "other", "tail"))}
    rows: dict[str, KVRows] = {}
    for name, ids in parts.items():
        engine.decode([Run(S(0), ids, 0)])
        rows[name] = engine.read(S(0))[1]
        engine.remove(S(0))
    answers: list[F32Array] = []
    for number, middle in enumerate(("secret", "other", None), start=1):
        placed = [PlacedRows(rows["head"], 0), PlacedRows(rows["tail"], 40)]
        engine.write(S(number), placed + ([PlacedRows(rows[middle], 20)] if middle else []))
        engine.remove(S(number), 20, 40)
        answers.append(last_logits(engine, number, [1, 2, 3], 60))
    assert spread(answers[0], answers[1]) < 0.02
    assert spread(answers[0], answers[2]) < 0.02
    engine.write(S(4), [PlacedRows(rows["head"], 0), PlacedRows(rows["secret"], 20), PlacedRows(rows["tail"], 40)])
    assert spread(answers[0], last_logits(engine, 4, [1, 2, 3], 60)) > 0.02


def test_a_middle_range_leaves_a_hole_and_decoding_goes_on_behind_it(engine: Engine) -> None:
    engine.decode([Run(S(0), tokens(engine, 60), 0)])
    engine.remove(S(0), 10, 30)
    assert engine.last_position(S(0)) == 59
    assert engine.used_cells() == 40
    with pytest.raises(EngineStateError):
        engine.decode([Run(S(0), tokens(engine, 20), 10)])
    engine.decode([Run(S(0), tokens(engine, 5), 60)])
    assert engine.read(S(0))[0].tolist() == [*range(10), *range(30, 65)]


def test_a_range_is_computed_again_beside_its_prefix_and_put_in_place(any_engine: Engine) -> None:
    """The way of blend: prefix to a scratch sequence, compute there, swap."""
    engine = any_engine
    ids = tokens(engine, 60)
    engine.decode([Run(S(0), ids, 0)])
    reference = last_logits(engine, 0, [7, 8], 60)
    engine.remove(S(0), 60)
    engine.copy(S(0), S(1), 0, 20)
    engine.decode([Run(S(1), ids[20:40], 20)])
    engine.remove(S(0), 20, 40)
    engine.copy(S(1), S(0), 20, 40)
    engine.remove(S(1))
    assert engine.used_cells() == 60
    assert spread(reference, last_logits(engine, 0, [7, 8], 60)) < 0.05


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_read_and_written_elsewhere_give_the_same_logits_to_the_bit(any_engine: Engine) -> None:
    engine = any_engine
    ids = tokens(engine, 130)
    engine.decode([Run(S(0), ids[:128], 0)])
    reference = last_logits(engine, 0, ids[128:], 128)
    engine.remove(S(0), 128)
    positions, rows = engine.read(S(0))
    assert positions.tolist() == list(range(128))
    assert rows.first_position == 0
    engine.remove(S(0))
    engine.write(S(3), [PlacedRows(rows, 0)])
    assert engine.last_position(S(3)) == 127
    assert np.array_equal(reference, last_logits(engine, 3, ids[128:], 128))


def test_rows_restore_to_the_bit_into_a_fragmented_cache(any_engine: Engine) -> None:
    """The rows come back exactly wherever their cells lie, and a few rows over them are computed alike."""
    engine = any_engine
    ids = tokens(engine, 133)
    engine.decode([Run(S(0), ids[:130], 0)])
    reference = last_logits(engine, 0, ids[130:], 130)
    engine.remove(S(0), 130)
    _, rows = engine.read(S(0))
    engine.remove(S(0))
    for piece in range(12):  # two sequences' cells in turn, then one of them gone
        engine.decode([Run(S(1 + piece % 2), tokens(engine, 37, piece), piece // 2 * 37)])
    engine.remove(S(1))
    engine.write(S(4), [PlacedRows(rows, 0)])
    assert np.array_equal(engine.read(S(4))[1].data, rows.data)
    assert np.array_equal(reference, last_logits(engine, 4, ids[130:], 130))


def test_a_range_is_read_alone_and_leaves_nothing_behind(any_engine: Engine) -> None:
    engine = any_engine
    engine.decode([Run(S(0), tokens(engine, 90), 100)])
    _, whole = engine.read(S(0))
    positions, part = engine.read(S(0), 120, 150)
    assert positions.tolist() == list(range(120, 150))
    assert part.first_position == 120
    assert np.array_equal(part.data, whole.slice(20, 50).data)
    assert engine.used_cells() == 90
    assert engine.read(S(0), 300, 400)[1].num_tokens == 0
    assert engine.read(S(2))[1].num_tokens == 0


def test_rows_come_in_the_order_of_positions_whatever_the_cells(any_engine: Engine) -> None:
    engine = any_engine
    ids = tokens(engine, 60)
    engine.decode([Run(S(0), ids, 0)])
    _, before = engine.read(S(0))
    # Cells of the later half come first now.
    engine.copy(S(0), S(1), 30, 60)
    engine.write(S(2), [PlacedRows(before.slice(0, 30), 0)])
    engine.remove(S(0))
    engine.copy(S(2), S(1), 0, 30)
    positions, after = engine.read(S(1))
    assert positions.tolist() == list(range(60))
    assert np.array_equal(before.data, after.data)


def test_rotated_rows_equal_a_prefill_at_the_place(loaded: dict[str, Engine], case: Case) -> None:
    engine = emptied(loaded[case.name])
    assert engine.capabilities.can_rotate, engine.capabilities.why_not
    rotator = Rotator(engine.layout, engine.rope, getattr(engine, "row_caster", None))
    ids = tokens(engine, 70)
    sink = engine.sink_token
    has_rope = any(layer is not None for layer in engine.rope.layers)
    # Computed alone behind the sink at 0; wanted behind the sink at 900.
    engine.decode([Run(S(0), [sink, *ids], 0)])
    rows = engine.read(S(0), 1)[1]
    placed = [PlacedRows(rows, 901), PlacedRows(engine.read(S(0), 0, 1)[1], 900)]
    engine.remove(S(0))
    engine.decode([Run(S(1), [sink, *ids], 900)])
    there = engine.read(S(1), 901)[1]
    reference = last_logits(engine, 1, [5, 6, 7], 971)
    engine.remove(S(1))
    engine.write(S(2), placed, rotator.lay)
    assert engine.last_position(S(2)) == 970
    assert row_error(engine.read(S(2), 901)[1], there) <= case.row_error
    assert row_error(rows, there) > 3 * case.row_error or not has_rope, "the test must see a missing rotation"
    if case.rotation_error is None:
        return
    assert spread(reference, last_logits(engine, 2, [5, 6, 7], 971)) <= case.rotation_error
    engine.write(S(3), placed)
    unrotated = spread(reference, last_logits(engine, 3, [5, 6, 7], 971))
    assert unrotated > 2 * case.rotation_error or not has_rope, "the test must see a missing rotation"


def test_parts_may_leave_holes_and_come_in_any_order(engine: Engine) -> None:
    engine.decode([Run(S(0), tokens(engine, 40), 0)])
    _, rows = engine.read(S(0))
    engine.write(S(1), [PlacedRows(rows.slice(20, 40), 20), PlacedRows(rows.slice(0, 5), 0)])
    positions, back = engine.read(S(1))
    assert positions.tolist() == [*range(5), *range(20, 40)]
    assert np.array_equal(back.slice(5, 25).data, rows.slice(20, 40).data)
    assert engine.used_cells() == 40 + 25
    engine.write(S(1), [])
    assert engine.last_position(S(1)) is None


def test_overlapping_parts_and_foreign_rows_are_refused(engine: Engine) -> None:
    engine.decode([Run(S(0), tokens(engine, 20), 0)])
    _, rows = engine.read(S(0))
    with pytest.raises(EngineStateError, match="position 15"):
        engine.write(S(0), [PlacedRows(rows, 0), PlacedRows(rows.slice(0, 5), 15)])
    foreign = KVLayout(engine.layout.layers[:1], engine.layout.k_type, engine.layout.v_type)
    few = KVRows(foreign, 2, 0, np.zeros(foreign.token_bytes * 2, np.uint8))
    with pytest.raises(EngineStateError, match="layout"):
        engine.write(S(0), [PlacedRows(few, 0)])
    assert engine.last_position(S(0)) == 19


def test_a_lay_that_fails_leaves_the_sequence_as_it_was(engine: Engine) -> None:
    engine.decode([Run(S(0), tokens(engine, 20), 0)])
    _, rows = engine.read(S(0))

    def lay(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.write(S(0), [PlacedRows(rows, 5)], lay)
    assert engine.last_position(S(0)) == 19
    assert np.array_equal(engine.read(S(0))[1].data, rows.data)


# --- the vocabulary and the samplers ----------------------------------------------------------------------------------


def test_special_tokens_in_a_text_stay_text(engine: Engine) -> None:
    text = b"a<|im_end|>b"
    plain = engine.vocabulary.tokenize(text, parse_special=False)
    parsed = engine.vocabulary.tokenize(text, parse_special=True)
    assert b"".join(engine.vocabulary.token_bytes(t, special=False) for t in plain) == text
    assert not any(engine.vocabulary.is_control(token) for token in plain)
    assert len(parsed) == 3
    assert engine.vocabulary.is_end(parsed[1])
    assert engine.vocabulary.token_bytes(parsed[1], special=True) == b"<|im_end|>"
    assert engine.vocabulary.token_bytes(parsed[1], special=False) == b""


def test_the_sink_is_the_token_that_starts_a_message(engine: Engine) -> None:
    assert engine.vocabulary.token_bytes(engine.sink_token, special=True) == b"<|im_start|>"


def test_greedy_takes_the_largest_and_a_seed_repeats_its_draws(engine: Engine) -> None:
    logits = last_logits(engine, 0, tokens(engine, 5), 0)
    greedy = engine.sampler(SamplingParams(temperature=0.0))
    assert greedy.sample(logits) == int(logits.argmax())
    greedy.close()
    draws: list[list[int]] = []
    for seed in (1, 1, 2):
        sampler = engine.sampler(SamplingParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed))
        draws.append([sampler.sample(logits) for _ in range(30)])
        sampler.close()
        sampler.close()
    assert draws[0] == draws[1] != draws[2]


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    for engine in (FakeEngine(64, 2), load(write_tiny(tmp_path / "m.gguf", TinyModel()), CASES[1])):
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.decode([Run(S(0), [1], 0)])


# --- what models cannot do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (TinyModel(arch="gemma3", num_layers=6, sliding_window=64), "sliding-window"),
        (TinyModel(arch="mamba"), "recurrent"),
        (TinyModel(arch="qwen2vl"), "M-RoPE"),
    ],
    ids=["sliding-window", "recurrent", "m-rope"],
)
def test_a_model_whose_rows_cannot_be_moved_loads_and_says_why(tmp_path: Path, model: TinyModel, reason: str) -> None:
    engine = load(write_tiny(tmp_path / "m.gguf", model), CASES[1])
    try:
        assert not engine.capabilities.can_move_kv
        assert not engine.capabilities.can_rotate
        assert reason in engine.capabilities.why_not
        logits = last_logits(engine, 0, tokens(engine, 100), 0)
        assert np.isfinite(logits).all()
        with pytest.raises(EngineUnsupportedError, match=reason):
            engine.read(S(0))
        with pytest.raises(EngineUnsupportedError, match=reason):
            engine.write(S(0), [])
        engine.remove(S(0))
        assert engine.used_cells() == 0
    finally:
        engine.close()


def test_recurrent_state_cannot_be_cut_and_nothing_changes(tmp_path: Path) -> None:
    engine = load(write_tiny(tmp_path / "m.gguf", TinyModel(arch="mamba")), CASES[1])
    try:
        engine.decode([Run(S(0), tokens(engine, 10), 0)])
        with pytest.raises(EngineUnsupportedError, match="recurrent"):
            engine.remove(S(0), 3, 5)
        assert engine.last_position(S(0)) == 9
        last_logits(engine, 0, [1], 10)
    finally:
        engine.close()


def test_learned_positions_can_be_moved_but_not_rotated_nor_outrun(tmp_path: Path) -> None:
    model = TinyModel(arch="gpt2", num_kv_heads=4, context=256)
    engine = load(write_tiny(tmp_path / "m.gguf", model), CASES[1])
    try:
        assert engine.capabilities.can_move_kv
        assert not engine.capabilities.can_rotate
        assert "rotating" in engine.capabilities.why_not
        engine.decode([Run(S(0), tokens(engine, 256), 0)])
        with pytest.raises(EngineUnsupportedError, match="256"):
            engine.decode([Run(S(0), [1], 256)])
    finally:
        engine.close()


def test_a_lesser_fake_refuses_what_it_lacks() -> None:
    engine = FakeEngine(64, 2, can_move_kv=False, can_rotate=False)
    with pytest.raises(EngineUnsupportedError):
        engine.read(S(0))


def test_the_rope_found_is_the_one_that_was_written(loaded: dict[str, Engine]) -> None:
    for name, pairing, pairs in (
        ("norm", RopePairing.NORM, 8),
        ("neox", RopePairing.NEOX, 8),
        ("partial", RopePairing.NEOX, 4),
    ):
        layers = loaded[name].rope.layers
        assert {(layer.pairing, len(layer.inv_freq)) for layer in layers if layer} == {(pairing, pairs)}
    first = loaded["linear"].rope.layers[0]
    assert first is not None
    assert first.inv_freq[0] == 0.25
    layers = loaded["some-layers-without-rope"].rope.layers
    assert [layer is None for layer in layers] == [False, False, False, True, False]
    assert set(loaded["alibi"].rope.layers) == {None}


def test_nothing_here_shifts_positions_natively() -> None:
    """seq_add counts by allocated cells, adds up on quantized K, and is applied late: rows are rotated instead."""
    folder = Path(kvloom.engine.llamacpp.__file__).parent
    for source in folder.glob("*.py"):
        assert not re.search(r"seq_add|seq_div|abort_callback", source.read_text(encoding="utf-8")), source.name
