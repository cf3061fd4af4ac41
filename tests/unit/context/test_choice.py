"""Choosing passages: never more than the room and the depth, nothing better left out, warm before cold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvloom.context.choice import TAIL, WARM_BONUS, Candidate, choose
from kvloom.types import ChunkId


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    refs = draw(st.lists(st.integers(0, 30), max_size=20))
    return [
        Candidate(
            ChunkId(f"{ref:064x}"),
            draw(st.integers(1, 600)),
            draw(st.floats(0.01, 1.0)),
            draw(st.sampled_from([0.0, 0.4, 0.6, 0.8, 1.0])),
        )
        for ref in refs
    ]


@given(candidate_lists(), st.integers(-10, 3000), st.integers(1, 10))
def test_what_is_chosen_fits_and_is_what_was_found(found: list[Candidate], room: int, depth: int) -> None:
    chosen = choose(found, room, depth)
    assert sum(one.num_tokens for one in chosen) <= max(0, room)
    assert len(chosen) <= depth
    assert len({one.ref for one in chosen}) == len(chosen)
    assert all(one in found for one in chosen)
    assert [one.relevance for one in chosen] == sorted((one.relevance for one in chosen), reverse=True)


@given(candidate_lists(), st.integers(0, 3000), st.integers(1, 10))
def test_nothing_that_would_fit_and_is_clearly_better_is_left_out(
    found: list[Candidate], room: int, depth: int
) -> None:
    chosen = choose(found, room, depth)
    refs = {one.ref for one in chosen}
    best = max((one.relevance for one in found), default=0.0)
    left = room - sum(one.num_tokens for one in chosen)
    for one in found:
        if one.ref in refs or one.relevance < TAIL * best:
            continue
        worse = [other for other in chosen if other.relevance * (1 + WARM_BONUS) < one.relevance]
        if len(chosen) < depth:
            assert one.num_tokens > left
        # Whatever was taken before it was taken for its relevance, or because this one did not fit any more.
        before = [other for other in chosen if other not in worse]
        assert not worse or one.num_tokens > room - sum(other.num_tokens for other in before)


@given(candidate_lists(), st.integers(0, 3000), st.integers(1, 10), st.randoms())
def test_the_order_of_finding_does_not_matter(found: list[Candidate], room: int, depth: int, random: object) -> None:
    unique = list({one.ref: one for one in found}.values())
    assert choose(unique, room, depth) == choose(unique[::-1], room, depth)


def test_at_equal_relevance_the_warm_one_is_taken() -> None:
    cold, warm = Candidate(ChunkId("a" * 64), 100, 0.5), Candidate(ChunkId("b" * 64), 100, 0.49, warmth=1.0)
    assert choose([cold, warm], 100, 8) == (warm,)
    assert choose([cold, Candidate(warm.ref, 100, 0.4, 1.0)], 100, 8) == (cold,)


def test_what_has_next_to_nothing_in_common_is_not_taken_though_there_is_room() -> None:
    good, poor = Candidate(ChunkId("a" * 64), 10, 0.8), Candidate(ChunkId("b" * 64), 10, 0.1)
    assert choose([good, poor], 1000, 8) == (good,)
