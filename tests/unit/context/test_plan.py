"""Plans: pure, complete and cheapest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvloom.context.plan import Compute, Keep, Place, Plan, Resident, Wanted, make_plan
from kvloom.types import ALONE, EntryId, Lineage, SequenceId

LENGTH = 4


def want(number: int, position: int, lineage: Lineage = ALONE) -> Wanted:
    return Wanted(EntryId(f"{number:064x}"), (number,) * LENGTH, lineage, position)


def held(number: int, position: int, variant: str = "") -> Resident:
    return Resident(EntryId(f"{number:064x}"), position, LENGTH, variant)


def applied(plan: Plan, own: list[Resident]) -> set[tuple[EntryId, int]]:
    """What the sequence holds after the plan."""
    left = {(r.entry, r.position) for r in own} - {(d.resident.entry, d.resident.position) for d in plan.drops}
    return left | {(op.wanted.entry, op.wanted.position) for op in plan.operations}


def test_rows_in_place_are_kept_stored_ones_placed_and_others_computed() -> None:
    plan = make_plan([want(1, 0), want(2, 4), want(3, 8)], [held(1, 0)], {}, {want(2, 0).entry}.__contains__)
    assert [type(op) for op in plan.operations] == [Keep, Place, Compute]
    assert (plan.num_reused_tokens, plan.num_loaded_tokens, plan.num_computed_tokens) == (4, 4, 4)


def test_an_entry_at_another_position_is_dropped_and_placed_again() -> None:
    plan = make_plan([want(1, 4)], [held(1, 0)], {}, lambda entry: True)
    assert [drop.resident for drop in plan.drops] == [held(1, 0)]
    assert isinstance(plan.operations[0], Place)


def test_what_another_sequence_holds_at_the_same_position_is_shared() -> None:
    plan = make_plan([want(1, 0)], [], {held(1, 0): SequenceId(3)}, lambda entry: True)
    assert plan.operations == (Keep(want(1, 0), SequenceId(3)),)


def test_blended_rows_are_not_taken_for_pristine_ones() -> None:
    plan = make_plan([want(1, 0)], [held(1, 0, "abc:0-2")], {}, lambda entry: True)
    assert isinstance(plan.operations[0], Place)
    assert plan.num_dropped_tokens == LENGTH


def test_a_chunk_is_computed_alone_and_a_turn_where_it_stands() -> None:
    plan = make_plan([want(1, 0), want(2, 4, Lineage("ab" * 32))], [], {}, lambda entry: False)
    assert [op.alone for op in plan.operations if isinstance(op, Compute)] == [True, False]


PLACES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=8, unique_by=lambda pair: pair[1])


@given(PLACES, PLACES, PLACES, st.sets(st.integers(0, 6)))
def test_a_plan_ends_in_exactly_what_is_wanted_and_never_moves_what_may_stay(
    wanted: list[tuple[int, int]], own: list[tuple[int, int]], others: list[tuple[int, int]], stored: set[int]
) -> None:
    wants = [want(n, p * LENGTH) for n, p in sorted(wanted, key=lambda pair: pair[1])]
    mine = [held(n, p * LENGTH) for n, p in own]
    shared = {held(n, p * LENGTH): SequenceId(1) for n, p in others}
    has = {want(n, 0).entry for n in stored}
    plan = make_plan(wants, mine, shared, has.__contains__)
    assert applied(plan, mine) == {(w.entry, w.position) for w in wants}
    for op in plan.operations:
        resident = held(int(op.wanted.entry, 16), op.wanted.position)
        if resident in mine:
            assert op == Keep(op.wanted)
        elif isinstance(op, Compute):
            assert resident not in shared and op.wanted.entry not in has
    total = plan.num_reused_tokens + plan.num_loaded_tokens + plan.num_computed_tokens
    assert total == LENGTH * len(wants)
