"""Tool calls: which form a template speaks, what a grammar forces, and what comes out of a reply's text."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.engine.fake import IM_END, FakeVocabulary
from kvloom.engine.grammar import GrammarGuides
from kvloom.errors import UsageError
from kvloom.text import tools as room
from kvloom.text.tools import (
    FunctionCall,
    ToolCallSplitter,
    ToolChoice,
    ToolForm,
    ToolText,
    detect,
    grammar_of,
    split_calls,
)

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["c", "f"]}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ghent </tool_call>", "unit": "c"}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'

_guides = GrammarGuides(FakeVocabulary())


def accepts(grammar: str, text: str) -> bool:
    guide = _guides.start(grammar)
    for byte in text.encode():
        if not guide.allowed()[byte]:
            return False
        guide.accept(byte)
    return bool(guide.allowed()[IM_END])


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("{% if tools %}within <tool_call></tool_call> XML tags{% endif %}", ToolForm.HERMES),
        ("{% for tool in tools %}<tool_call><function=f>{% endfor %}", ToolForm.QWEN_XML),
        ("{{ tools }}<function=f>", ToolForm.FUNCTIONARY),
        ("{{ tools }}<tool_call>f<arg_key>k", ToolForm.GLM),
        ("{{ tools }}[TOOL_CALLS] [", ToolForm.MISTRAL),
        ("{{ tools }}<|python_tag|>", ToolForm.LLAMA),
        ("{{ tools }}<｜tool▁calls▁begin｜>", ToolForm.DEEPSEEK),
        ("{{ tools }}<|start|>assistant<|channel|>", ToolForm.HARMONY),
        ("{{ tools }}<|tool_call|>", ToolForm.GRANITE),
        ("{{ tools }}Call them.", ToolForm.OTHER),
        ("{{ messages }}<tool_call>", ToolForm.NONE),
    ],
)
def test_a_template_tells_the_form_of_its_calls(source: str, form: ToolForm) -> None:
    assert detect(source) is form
    assert form.is_supported is (form is ToolForm.HERMES)


def test_required_is_one_call_or_more_and_nothing_else() -> None:
    grammar = grammar_of(TOOLS, ToolChoice.REQUIRED)
    assert accepts(grammar, CALL)
    assert accepts(grammar, f"{NOW_CALL}\n{CALL}\n{NOW_CALL}")
    for text in ("", "Hello", f"Hello {CALL}", f"{CALL} bye", f"{CALL}\n", CALL[:-1], CALL.replace("city", "town")):
        assert not accepts(grammar, text)
    assert not accepts(grammar, NOW_CALL.replace("{}", '{"x": 1}'))
    assert not accepts(grammar, NOW_CALL.replace("now", "other"))


def test_without_parallel_calls_there_is_one() -> None:
    required = grammar_of(TOOLS, ToolChoice.REQUIRED, parallel=False)
    assert accepts(required, CALL)
    assert not accepts(required, f"{CALL}\n{NOW_CALL}")
    auto = grammar_of(TOOLS, parallel=False)
    assert accepts(auto, f"Well. {CALL}")
    assert not accepts(auto, f"{CALL}\n{NOW_CALL}")


def test_a_named_function_is_the_only_one() -> None:
    grammar = grammar_of(TOOLS, ToolChoice.REQUIRED, name="now", parallel=False)
    assert accepts(grammar, NOW_CALL)
    assert not accepts(grammar, CALL)


def test_auto_leaves_text_free_and_forces_a_call_that_has_begun() -> None:
    grammar = grammar_of(TOOLS)
    for text in ("", "Just text, 1 < 2 <tool é", CALL, f"Let me see.\n{CALL}\n{NOW_CALL}\nDone."):
        assert accepts(grammar, text)
    for text in ("<tool_call>", "Hi <tool_call>no", NOW_CALL.replace("now", "other"), CALL[:-1]):
        assert not accepts(grammar, text)


def test_names_of_any_characters_are_forced_as_they_are() -> None:
    for name in ('a"b\\', "über-Werkzeug", "x</tool_call>"):
        tool = {"type": "function", "function": {"name": name, "parameters": {}}}
        text = f"<tool_call>\n{json.dumps({'name': name, 'arguments': {}}, ensure_ascii=False)}\n</tool_call>"
        assert accepts(grammar_of([tool], ToolChoice.REQUIRED), text)
        assert split_calls(text) == ToolText("", (FunctionCall(name, "{}"),))


@pytest.mark.parametrize(
    ("tools", "name", "message"),
    [
        ([], "", "no tools are given"),
        ([NOW], "later", "tool_choice names 'later'; the tools are 'now'"),
        ([NOW, NOW], "", "'now' is given twice"),
        ([{"type": "web_search"}], "", "tool 0 is no function"),
        ([{"type": "function", "function": {"name": ""}}], "", "tool 0 is no function"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}], "", "the tool 'f' uses 'not'"),
        ([{"type": "function", "function": {"name": "f", "parameters": [1]}}], "", "must be an object"),
    ],
)
def test_tools_that_cannot_be_held_to_are_refused_by_name(tools: list[Any], name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grammar_of(tools, ToolChoice.REQUIRED, name=name)


def test_text_streams_and_a_call_comes_out_whole() -> None:
    splitter = ToolCallSplitter()
    assert splitter.push("Let me see") == ToolText("Let me see")
    assert splitter.push(".\n\n<tool") == ToolText(".")
    assert splitter.push("s> are") == ToolText("\n\n<tools> are")
    assert splitter.push(" fine: ") == ToolText(" fine:")
    assert splitter.push(CALL[:60]) == ToolText()
    assert splitter.push(CALL[60:-1]) == ToolText()
    expected = FunctionCall("get_weather", '{"city": "Ghent </tool_call>", "unit": "c"}')
    assert splitter.push(CALL[-1:]) == ToolText("", (expected,))
    assert splitter.push(f"\n{NOW_CALL}\n") == ToolText("", (FunctionCall("now", "{}"),))
    assert splitter.push("Done ") == ToolText("Done")
    assert splitter.finish() == ToolText(" ")


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no JSON</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arg',
        '<tool_call>{"name": "f</tool_call>',
        "a < b, <tool_cal",
        "<tool_call>" + "[" * 5000 + "</tool_call>",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert split_calls(text) == ToolText(text)


def test_a_call_behind_what_is_none_is_found() -> None:
    assert split_calls(f"<tool_call>oops</tool_call> so: {NOW_CALL}") == ToolText(
        "<tool_call>oops</tool_call> so:", (FunctionCall("now", "{}"),)
    )


def test_arguments_written_as_a_string_are_taken_out_of_it() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert split_calls(text).calls == (FunctionCall("f", '{"a": 1}'),)


def test_a_call_that_never_ends_is_handed_out_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_CALL_CHARS", 100)
    splitter = ToolCallSplitter()
    said = "".join(splitter.push("<tool_call>" if i == 0 else "x" * 20).text for i in range(7))
    assert said.startswith("<tool_call>xxx")
    assert said + splitter.finish().text == "<tool_call>" + "x" * 120


pieces = st.lists(
    st.sampled_from([CALL, NOW_CALL, "text", " ", "\n", "<", "<tool_call>", "</tool_call>", "{}", '"', "é"]), max_size=8
)


@given(pieces=pieces, cuts=st.lists(st.integers(0, 400), max_size=12))
def test_the_cuts_of_a_stream_change_nothing(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    splitter = ToolCallSplitter()
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    parts = [splitter.push(text[a:b]) for a, b in itertools.pairwise(places)]
    parts.append(splitter.finish())
    whole = split_calls(text)
    assert "".join(part.text for part in parts) == whole.text
    assert tuple(call for part in parts for call in part.calls) == whole.calls
