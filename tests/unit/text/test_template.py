"""Chat templates rendered and cut, with every habit that real ones have."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kvloom.errors import TemplateError
from kvloom.text.marks import SegmentKind
from kvloom.text.template import ChatTemplate, Marking, Message
from tests.unit.text import templates
from tests.unit.text.vocabularies import LexiconVocabulary

TALK = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]


def make(source: str | None, **values: object) -> ChatTemplate:
    return ChatTemplate(LexiconVocabulary(source), now=datetime(2031, 2, 3, tzinfo=UTC), values=values)


def kinds(template: ChatTemplate, messages: list[Message] | None = None) -> list[tuple[str, str]]:
    rendered = template.render("Be brief.", ["\n\n<file>a</file>"], messages or TALK)
    return [(s.kind.value, s.text) for s in rendered.segments if s.kind is not SegmentKind.TEMPLATE]


def test_a_prompt_is_cut_into_template_text_and_contents_in_order() -> None:
    rendered = make(templates.CHATML).render("Be brief.", ["\n\n<file>a</file>"], TALK)
    assert rendered.is_marked
    assert [(s.kind.value, s.text) for s in rendered.segments] == [
        ("template", "<|im_start|>system\n"),
        ("system", "Be brief."),
        ("chunk", "\n\n<file>a</file>"),
        ("template", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "one"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "two"),
        ("template", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "three"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
    ]


def test_a_default_system_text_of_the_template_never_appears() -> None:
    rendered = make(templates.CHATML).render("Be brief.", [], TALK)
    assert "babbles" not in rendered.text


def test_the_template_may_trim_its_messages_and_is_still_cut_exactly() -> None:
    messages = [Message("user", " \n one \n"), Message("assistant", "two  "), Message("user", "three\n")]
    template = make(templates.TRIMMING)
    rendered = template.render("Be brief.", ["\n\n<file>a\n</file>"], messages)
    assert rendered.is_marked
    assert kinds(template, messages) == [
        ("system", "Be brief."),
        ("chunk", "\n\n<file>a</file>"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    assert rendered.text == (
        "<s><|im_start|>system\n\nBe brief.\n\n<file>a\n</file><|im_end|><|im_start|>user\n\none<|im_end|>"
        "<|im_start|>assistant\n\ntwo<|im_end|><|im_start|>user\n\nthree<|im_end|><|im_start|>assistant\n\n"
    )


def test_white_space_that_a_template_keeps_belongs_to_the_content() -> None:
    messages = [Message("user", "  one\n")]
    assert kinds(make(templates.CHATML), messages)[-1] == ("user", "  one\n")


@pytest.mark.parametrize("source", [templates.NO_SYSTEM, templates.SYSTEM_IN_LAST_USER])
def test_without_a_usable_system_role_system_and_chunks_open_the_first_user_message(source: str) -> None:
    template = make(source)
    assert not template.has_system_role
    assert any("no system role" in note for note in template.notes)
    rendered = template.render("Be brief.", ["\n\n<file>a</file>"], TALK)
    assert "user\nBe brief.\n\n<file>a</file>\n\none" in rendered.text
    assert [kind for kind, _ in kinds(template)] == ["system", "chunk", "user", "assistant", "user"]


def test_bos_is_taken_out_only_where_the_vocabulary_adds_it() -> None:
    with_bos = ChatTemplate(LexiconVocabulary(templates.TRIMMING, has_bos=True))
    assert not with_bos.render("s", [], TALK).text.startswith("<s>")
    assert make(templates.TRIMMING).render("s", [], TALK).text.startswith("<s>")


def test_reasoning_of_earlier_turns_is_dropped_where_the_template_drops_it() -> None:
    messages = [Message("user", "one"), Message("assistant", "two", reasoning="hm"), Message("user", "three")]
    rendered = make(templates.THINKING).render("s", [], messages)
    assert rendered.is_marked
    assert "hm" not in rendered.text


def test_reasoning_of_the_last_turn_is_content_too() -> None:
    messages = [Message("user", "one"), Message("assistant", "two", reasoning="hm")]
    rendered = make(templates.THINKING).render("s", [], messages, add_generation_prompt=False)
    assert (SegmentKind.REASONING, "hm") in [(s.kind, s.text) for s in rendered.segments]
    assert rendered.text.endswith("assistant\n<think>\nhm\n</think>\n\ntwo<|im_end|>\n")


def test_a_template_that_shortens_a_message_is_followed_and_says_so() -> None:
    rendered = make(templates.CUTS_THINKING_OF_ALL).render("s", [], [Message("user", "a</think>b <|im_end|>")])
    assert rendered.marking is Marking.ALIGNED
    assert "shortens" in rendered.reason
    assert [s.text for s in rendered.segments if s.kind is SegmentKind.USER] == ["b <|im_end|>"]
    assert "a</think>" not in rendered.text


def test_a_template_that_rewrites_a_message_is_followed_and_its_words_stay_content() -> None:
    rendered = make(templates.SHOUTS).render("Say.", [], [Message("user", "quiet <|im_end|>")])
    assert rendered.is_marked
    assert [s.text for s in rendered.segments if s.kind is SegmentKind.USER] == ["QUIET <|IM_END|>"]


def test_a_template_that_looks_into_a_message_gets_it_as_given_and_says_so() -> None:
    rendered = make(templates.LOOKS_INTO).render("Say.", [], [Message("user", "<tool>x <|im_end|>")])
    assert rendered.marking is Marking.FORCED
    assert not rendered.is_marked
    assert rendered.reason
    assert [s.text for s in rendered.segments if s.kind is SegmentKind.USER] == ["<tool>x <|im_end|>"]


def test_a_message_that_the_template_would_lose_is_an_error() -> None:
    with pytest.raises(TemplateError, match="drops message 2"):
        make(templates.DROPS_ASSISTANT).render("s", [], TALK)


def test_a_conversation_that_the_template_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        make(templates.NO_SYSTEM).render("s", [], [Message("user", "a"), Message("user", "b")])


def test_dates_come_from_the_given_clock() -> None:
    assert "Today: 03 Feb 2031" in make(templates.DATED).render("s", [], TALK).text


def test_settings_reach_the_template() -> None:
    text = make(templates.THINKING, enable_thinking=False).render("s", [], TALK[:1]).text
    assert text.endswith("<think>\n\n</think>\n\n")


def test_a_model_without_template_gets_chatml_where_its_tokens_exist() -> None:
    template = make(None)
    assert any("ChatML" in note for note in template.notes)
    assert template.render("s", [], TALK).text.endswith("<|im_start|>assistant\n")


def test_a_model_without_template_and_without_chatml_tokens_gets_a_plain_one() -> None:
    template = ChatTemplate(LexiconVocabulary(None, specials=("<s>", "</s>")))
    assert any("plain" in note for note in template.notes)
    assert template.render("s", ["\n\nc"], TALK).text == "s\n\nc\n\nUser: one\nAssistant: two\nUser: three\nAssistant:"


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ nothing.at.all }}", "{{ 1 // 0 }}", "{{ ''.__class__.__mro__[1] }}"]
)
def test_a_broken_or_hostile_template_is_replaced_and_the_note_says_why(source: str) -> None:
    template = make(source)
    assert any("ChatML is used instead" in note for note in template.notes)
    assert template.render("s", [], TALK).is_marked


def test_tojson_writes_plain_json() -> None:
    source = templates.CHATML + "{{ {'a': 'ä<b>'} | tojson }}"
    assert make(source).render("s", [], TALK).text.endswith('{"a": "ä<b>"}')


def test_a_blank_system_text_or_a_missing_question_is_refused() -> None:
    template = make(templates.CHATML)
    for system, messages in (("", TALK), (" s", TALK), ("s", []), ("s", TALK[1:])):
        with pytest.raises(TemplateError):
            template.render(system, [], messages)
