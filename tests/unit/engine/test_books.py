"""The books against a naive model of cells, and the refusals that keep native aborts away."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.engine.books import MAX_POSITION, CellBooks
from kvloom.errors import EngineError, EngineMemoryError, EngineStateError

NUM_SEQUENCES = 4
NUM_CELLS = 60

sequences = st.integers(0, NUM_SEQUENCES - 1)
positions = st.integers(0, 40)
steps = st.one_of(
    st.tuples(st.just("append"), sequences, st.integers(0, 3), st.integers(1, 15)),
    st.tuples(st.just("copy"), sequences, sequences, positions, positions),
    st.tuples(st.just("remove"), sequences, positions, st.one_of(st.none(), positions)),
)


class Naive:
    """Cells as objects: a dictionary of position to cell per sequence."""

    def __init__(self) -> None:
        self.held: list[dict[int, object]] = [{} for _ in range(NUM_SEQUENCES)]

    def used(self) -> int:
        return len({id(cell) for held in self.held for cell in held.values()})


def play(books: CellBooks, naive: Naive, step: tuple[object, ...]) -> None:
    match step:
        case ("append", int(sequence), int(jump), int(count)):
            last = books.last_position(sequence)
            start = jump if last is None else last + 1
            books.check_append(sequence, start, count)
            books.check_room(count)
            books.append(sequence, start, count)
            naive.held[sequence].update({p: object() for p in range(start, start + count)})
        case ("copy", int(source), int(target), int(start), int(stop)):
            books.check_copy(source, target, start, stop)
            assert not any(start <= p < stop and p in naive.held[target] for p in naive.held[source])
            books.copy(source, target, start, stop)
            naive.held[target].update({p: c for p, c in naive.held[source].items() if start <= p < stop})
        case ("remove", int(sequence), int(start), stop):
            assert stop is None or isinstance(stop, int)
            books.check_range(sequence, start, stop)
            books.remove(sequence, start, stop)
            end = MAX_POSITION if stop is None else stop
            naive.held[sequence] = {p: c for p, c in naive.held[sequence].items() if not start <= p < end}


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25))
def test_the_books_agree_with_cells_counted_one_by_one(played: list[tuple[object, ...]]) -> None:
    books, naive = CellBooks(NUM_CELLS, NUM_SEQUENCES), Naive()
    for step in played:
        before = [dict(held) for held in naive.held]
        try:
            play(books, naive, step)
        except EngineError:
            assert naive.held == before
        for sequence, held in enumerate(naive.held):
            assert books.last_position(sequence) == (max(held) if held else None)
            assert [p for s in books.spans(sequence) for p in range(s.start, s.stop)] == sorted(held)
            others = {id(c) for i, h in enumerate(naive.held) if i != sequence for c in h.values()}
            assert books.num_cells_only_in(sequence) == len({id(c) for c in held.values()} - others)
            assert books.num_tokens_between(sequence, 5, 20) == sum(5 <= p < 20 for p in held)
        assert books.num_used_cells == naive.used() <= NUM_CELLS


def test_a_long_reply_stays_one_span() -> None:
    books = CellBooks(5000, 2)
    for position in range(1000):  # two replies in turn, as in a server
        books.append(0, position, 1)
        books.append(1, position, 1)
    assert len(books.spans(0)) == len(books.spans(1)) == 1
    assert books.num_used_cells == 2000


def test_a_regrown_tail_is_not_mistaken_for_its_old_copy() -> None:
    books = CellBooks(100, 2)
    books.append(0, 0, 10)
    books.copy(0, 1, 0, 10)
    books.remove(0, 8, None)
    books.append(0, 8, 2)
    assert books.num_used_cells == 12


def test_refusals_carry_the_numbers() -> None:
    books = CellBooks(10, 2)
    books.append(0, 0, 8)
    with pytest.raises(EngineMemoryError, match=r"3 cells, but only 2 of 10"):
        books.check_room(3)
    books.check_room(3, num_freed=1)
    with pytest.raises(EngineStateError, match="start at 8, not 9"):
        books.check_append(0, 9, 1)
    with pytest.raises(EngineStateError, match="onto itself"):
        books.check_copy(0, 0, 0, 1)
    for start, stop in ((-1, 3), (5, 4), (0, MAX_POSITION + 2)):
        with pytest.raises(EngineStateError):
            books.check_range(0, start, stop)
