"""A pass of windows with a scripted model: each is asked once, replies are kept, combined until one is left."""

from __future__ import annotations

import re

import pytest

from kvloom.errors import CancelledError, ContextOverflowError, UsageError
from kvloom.reduce.asking import MemoryResults
from kvloom.reduce.summarize import Watch
from kvloom.reduce.window_answers import Combine, WindowPass, ask_windows
from tests.unit.reduce.models import ScriptedModel, told_facts

TEXT = "".join(f"On line {number} stands fact{number}, and it is one of many.\n" for number in range(1, 121))
COMBINING = "Make one answer of them"


def test_every_window_is_asked_once_and_listed_under_its_lines() -> None:
    scripted = ScriptedModel(told_facts)
    found = ask_windows(TEXT, WindowPass("Which facts?", 300, 0.5, reply_tokens=50), scripted.model)
    assert len(scripted.prompts) == len(found.replies) == found.num_asked > 6
    assert all(f"fact{number}," in "".join(scripted.prompts) for number in range(1, 121))
    for prompt, reply in zip(scripted.prompts, found.replies, strict=True):
        assert reply.window.text in prompt
        assert prompt.endswith("Which facts?")
        assert f"lines {reply.window.first_line}-{reply.window.last_line}:\n{reply.text}" in found.text
    assert set(scripted.limits) == {50}
    assert found.num_rounds == 0


def test_an_answer_is_made_of_all_replies_in_one_prompt_where_they_fit() -> None:
    scripted = ScriptedModel(lambda prompt: "the answer" if COMBINING in prompt else "a part's answer")
    found = ask_windows(TEXT, WindowPass("Which?", 500, 0.0, Combine.ANSWER, 50), scripted.model)
    assert (found.text, found.num_rounds) == ("the answer", 1)
    last = scripted.prompts[-1]
    assert last.count("a part's answer") == len(found.replies)
    assert "Which?" in last


def test_replies_that_do_not_fit_are_combined_round_by_round() -> None:
    scripted = ScriptedModel(lambda prompt: f"{'joined' if COMBINING in prompt else 'said'} " + "and so on " * 12)
    wanted = WindowPass("Which?", 60, 0.5, Combine.ANSWER, 60)
    found = ask_windows(TEXT, wanted, scripted.model)
    combining = [prompt for prompt in scripted.prompts if COMBINING in prompt]
    assert found.num_rounds > 1
    assert found.text.startswith("joined")
    assert sum(prompt.count("said and") for prompt in combining) == len(found.replies)
    assert all(scripted.model.count(prompt) + 60 <= scripted.model.window_tokens for prompt in scripted.prompts)


def test_one_window_needs_no_combining() -> None:
    scripted = ScriptedModel(lambda _prompt: "it")
    found = ask_windows("short text", WindowPass("What?", combine=Combine.ANSWER), scripted.model)
    assert (found.text, len(scripted.prompts), found.num_rounds) == ("it", 1, 0)


def test_a_pass_that_was_stopped_goes_on_where_it_was() -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    wanted = WindowPass("Which facts?", 300, 0.5, Combine.ANSWER, 50)
    watch = Watch(is_cancelled=lambda: len(scripted.prompts) == 3)
    with pytest.raises(CancelledError, match=r"after 3 of \d+ steps"):
        ask_windows(TEXT, wanted, scripted.model, results, watch)
    found = ask_windows(TEXT, wanted, scripted.model, results)
    assert found.num_found == 3
    assert [reply.is_new for reply in found.replies[:4]] == [False] * 3 + [True]
    assert len(scripted.prompts) == len(set(scripted.prompts)), "none was computed twice"
    again = ask_windows(TEXT, wanted, scripted.model, results)
    assert (again.num_asked, again.text) == (0, found.text)


def test_another_prompt_size_or_model_is_asked_anew() -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    first = ask_windows(TEXT, WindowPass("Which facts?", 300), scripted.model, results)
    assert ask_windows(TEXT, WindowPass("How many facts?", 300), scripted.model, results).num_found == 0
    other = ScriptedModel(told_facts).model
    renamed = type(other)("another", other.complete, other.count, other.window_tokens)
    assert ask_windows(TEXT, WindowPass("Which facts?", 300), renamed, results).num_found == 0
    assert ask_windows(TEXT, WindowPass("Which facts?", 300), other, results).num_found == first.num_asked


