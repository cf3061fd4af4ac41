"""Manifests: what every edit keeps true, whatever the order of edits."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.context.manifest import Manifest, SlotKind, Tokens
from kvloom.types import ALONE, ChunkId, Fidelity

MODES = st.sampled_from(list(Fidelity))


def chunk_id(name: str) -> ChunkId:
    return ChunkId(hashlib.sha256(name.encode()).hexdigest())


def tokens(seed: int, count: int) -> Tokens:
    return Tokens(tuple(range(seed * 1000, seed * 1000 + count)))


def started(fidelity: Fidelity = Fidelity.SPLICE) -> Manifest:
    return Manifest(fidelity=fidelity, window=4096).with_head(tokens(9, 5), "Answer.")


def loaded(fidelity: Fidelity = Fidelity.SPLICE, sizes: tuple[int, ...] = (10, 20, 30)) -> Manifest:
    manifest = started(fidelity)
    for number, size in enumerate(sizes):
        manifest = manifest.with_chunk(chunk_id(str(number)), f"f{number}", [tokens(number + 1, size)])
    return manifest


def starts(manifest: Manifest) -> list[int]:
    return [slot.position for slot in manifest.slots]


def test_slots_follow_each_other_without_gaps_at_first() -> None:
    assert starts(loaded()) == [0, 5, 15, 35]


def test_a_chunk_that_is_off_leaves_a_hole_and_fills_it_again() -> None:
    off = loaded().switched(chunk_id("0"), False)
    assert [s.position for s in off.active] == [0, 15, 35]
    assert off.num_hole_tokens == 10
    assert off.switched(chunk_id("0"), True) == loaded()


def test_exact_leaves_no_hole() -> None:
    off = loaded(Fidelity.EXACT).switched(chunk_id("0"), False)
    assert [s.position for s in off.active] == [0, 5, 25]
    assert off.num_hole_tokens == 0


def test_exact_chunks_behind_a_change_get_another_lineage_and_get_it_back() -> None:
    before = loaded(Fidelity.EXACT)
    off = before.switched(chunk_id("0"), False)
    assert off.active[1].lineage != before.active[2].lineage
    assert off.switched(chunk_id("0"), True) == before


def test_spliced_chunks_are_alone_wherever_they_stand() -> None:
    moved = loaded().moved(chunk_id("2"), 0)
    assert [s.ref for s in moved.chunks] == [chunk_id("2"), chunk_id("0"), chunk_id("1")]
    assert {s.lineage for s in moved.chunks} == {ALONE}


def test_a_chunk_loaded_in_mid_conversation_stands_before_the_turns() -> None:
    manifest = loaded().with_turn(tokens(7, 8), "t1").with_chunk(chunk_id("late"), "late", [tokens(8, 4)])
    assert [s.kind for s in manifest.slots][-2:] == [SlotKind.CHUNK, SlotKind.TURN]
    assert manifest.slots[-1].position == manifest.slots[-2].stop


def test_a_turn_remembers_the_chunks_it_was_made_behind() -> None:
    manifest = loaded().with_turn(tokens(7, 8), "t1").switched(chunk_id("1"), False)
    assert manifest.traces(manifest.turns[0]) == (chunk_id("1"),)
    assert manifest.recomputed().traces(manifest.recomputed().turns[0]) == ()


def test_a_spliced_turn_keeps_its_lineage_when_a_chunk_goes_off() -> None:
    manifest = loaded().with_turn(tokens(7, 8), "t1")
    off = manifest.switched(chunk_id("1"), False)
    assert off.turns[0].lineage == manifest.turns[0].lineage
    assert off.recomputed().turns[0].lineage != manifest.turns[0].lineage


def test_the_lineage_of_a_turn_depends_on_fidelity_position_and_order_before_it() -> None:
    seen = {
        loaded(mode).with_turn(tokens(7, 8), "t").turns[0].lineage for mode in Fidelity
    } | {
        loaded().moved(chunk_id("2"), 0).with_turn(tokens(7, 8), "t").turns[0].lineage,
        loaded().switched(chunk_id("2"), False).with_turn(tokens(7, 8), "t").turns[0].lineage,
    }  # fmt: skip
    assert len(seen) == 5


def test_recomputing_an_exact_context_changes_nothing() -> None:
    manifest = loaded(Fidelity.EXACT).with_turn(tokens(7, 8), "t1")
    assert manifest.recomputed() == manifest


def test_a_manifest_survives_encoding() -> None:
    manifest = loaded().with_turn(tokens(7, 8), "t1").switched(chunk_id("1"), False).with_pin(chunk_id("0"), True)
    known = {t.digest: t.ids for t in manifest.tokens_by_digest()}
    assert Manifest.decode(manifest.encode(), known.__getitem__) == manifest


EDITS = st.lists(
    st.tuples(st.sampled_from(["on", "off", "move", "add", "drop", "turn", "mode"]), st.integers(0, 5)), max_size=25
)


def edited(manifest: Manifest, edit: tuple[str, int], step: int) -> Manifest:
    what, number = edit
    ids = manifest.chunk_ids
    if what == "add" or not ids:
        return manifest.with_chunk(chunk_id(f"n{step}"), f"n{step}", [tokens(50 + step, number + 1)], index=number)
    target = ids[number % len(ids)]
    match what:
        case "on" | "off":
            return manifest.switched(target, what == "on")
        case "move":
            return manifest.moved(target, number % len(ids))
        case "drop":
            return manifest.without({target})
        case "turn":
            return manifest.with_turn(tokens(200 + step, number + 1), f"t{step}")
        case _:
            return manifest.with_fidelity(list(Fidelity)[number % 3])


@settings(max_examples=150, deadline=None)
@given(MODES, EDITS)
def test_no_edit_ever_overlaps_positions_or_mixes_the_order_of_kinds(
    mode: Fidelity, edits: list[tuple[str, int]]
) -> None:
    manifest = started(mode)
    order = list(SlotKind)
    for step, edit in enumerate(edits):
        manifest = edited(manifest, edit, step)
        active = manifest.active
        for left, right in pairwise(active):
            assert left.stop <= right.position
        kinds = [order.index(slot.kind) for slot in manifest.slots]
        assert kinds == sorted(kinds)
        assert manifest.num_tokens == len(manifest.token_ids())
        if manifest.fidelity is Fidelity.EXACT:
            assert manifest.num_hole_tokens == 0
            assert all(slot.lineage != ALONE for slot in active)
            assert manifest == manifest.settled()
        else:
            assert all(slot.lineage == ALONE for slot in active if slot.kind is SlotKind.CHUNK)


@settings(max_examples=100, deadline=None)
@given(EDITS)
def test_in_exact_equal_lineage_means_equal_prefix(edits: list[tuple[str, int]]) -> None:
    prefixes: dict[str, tuple[int, ...]] = {}
    manifest = started(Fidelity.EXACT)
    for step, edit in enumerate(edits):
        manifest = edited(manifest, edit, step) if edit[0] != "mode" else manifest
        before: tuple[int, ...] = ()
        for slot in manifest.active:
            assert prefixes.setdefault(slot.lineage, before) == before
            before += slot.tokens.ids
