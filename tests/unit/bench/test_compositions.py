"""The compositions of `bench switch` are what their cases say, and each is asked for the first time in its run."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.bench.compositions import CASES, Compositions, Step, is_subsequence, keep_cases
from kvloom.bench.switch import FULL, QUICK, Size
from kvloom.errors import UsageError


class Numbered:
    """Questions that need no tokenizer."""

    def __init__(self) -> None:
        self.asked = 0

    def next(self) -> str:
        self.asked += 1
        return f"question {self.asked}"


def steps(size: Size, num_repeats: int) -> list[list[Step]]:
    compositions, questions = Compositions(size.num_documents, size.subset), Numbered()
    return [list(chain(*compositions.repeat(number, questions))) for number in range(num_repeats)]


@pytest.mark.parametrize(("size", "num_repeats"), [(FULL, 4), (QUICK, 2)])
def test_every_case_is_the_composition_that_its_name_says(size: Size, num_repeats: int) -> None:
    whole = tuple(range(size.num_documents))
    for repeat in steps(size, num_repeats):
        targets = {step.case: step.target for step in repeat if step.is_measured}
        assert tuple(targets) == CASES[1:]
        assert len(targets["off"]) == len(whole) - 1
        assert is_subsequence(targets["off"], whole)
        assert targets["on-seen"] == whole
        assert len(targets["subset-in-order"]) == len(targets["subset-unseen"]) == size.subset
        assert is_subsequence(targets["subset-in-order"], whole)
        assert targets["subset-in-order"] != whole[: size.subset]
        assert sorted(targets["insert-front"]) == sorted(targets["reorder"]) == list(whole)
        assert targets["insert-front"][0] != 0
        assert is_subsequence(targets["insert-front"][1:], whole)


@pytest.mark.parametrize(("size", "num_repeats"), [(FULL, 4), (QUICK, 2)])
def test_no_repeat_asks_what_the_run_has_seen(size: Size, num_repeats: int) -> None:
    seen = [tuple(range(size.num_documents))]
    for step in chain(*steps(size, num_repeats)):
        if step.case != "on-seen":
            assert step.target not in seen
        if step.case == "subset-unseen":
            assert not any(is_subsequence(step.target, other) for other in seen)
        seen.append(step.target)


def test_each_step_asks_a_new_question() -> None:
    asked = [step.question for step in chain(*steps(FULL, 3))]
    assert len(set(asked)) == len(asked)


def test_a_run_is_drawn_the_same_way_again() -> None:
    assert steps(FULL, 3) == steps(FULL, 3)


def test_more_repeats_than_there_are_compositions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"all compositions of 5 documents .* fewer --repeats"):
        steps(QUICK, 20)


def test_a_case_that_is_kept_keeps_what_sets_it_up_and_nothing_behind_it() -> None:
    chains = Compositions(8, 5).repeat(0, Numbered())
    kept = keep_cases(chains, ("on-seen", "insert-front"))
    assert [[(step.case, step.is_measured) for step in chain] for chain in kept] == [
        [("off", False), ("on-seen", True)],
        [("insert-front", False), ("insert-front", True)],
    ]
    (off,) = keep_cases(chains, ("off",))
    assert [(step.case, step.is_measured) for step in off] == [("off", True)]
    assert keep_cases(chains, CASES) == chains
    assert keep_cases(chains, ("full-prefill",)) == []


@given(st.permutations(range(7)), st.sets(st.integers(0, 6)))
def test_leaving_some_out_gives_a_subsequence_and_swapping_two_does_not(order: list[int], out: set[int]) -> None:
    rest = [index for index in order if index not in out]
    assert is_subsequence(rest, order)
    if len(rest) > 1:
        assert not is_subsequence([rest[1], rest[0], *rest[2:]], order)