def test_progress_counts_windows() -> None:
    steps: list[tuple[int, int]] = []
    scripted = ScriptedModel(told_facts)
    found = ask_windows(
        TEXT, WindowPass("Which?", 300), scripted.model, watch=Watch(lambda done, total: steps.append((done, total)))
    )
    assert steps == [(done, len(found.replies)) for done in range(len(found.replies) + 1)]


def test_without_a_size_windows_are_as_large_as_the_model_allows() -> None:
    scripted = ScriptedModel(told_facts)
    found = ask_windows(TEXT * 3, WindowPass("Which?", reply_tokens=50), scripted.model)
    assert 600 < found.size < 750
    assert max(map(scripted.model.count, scripted.prompts)) + 50 <= 800


def test_windows_that_do_not_fit_are_refused_before_anything_is_computed() -> None:
    scripted = ScriptedModel(told_facts)
    with pytest.raises(ContextOverflowError, match=r"window of 790 .* room for 800; .*\(\d+ at most\)") as caught:
        ask_windows(TEXT, WindowPass("Which?", 790), scripted.model)
    assert caught.value.num_needed_tokens > caught.value.num_window_tokens == 800
    for wrong in (WindowPass(" "), WindowPass("x", 100, 1.0), WindowPass("x", 0), WindowPass("x", reply_tokens=0)):
        with pytest.raises(UsageError):
            ask_windows(TEXT, wrong, scripted.model)
    with pytest.raises(UsageError, match="the text is empty"):
        ask_windows(" \n", WindowPass("x"), scripted.model)
    with pytest.raises(ContextOverflowError, match=r"combining the replies takes \d+ tokens beside them"):
        ask_windows(TEXT, WindowPass("Which?", 100, 0.0, Combine.ANSWER, 400), scripted.model)
    large = ScriptedModel(told_facts, window_tokens=20_000)
    with pytest.raises(UsageError, match="replies of up to 2049 tokens cannot be combined"):
        ask_windows(TEXT, WindowPass("Which?", 100, 0.0, Combine.ANSWER, 2049), large.model)
    assert scripted.prompts == large.prompts == []


def test_windows_with_nothing_to_say_are_left_out_of_what_is_combined() -> None:
    scripted = ScriptedModel(lambda prompt: "yes" if "fact120," in prompt else "")
    found = ask_windows(TEXT, WindowPass("Which?", 300, 0.0, Combine.ANSWER), scripted.model)
    assert (found.text, found.num_rounds) == ("yes", 0)


def test_replies_that_ended_at_their_limit_are_marked_also_those_from_before() -> None:
    results = MemoryResults()
    scripted = ScriptedModel(lambda prompt: "one two three four" if "fact1," in prompt else "two words")
    for _ in range(2):
        found = ask_windows(TEXT, WindowPass("Which?", 300, reply_tokens=4), scripted.model, results)
        assert [reply.is_cut_off for reply in found.replies] == [True] + [False] * (len(found.replies) - 1)
        assert found.num_cut_off == 1
        assert found.text.count("…") == 1
        assert ":\none two three four…\n\n" in found.text
        assert found.replies[0].text == "one two three four"


def test_laying_is_seen_before_the_first_question_and_can_be_stopped() -> None:
    scripted = ScriptedModel(told_facts)
    num_asked: list[int] = []
    laying = Watch(lambda _done, _total: num_asked.append(len(scripted.prompts)))
    ask_windows(TEXT, WindowPass("Which?", 300), scripted.model, laying=laying)
    assert len(num_asked) > 3
    assert set(num_asked) == {0}
    stopped = ScriptedModel(told_facts)
    looks = iter((False, True))
    with pytest.raises(CancelledError, match="while windows were laid"):
        ask_windows(TEXT, WindowPass("Which?", 300), stopped.model, laying=Watch(is_cancelled=lambda: next(looks)))
    assert stopped.prompts == []


def test_the_largest_size_is_told_and_is_one_that_fits() -> None:
    large = ScriptedModel(told_facts, window_tokens=20_000)
    with pytest.raises(ContextOverflowError, match=r"a window of 999,999 tokens .* room for 20,000;") as caught:
        ask_windows(TEXT, WindowPass("Which?", 999_999), large.model)
    [most] = re.findall(r"\(([\d,]+) at most\)", str(caught.value))
    size = int(most.replace(",", ""))
    assert ask_windows(TEXT, WindowPass("Which?", size), large.model).size == size
    with pytest.raises(ContextOverflowError, match=f"{size:,} at most"):
        ask_windows(TEXT, WindowPass("Which?", size + 1), large.model)
