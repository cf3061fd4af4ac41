"""How runs become native batches: nothing lost, nothing too large, nothing small that need not be."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.engine.base import Logits, Run
from kvloom.engine.llamacpp.batch import BatchLimits, NativeBatch, Piece, balance_tokens, cut
from kvloom.types import SequenceId

LIMITS = BatchLimits(max_rows=512, max_outputs=64, quantum=64, balance_tokens=1300.0)

run_sizes = st.lists(st.tuples(st.integers(1, 1500), st.sampled_from(Logits)), min_size=1, max_size=8)


def runs_of(sizes: list[tuple[int, Logits]]) -> list[Run]:
    return [Run(SequenceId(i), range(size), 10 * i, logits) for i, (size, logits) in enumerate(sizes)]


@settings(max_examples=200, deadline=None)
@given(run_sizes)
def test_every_token_is_in_exactly_one_batch_and_in_order(sizes: list[tuple[int, Logits]]) -> None:
    runs = runs_of(sizes)
    seen = [(p.run, i) for pieces in cut(runs, LIMITS) for p in pieces for i in range(p.start, p.stop)]
    assert seen == [(i, j) for i, (size, _) in enumerate(sizes) for j in range(size)]


@settings(max_examples=200, deadline=None)
@given(run_sizes)
def test_no_batch_exceeds_what_the_native_side_can_take(sizes: list[tuple[int, Logits]]) -> None:
    runs = runs_of(sizes)
    for pieces in cut(runs, LIMITS):
        assert sum(p.stop - p.start for p in pieces) <= LIMITS.max_rows
        outputs = 0
        for piece in pieces:
            run = runs[piece.run]
            if run.logits is Logits.ALL:
                outputs += piece.stop - piece.start
            elif run.logits is Logits.LAST and piece.stop == len(run.tokens):
                outputs += 1
        assert outputs <= LIMITS.max_outputs


@given(st.integers(1, 5000))
def test_a_prefill_is_cut_at_multiples_of_the_quantum_and_its_last_batch_is_not_small(size: int) -> None:
    runs = runs_of([(size, Logits.LAST)])
    sizes = [sum(p.stop - p.start for p in pieces) for pieces in cut(runs, LIMITS)]
    assert all(rows % LIMITS.quantum == 0 for rows in sizes[:-1])
    assert len(sizes) == 1 or sizes[-1] >= LIMITS.quantum


def test_padding_pays_from_fewer_rows_the_more_there_is_to_attend_to() -> None:
    assert [LIMITS.pad_from(n) for n in (0, 2000, 6000, 100_000)] == [54, 32, 24, 17]
    assert LIMITS.padding(40, 100, is_part=False) == 0
    assert LIMITS.padding(40, 6000, is_part=False) == 24
    assert LIMITS.padding(5, 6000, is_part=False) == 0
    assert LIMITS.padding(5, 0, is_part=True) == 59
    assert LIMITS.padding(64, 6000, is_part=True) == 0
    one_path = BatchLimits(512, 64, 1, 1300.0)
    assert one_path.padding(1, 6000, is_part=True) == 0


def test_the_balance_follows_the_models_shape() -> None:
    assert round(balance_tokens(630_000_000, 896, 24)) == 1300
    assert balance_tokens(7_000_000_000, 4096, 32) > 2300
    assert balance_tokens(0, 0, 0) == 1.0


def test_rows_of_several_runs_and_padding_are_laid_one_behind_the_other() -> None:
    batch = NativeBatch(16)
    runs = [
        Run(SequenceId(3), [10, 11, 12, 13], 100, Logits.LAST),
        Run(SequenceId(5), [20, 21], 7, Logits.ALL),
    ]
    native: Any = batch.put(runs, [Piece(0, 2, 4), Piece(1, 0, 2)], 3, 9)
    assert native.n_tokens == 7
    assert list(native.token[:7]) == [12, 13, 20, 21, 12, 12, 12]
    assert list(native.pos[:7]) == [102, 103, 7, 8, 0, 1, 2]
    assert [native.seq_id[i][0] for i in range(7)] == [3, 3, 5, 5, 9, 9, 9]
    assert list(native.n_seq_id[:7]) == [1] * 7
    assert list(native.logits[:7]) == [0, 1, 1, 1, 0, 0, 0]
    one: Any = batch.put_one(Run(SequenceId(2), (42,), 77, Logits.LAST))
    assert (one.n_tokens, one.token[0], one.pos[0], one.seq_id[0][0], one.logits[0]) == (1, 42, 77, 2, 1)
