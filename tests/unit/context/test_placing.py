"""Passages in a manifest: in the order given, in holes, and nothing of an earlier question is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kvloom.context.manifest import Manifest, SlotKind, Tokens
from kvloom.context.placing import Passage, standing, with_passages
from kvloom.types import ChunkId, Fidelity


def tokens(number: int, count: int) -> Tokens:
    return Tokens(tuple(1000 * number + at for at in range(count)))


def passage(number: int, count: int) -> Passage:
    """Every third in two parts."""
    whole = tokens(number, count)
    parts = (whole,) if number % 3 else (Tokens(whole.ids[:4]), Tokens(whole.ids[4:]))
    return Passage(ChunkId(f"{number:064x}"), f"book.md:{number}", parts)


def own(number: int) -> ChunkId:
    return ChunkId(f"{900 + number:064x}")


def session(fidelity: Fidelity = Fidelity.SPLICE, num_own: int = 1) -> Manifest:
    manifest = Manifest(fidelity=fidelity, libraries=("books",)).with_head(tokens(99, 20), "Answer.")
    for number in range(num_own):
        manifest = manifest.with_chunk(own(number), f"own{number}", [tokens(900 + number, 30 + number)])
    return manifest


def asked(manifest: Manifest, passages: Sequence[Passage], turn: int) -> Manifest:
    manifest = with_passages(manifest, passages)
    return manifest.with_turn(tokens(500 + turn, 25), f"turn{turn}")


def places(manifest: Manifest) -> dict[str, int]:
    return {f"{slot.ref}/{slot.part}": slot.position for slot in manifest.slots}


questions = st.lists(st.dictionaries(st.integers(1, 12), st.just(None), max_size=5).map(list), min_size=1, max_size=6)


@given(questions, st.sampled_from(list(Fidelity)), st.integers(0, 3), st.integers(0, 7), st.sets(st.integers(1, 12)))
def test_each_question_has_its_passages_and_no_others(
    wanted: list[list[int]], fidelity: Fidelity, num_own: int, seed: int, off: set[int]
) -> None:
    """`off`: passages that a policy switches off behind every question."""
    manifest, owned = session(fidelity, num_own), num_own
    for turn, numbers in enumerate(wanted):
        if turn == 2:  # a chunk of a person's own behind the passages
            manifest = manifest.with_chunk(own(owned), f"own{owned}", [tokens(900 + owned, 33)])
            owned += 1
        passages = [passage(number, 10 + (number * 37 + seed * 11) % 90) for number in numbers]
        before = manifest
        manifest = with_passages(manifest, passages)
        assert set(standing(manifest)) == {one.ref for one in passages}
        assert set(manifest.active_chunk_ids) == {*(own(n) for n in range(owned)), *(one.ref for one in passages)}
        assert [slot.part for slot in manifest.chunks] == _parts_in_order(manifest)
        assert all(one.stop <= other.position for one, other in pairwise(manifest.active))
        if fidelity is not Fidelity.EXACT:
            assert standing(manifest) == tuple(one.ref for one in passages)
        if fidelity is not Fidelity.SPLICE:
            assert not manifest.num_hole_tokens
        for number in range(num_own):
            assert places(before)[f"{own(number)}/0"] == places(manifest)[f"{own(number)}/0"]
        assert [slot.ref for slot in manifest.turns] == [f"turn{number}" for number in range(turn)]
        assert Manifest.decode(manifest.encode(), _loader(manifest)) == manifest
        manifest = manifest.with_turn(tokens(500 + turn, 25), f"turn{turn}")
        for one in passages:
            if int(one.ref, 16) in off:
                manifest = manifest.switched(one.ref, False)


def _parts_in_order(manifest: Manifest) -> list[int]:
    """The parts of each chunk beside each other, from the first on."""
    return [part for ref in manifest.chunk_ids for part in range(sum(slot.ref == ref for slot in manifest.chunks))]


def _loader(manifest: Manifest) -> Callable[[str], tuple[int, ...]]:
    runs = {run.digest: run.ids for run in manifest.tokens_by_digest()}
    return runs.__getitem__


def test_a_passage_of_the_same_size_takes_the_hole_and_no_turn_moves() -> None:
    first = asked(session(), [passage(1, 50), passage(2, 60)], 0)
    second = with_passages(first, [passage(3, 50), passage(2, 60)])
    assert places(second)[f"{passage(3, 50).ref}/0"] == places(first)[f"{passage(1, 50).ref}/0"]
    assert places(second)["turn0/0"] == places(first)["turn0/0"]
    assert second.span == first.span


def test_what_stands_in_order_stays_and_what_is_new_goes_between() -> None:
    first = asked(session(), [passage(1, 80), passage(2, 60), passage(3, 40), passage(4, 10)], 0)
    second = with_passages(first, [passage(2, 60), passage(5, 35), passage(4, 10)])
    assert places(second)[f"{passage(5, 35).ref}/0"] == places(first)[f"{passage(3, 40).ref}/0"]
    stayed = [f"{passage(2, 60).ref}/0", f"{passage(4, 10).ref}/0", "turn0/0"]
    assert [places(second)[ref] for ref in stayed] == [places(first)[ref] for ref in stayed]


def test_two_change_places() -> None:
    first = asked(session(), [passage(1, 50), passage(2, 50)], 0)
    second = with_passages(first, [passage(2, 50), passage(1, 50)])
    assert standing(second) == (passage(2, 50).ref, passage(1, 50).ref)


def test_passages_are_placed_anew_where_else_many_turns_would_move() -> None:
    manifest = asked(session(), [passage(1, 50), passage(2, 60)], 0)
    for turn in range(1, 9):
        manifest = asked(manifest, [passage(1, 50), passage(2, 60)], turn)
    after = with_passages(manifest, [passage(2, 60), passage(1, 50)])
    assert standing(after) == (passage(2, 60).ref, passage(1, 50).ref)
    assert places(after)["turn0/0"] == places(manifest)["turn0/0"]
    assert after.span == manifest.span


def test_what_fits_in_no_hole_moves_the_turns_and_nothing_else() -> None:
    first = asked(session(), [passage(1, 20)], 0)
    second = with_passages(first, [passage(2, 70)])
    assert places(second)["turn0/0"] > places(first)["turn0/0"]
    assert places(second)[f"{own(0)}/0"] == places(first)[f"{own(0)}/0"]


def test_a_turn_behind_passages_carries_no_trace_that_a_person_has_to_clear_and_a_purge_still_finds_it() -> None:
    manifest = with_passages(asked(session(), [passage(1, 20)], 0), [])
    turn = manifest.turns[0]
    assert passage(1, 20).ref in turn.seen
    assert manifest.traces(turn) == ()


def test_a_passage_that_somebody_made_his_own_stays() -> None:
    manifest = asked(session(), [passage(1, 20), passage(2, 20)], 0)
    kept = manifest.owned({passage(1, 20).ref})
    assert passage(1, 20).ref in with_passages(kept, []).active_chunk_ids
    pinned = manifest.with_pin(passage(2, 20).ref, True)
    assert passage(2, 20).ref in with_passages(pinned, []).active_chunk_ids
    assert passage(1, 20).ref not in with_passages(pinned, []).chunk_ids


def test_the_ledger_never_hears_of_passages() -> None:
    manifest = with_passages(session(), [passage(1, 20)])
    named = {one.ref for one in Manifest.named(manifest.encode())}
    assert named == {own(0)}


def test_nothing_changes_where_nothing_is_wanted() -> None:
    manifest = session()
    assert with_passages(manifest, []) is manifest
    assert all(slot.kind is not SlotKind.TURN for slot in manifest.slots)


def test_what_turns_have_seen_is_written_once() -> None:
    manifest = session(num_own=0)
    for turn in range(40):
        manifest = asked(manifest, [passage(10 * turn + number, 5) for number in range(4)], turn)
    # 160 ids of 64 characters, and their numbers in 40 turns; ids alone would be some 200 kB.
    assert len(manifest.encode()) < 60_000
    assert Manifest.decode(manifest.encode(), _loader(manifest)) == manifest
