"""Summaries with scripted models: everything is shown, nothing is too long, a useless reply has a fallback."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.errors import CancelledError, EngineStateError, UsageError
from kvloom.reduce.prompts import CONVERSATION, NOTES
from kvloom.reduce.spans import SpanTurn, pieces
from kvloom.reduce.summarize import SummaryRoom, Watch, estimate, summarize
from kvloom.reduce.truncate import Keep, truncate
from tests.unit.reduce.counts import COUNTS, by_bytes, by_words

ROOM = SummaryRoom(summary_tokens=200, window_tokens=1000)


def turns(num_turns: int, num_words: int = 30) -> list[SpanTurn]:
    made = []
    for number in range(num_turns):
        user = f"Question {number} is about file_{number}.py. " + "more words " * (num_words // 2)
        answer = f"Answer {number} says {number * 7}. " + "other words " * (num_words // 2)
        made.append(SpanTurn(f"t{number}", user, answer, by_words(user) + by_words(answer) + 8))
    return made


class Scripted:
    """Answers with what `reply` says for the number of the prompt, and remembers what it was asked."""

    def __init__(self, reply: Callable[[int, str], str]) -> None:
        self._reply = reply
        self.prompts: list[str] = []
        self.limits: list[int] = []

    def __call__(self, prompt: str, max_tokens: int) -> str:
        self.prompts.append(prompt)
        self.limits.append(max_tokens)
        return self._reply(len(self.prompts) - 1, prompt)


def fact(number: int, _prompt: str) -> str:
    return f"- Fact {number}: Ann decided on plan {number}."


def test_a_short_span_takes_one_prompt() -> None:
    model = Scripted(fact)
    summary = summarize(turns(3), model, by_words, ROOM)
    assert summary.text == "- Fact 0: Ann decided on plan 0."
    assert summary.num_tokens == by_words(summary.text)
    assert (summary.num_pieces, summary.num_rounds, summary.is_fallback) == (1, 1, False)
    assert summary.covers == ("t0", "t1", "t2")
    assert "Question 2 is about file_2.py." in model.prompts[0]


def test_a_long_span_is_summarized_piece_by_piece_and_joined_in_order() -> None:
    model = Scripted(fact)
    summary = summarize(turns(40), model, by_words, ROOM)
    assert summary.num_pieces == len(model.prompts) > 2
    assert summary.num_rounds == 1
    assert summary.text.splitlines() == [fact(number, "") for number in range(summary.num_pieces)]
    shown = "".join(model.prompts)
    assert all(f"Question {number} is" in shown and f"says {number * 7}." in shown for number in range(40))


def test_pieces_that_are_too_much_together_are_summarized_again() -> None:
    def reply(number: int, prompt: str) -> str:
        if prompt.startswith(NOTES[0].before):
            return f"- merged {number}"
        return "\n".join(f"- piece {number} line {line} has words" for line in range(7))

    model = Scripted(reply)
    summary = summarize(turns(80), model, by_words, ROOM)
    merging = [prompt for prompt in model.prompts if prompt.startswith(NOTES[0].before)]
    assert (summary.num_rounds, summary.is_fallback) == (2, False)
    assert merging
    for number in range(summary.num_pieces):
        assert any(f"piece {number} line 0" in prompt for prompt in merging)
    assert all(line.startswith("- merged") for line in summary.text.splitlines())
    assert summary.num_tokens <= ROOM.summary_tokens


def test_the_previous_summary_is_covered_too() -> None:
    model = Scripted(fact)
    summary = summarize(turns(3), model, by_words, ROOM, previous="- Ann lives in Oslo.\n")
    assert summary.text.splitlines()[0] == "- Ann lives in Oslo."
    alone = summarize([], model, by_words, ROOM, previous="- Ann lives in Oslo.")
    assert (alone.text, alone.covers) == ("- Ann lives in Oslo.", ())
    long = "\n".join(f"- old fact number {number} of many" for number in range(60))
    model = Scripted(fact)
    merged = summarize(turns(3), model, by_words, ROOM, previous=long)
    assert "old fact number 59" in "".join(model.prompts)
    assert merged.num_tokens <= ROOM.summary_tokens


def test_a_turn_longer_than_a_piece_is_shown_in_parts() -> None:
    words = [f"word{number}" for number in range(3000)]
    model = Scripted(fact)
    summary = summarize([SpanTurn("t0", " ".join(words), "ok", 6000)], model, by_words, ROOM)
    assert summary.num_pieces > 3
    shown = " ".join(model.prompts).split()
    assert [word for word in shown if word in set(words)] == words


BAD = {
    "nothing": "",
    "only spaces": " \n \t ",
    "no word": "- \n- …",
    "special tokens": "<|im_end|><|im_start|>",
    "special tokens in text": "- Ann lives in Oslo.<|im_end|>",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_useless_reply_is_asked_for_again_in_other_words(bad: str) -> None:
    model = Scripted(lambda number, prompt: bad if number == 0 else fact(number, prompt))
    summary = summarize(turns(3), model, by_words, ROOM)
    assert (summary.text, summary.is_fallback) == (fact(1, ""), False)
    assert model.prompts[1].startswith(CONVERSATION[1].before)
    assert "Question 1 is about" in model.prompts[1]


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_model_that_gives_nothing_twice_is_stood_in_for_by_first_sentences(bad: str) -> None:
    model = Scripted(lambda _number, _prompt: bad)
    summary = summarize(turns(3), model, by_words, ROOM)
    assert summary.is_fallback
    assert len(model.prompts) == 2
    lines = summary.text.splitlines()
    assert lines[0::2] == [f"- User: Question {number} is about file_{number}.py." for number in range(3)]
    assert lines[1::2] == [f"- Assistant: Answer {number} says {number * 7}." for number in range(3)]


def test_an_echo_of_the_prompt_or_of_the_text_is_no_summary() -> None:
    shown = pieces(turns(3), 1000, by_words)[0].text
    for echo in (
        lambda _number, prompt: prompt,
        lambda _number, _prompt: shown[:-20],
        lambda _number, _prompt: "- Start every note with '- '. One note for each fact, at most 10 words.",
    ):
        assert summarize(turns(3), Scripted(echo), by_words, ROOM).is_fallback


def test_a_fact_in_the_words_of_the_conversation_is_no_echo() -> None:
    said = [SpanTurn("t0", "My name is Ann and I live in Oslo.", "I see, thank you for telling me.", 30)]
    model = Scripted(lambda _number, _prompt: "- My name is Ann and I live in Oslo.")
    assert not summarize(said, model, by_words, ROOM).is_fallback


def test_a_summary_longer_than_what_it_replaces_is_refused() -> None:
    model = Scripted(lambda number, _prompt: " ".join(f"new{number}x{i}" for i in range(150)))
    summary = summarize(turns(2, num_words=10), model, by_words, ROOM)
    assert summary.is_fallback
    assert summary.num_tokens < sum(turn.num_tokens for turn in turns(2, num_words=10))


def test_of_a_paragraph_each_sentence_is_a_note_and_none_is_lost() -> None:
    sentences = [f"Ann said on day {number} that plan {number} is good enough for now." for number in range(5)]
    model = Scripted(lambda _number, _prompt: " ".join([*sentences, *sentences[:2]]))
    summary = summarize(turns(10), model, by_words, ROOM)
    assert summary.text.splitlines() == [f"- {sentence}" for sentence in sentences]


def test_a_model_that_repeats_itself_is_told_once() -> None:
    model = Scripted(lambda _number, _prompt: "- Ann lives in Oslo.\n" * 12)
    assert summarize(turns(3), model, by_words, ROOM).text == "- Ann lives in Oslo."


LINES = "\n".join(f"- Fact {number} of many words" for number in range(100))


def test_where_a_reply_was_cut_off_each_half_of_the_piece_is_asked_for_by_itself() -> None:
    def reply(number: int, prompt: str) -> str:
        return truncate(LINES, model.limits[-1], by_words, Keep.HEAD, "").text if number == 0 else fact(number, prompt)

    model = Scripted(reply)
    summary = summarize(turns(6), model, by_words, ROOM)
    assert summary.text.splitlines() == [fact(1, ""), fact(2, "")]
    assert not summary.is_fallback
    assert "Question 2 is" in model.prompts[1]
    assert "Question 3 is" not in model.prompts[1]
    assert "Question 3 is" in model.prompts[2]
    assert model.limits[1] + model.limits[2] <= model.limits[0]


def test_a_model_that_never_comes_to_an_end_loses_no_turn() -> None:
    model = Scripted(lambda _number, _prompt: truncate(LINES, model.limits[-1], by_words, Keep.HEAD, "").text)
    summary = summarize(turns(6), model, by_words, ROOM)
    assert len(model.prompts) == 3
    assert summary.is_fallback
    assert "- Fact 0 of" in summary.text
    assert "- User: Question 5 is about" in summary.text
    assert summary.num_tokens <= ROOM.summary_tokens


def test_a_model_that_never_gets_shorter_ends_after_some_rounds() -> None:
    model = Scripted(lambda number, prompt: f"- {number} " + " ".join(f"w{number}x{i}" for i in range(60)))
    summary = summarize(turns(200), model, by_words, ROOM)
    assert summary.num_tokens <= ROOM.summary_tokens
    assert summary.is_fallback
    assert len(model.prompts) < 60


def test_in_a_window_too_small_for_a_prompt_everything_is_extracted() -> None:
    model = Scripted(fact)
    room = SummaryRoom(summary_tokens=64, window_tokens=128)
    summary = summarize(turns(5), model, by_bytes, room, previous="- Ann lives in Oslo.")
    assert model.prompts == []
    assert (summary.is_fallback, summary.num_pieces, summary.covers[-1]) == (True, 0, "t4")
    assert "Oslo" in summary.text
    assert 32 < summary.num_tokens <= 64
    assert estimate(turns(5), by_bytes, room).max_tokens_after == 64


def test_nothing_to_summarize_and_no_room_for_it_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing to summarize"):
        summarize([], Scripted(fact), by_words, ROOM)
    with pytest.raises(UsageError, match="needs 16 tokens or more, got 3"):
        summarize(turns(1), Scripted(fact), by_words, SummaryRoom(3, 1000))


def test_progress_counts_prompts_and_a_cancel_ends_between_two_of_them() -> None:
    seen: list[tuple[int, int]] = []
    model = Scripted(fact)
    watch = Watch(lambda done, total: seen.append((done, total)), lambda: len(model.prompts) >= 2)
    with pytest.raises(CancelledError):
        summarize(turns(40), model, by_words, ROOM, watch=watch)
    assert len(model.prompts) == 2
    total = seen[0][1]
    assert seen == [(0, total), (1, total), (2, total)]
    seen.clear()
    summarize(turns(40), Scripted(fact), by_words, ROOM, watch=Watch(lambda done, total: seen.append((done, total))))
    assert seen[-1] == (total, total)


def test_an_error_of_the_model_passes_through() -> None:
    def fail(_number: int, _prompt: str) -> str:
        raise EngineStateError("no")

    with pytest.raises(EngineStateError):
        summarize(turns(3), Scripted(fail), by_words, ROOM)


def test_the_estimate_is_what_it_then_costs() -> None:
    span = turns(40)
    before = estimate(span, by_words, ROOM, previous="- Ann lives in Oslo.")
    model = Scripted(fact)
    summary = summarize(span, model, by_words, ROOM, previous="- Ann lives in Oslo.")
    assert before.num_pieces == summary.num_pieces
    assert before.num_prompt_tokens == sum(map(by_words, model.prompts))
    assert before.max_reply_tokens >= sum(model.limits)
    assert before.num_tokens_before == sum(turn.num_tokens for turn in span) + by_words("- Ann lives in Oslo.")
    assert summary.num_tokens <= before.max_tokens_after <= ROOM.summary_tokens


TEXTS = st.lists(
    st.sampled_from(["Ann", "lives", "in", "Oslo.", "\n", "日本語", "x" * 40, "def f():"]), max_size=120
).map(" ".join)
REPLIES = st.sampled_from(["", "- a fact", "- one\n- two\n- three", "word " * 500, "<|im_end|>", "echo"])


@settings(max_examples=80)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=10),
    st.lists(REPLIES, min_size=1, max_size=6),
    st.integers(16, 300),
    st.integers(64, 3000),
    st.sampled_from(sorted(COUNTS)),
)
def test_every_turn_is_shown_and_every_prompt_and_summary_fits(
    said: list[tuple[str, str]], replies: list[str], summary_tokens: int, window: int, count: str
) -> None:
    counting = COUNTS[count]
    span = [SpanTurn(f"t{n}", user, answer, counting(user + answer) + 8) for n, (user, answer) in enumerate(said)]
    model = Scripted(
        lambda number, prompt: prompt if replies[number % len(replies)] == "echo" else replies[number % len(replies)]
    )
    room = SummaryRoom(summary_tokens, window)
    summary = summarize(span, model, counting, room)
    assert summary.covers == tuple(turn.ref for turn in span)
    assert summary.num_tokens == counting(summary.text) <= summary_tokens
    assert summary.text.strip() or not any((user + answer).strip() for user, answer in said)
    for prompt, limit in zip(model.prompts, model.limits, strict=True):
        assert counting(prompt) + limit <= window
    if summary.num_pieces:
        shown = "".join(_inside(prompt) for prompt in model.prompts if _inside(prompt))
        for turn in span:
            assert all(word in shown for word in turn.user.split() + turn.answer.split() if len(word) < 9)


def _inside(prompt: str) -> str:
    """What a first prompt shows of the conversation."""
    before, after = CONVERSATION[0].before, CONVERSATION[0].after
    return prompt.removeprefix(before).removesuffix(after) if prompt.startswith(before) else ""
