"""Reasoning and answer, told apart in whole replies and in streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.text.reasoning import (
    DEFAULT_TAGS,
    ReasoningSplitter,
    ReasoningTags,
    ReplyText,
    split_reply,
    tags_of,
)

INSIDE = ReasoningTags("<think>", "</think>", starts_inside=True)


@pytest.mark.parametrize(
    ("reply", "tags", "expected"),
    [
        ("plain", DEFAULT_TAGS, ReplyText("", "plain")),
        (" plain ", DEFAULT_TAGS, ReplyText("", " plain ")),
        ("<think>\nhm\n</think>\n\nyes", DEFAULT_TAGS, ReplyText("hm", "yes")),
        ("\n<think>hm</think>yes", DEFAULT_TAGS, ReplyText("hm", "yes")),
        ("hm\n</think>\nyes", INSIDE, ReplyText("hm", "yes")),
        ("<think></think>yes", DEFAULT_TAGS, ReplyText("", "yes")),
        ("<think>cut off ", DEFAULT_TAGS, ReplyText("cut off", "")),
        ("<thin", DEFAULT_TAGS, ReplyText("", "<thin")),
        ("say <think>this</think>", DEFAULT_TAGS, ReplyText("", "say <think>this</think>")),
        ("<think>a</think>b</think>c", DEFAULT_TAGS, ReplyText("a", "b</think>c")),
        ("[THINK]a[/THINK]b", ReasoningTags("[THINK]", "[/THINK]"), ReplyText("a", "b")),
        ("", DEFAULT_TAGS, ReplyText()),
    ],
)
def test_a_reply_is_split(reply: str, tags: ReasoningTags, expected: ReplyText) -> None:
    assert split_reply(reply, tags) == expected


@given(
    parts=st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think", ">", " ", "\n", "a", "hm"]), max_size=14),
    starts_inside=st.booleans(),
)
def test_a_stream_splits_as_the_whole_does(parts: list[str], starts_inside: bool) -> None:
    tags = ReasoningTags("<think>", "</think>", starts_inside)
    splitter = ReasoningSplitter(tags)
    got = [*(splitter.push(c) for part in parts for c in part), splitter.finish()]
    streamed = ReplyText("".join(t.reasoning for t in got), "".join(t.answer for t in got))
    assert streamed == split_reply("".join(parts), tags)


def test_reasoning_streams_as_it_comes() -> None:
    splitter = ReasoningSplitter()
    assert splitter.push("<think>first ") == ReplyText(reasoning="first")
    assert splitter.push("second") == ReplyText(reasoning=" second")


def test_tags_come_from_the_template() -> None:
    assert tags_of("{{ content.split('[/THINK]') }}").opening == "[THINK]"
    assert tags_of("… <think> …", "assistant\n<think>\n").starts_inside
    assert tags_of("nothing") == DEFAULT_TAGS
