"""The order of a batch: one of those that begin alike goes first, the others together behind it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from kvloom.server.batch_order import STEP_CHARS, Schedule, leaders

LONG = "x" * (2 * STEP_CHARS)


def of_one(*keys: str) -> list[tuple[str, str]]:
    return [("model", key) for key in keys]


def rounds(schedule: Schedule) -> list[set[int]]:
    """What may run together, if everything that may run does."""
    found = []
    while together := set(ready(schedule)):
        found.append(together)
        for number in together:
            schedule.done(number)
    return found


def ready(schedule: Schedule) -> Iterator[int]:
    while schedule.has_next:
        yield schedule.next()


def test_requests_with_nothing_in_common_run_together() -> None:
    assert rounds(Schedule(of_one("a", "b", "ab", ""))) == [{0, 1, 2, 3}]


def test_one_of_those_that_begin_alike_runs_first_and_then_all_others() -> None:
    assert rounds(Schedule(of_one(LONG + "b", "alone", LONG + "a", LONG + "c"))) == [{1, 2}, {0, 3}]


def test_less_than_a_block_in_common_does_not_hold_anybody_up() -> None:
    short = "y" * (STEP_CHARS - 1)
    assert len(rounds(Schedule(of_one(short + "a", short + "b")))) == 1


def test_groups_within_groups_run_from_the_root_on() -> None:
    one, two = LONG + "1" * STEP_CHARS, LONG + "2" * STEP_CHARS
    keys = of_one(one + "a", one + "b", two + "a", two + "b", two + "c")
    assert rounds(Schedule(keys)) == [{0}, {1, 2}, {3, 4}]


def test_what_models_do_not_share_is_not_waited_for() -> None:
    assert rounds(Schedule([("one", LONG), ("two", LONG)])) == [{0, 1}]


def test_equal_prompts_wait_for_the_first_of_them() -> None:
    assert rounds(Schedule(of_one(LONG, LONG, LONG))) == [{0}, {1, 2}]


def test_what_runs_next_is_nearest_to_what_ran_before() -> None:
    prompts = [f"{group}" * STEP_CHARS + f"{i}" for group in "abc" for i in range(4)]
    random.Random(5).shuffle(prompts)
    schedule, order = Schedule(of_one(*prompts)), []
    while schedule.has_next:
        number = schedule.next()
        order.append(prompts[number][0])
        schedule.done(number)
    assert order == sorted(order)


@given(st.lists(st.tuples(st.sampled_from("mn"), st.text("ab", max_size=6)), max_size=30))
def test_every_request_is_handed_out_once_and_behind_one_that_shares_as_much(keys: list[tuple[str, str]]) -> None:
    wide = [(model, "".join(letter * STEP_CHARS for letter in key)) for model, key in keys]
    schedule, seen = Schedule(wide), []
    while schedule.has_next:
        number = schedule.next()
        seen.append(number)
        schedule.done(number)
    assert sorted(seen) == list(range(len(keys)))
    ordered = sorted(keys)
    for place, leader in enumerate(leaders(sorted(wide))):
        best = max((common(ordered[place], other) for other in ordered[:place]), default=0)
        assert (common(ordered[place], ordered[leader]) if leader is not None else 0) == best


def common(one: tuple[str, str], other: tuple[str, str]) -> int:
    if one[0] != other[0]:
        return 0
    pairs = zip(one[1], other[1], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one[1]), len(other[1])))
