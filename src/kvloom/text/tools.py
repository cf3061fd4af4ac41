"""Tool calls in the Hermes/Qwen form: which form a template speaks, the grammar of a call, calls out of a reply's text.

It knows texts and function schemas, no tokens and no messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kvloom.errors import UsageError
from kvloom.text.grammar import schema_for_lark

__all__ = [
    "FunctionCall",
    "ToolCallSplitter",
    "ToolChoice",
    "ToolForm",
    "ToolText",
    "detect",
    "grammar_of",
    "split_calls",
]

OPENING, CLOSING = "<tool_call>", "</tool_call>"
MAX_CALL_CHARS = 1 << 20
"""What is held back for a call that does not end; a longer one is handed out as text."""


class ToolForm(Enum):
    """How a model's chat template writes tool calls. Only HERMES can be forced and read here."""

    NONE = "no tools at all"
    HERMES = "Hermes/Qwen"
    QWEN_XML = "Qwen3-Coder XML"
    GLM = "GLM"
    LLAMA = "Llama 3"
    MISTRAL = "Mistral"
    DEEPSEEK = "DeepSeek"
    HARMONY = "Harmony (gpt-oss)"
    GRANITE = "Granite"
    PHI = "Phi-4"
    FUNCTIONARY = "Functionary"
    COMMAND_R = "Command R"
    OTHER = "another"

    @property
    def is_supported(self) -> bool:
        return self is ToolForm.HERMES


_MARKS: tuple[tuple[str, ToolForm], ...] = (
    ("<function=", ToolForm.QWEN_XML),
    ("<arg_key>", ToolForm.GLM),
    ("<|tool_call|>", ToolForm.GRANITE),
    ("<|tool_call_start|>", ToolForm.OTHER),
    (OPENING, ToolForm.HERMES),
    ("[TOOL_CALLS]", ToolForm.MISTRAL),
    ("<|python_tag|>", ToolForm.LLAMA),
    ("<｜tool▁calls▁begin｜>", ToolForm.DEEPSEEK),
    ("<|channel|>", ToolForm.HARMONY),
    ("<|tool|>", ToolForm.PHI),
    (">>>all", ToolForm.FUNCTIONARY),
    ("<|START_ACTION|>", ToolForm.COMMAND_R),
)
"""What only that form's templates write; the first that is found counts, so the more special stand before."""


def detect(template_source: str) -> ToolForm:
    """The form that a chat template speaks. NONE where it does not look at its tools."""
    if "tools" not in template_source:
        return ToolForm.NONE
    for mark, form in _MARKS:
        if mark in template_source:
            if form is ToolForm.QWEN_XML and OPENING not in template_source:
                return ToolForm.FUNCTIONARY
            return form
    return ToolForm.OTHER


class ToolChoice(Enum):
    """AUTO: text, calls or both; REQUIRED: at least one call and nothing else."""

    AUTO = "auto"
    REQUIRED = "required"


def grammar_of(
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice = ToolChoice.AUTO,
    *,
    name: str = "",
    parallel: bool = True,
) -> str:
    """The grammar of a reply with calls of `tools`, each `{"type": "function", "function": {"name", "parameters"}}`.

    With `name` only that function may be called. Without `parallel` at most one call is made. In AUTO text is free up
    to `<tool_call>`, then a whole call must follow. Raises UsageError naming the tool that cannot be held to.
    """
    functions = [_function(tool, index) for index, tool in enumerate(tools)]
    names = [function_name for function_name, _ in functions]
    if twice := {item for item in names if names.count(item) > 1}:
        raise UsageError(f"the tool {min(twice)!r} is given twice")
    if name and name not in names:
        raise UsageError(f"tool_choice names {name!r}; the tools are {', '.join(map(repr, names)) or 'none'}")
    chosen = [item for item in functions if not name or item[0] == name]
    if not chosen:
        raise UsageError("no tools are given; leave tool_choice out, or give some")
    lines = [f"one: {' | '.join(f'call_{i}' for i in range(len(chosen)))}"]
    for i, (function_name, schema) in enumerate(chosen):
        opening = json.dumps("\n" + f'{{"name": {json.dumps(function_name, ensure_ascii=False)}, "arguments": ')
        lines.append(f"call_{i}: {opening} arguments_{i} {json.dumps('}' + chr(10) + CLOSING)}")
        lines.append(f"arguments_{i}: %json {schema}")
    if choice is ToolChoice.REQUIRED:
        more = f' ( "\\n{OPENING}" one )*' if parallel else ""
        return "\n".join([f'start: "{OPENING}" one{more}', *lines])
    lines += ["TEXT: /(?s:.*)/", "tail: TEXT", f'head[lazy]: TEXT "{OPENING}"', "call: head one"]
    return "\n".join(["start: call* tail" if parallel else "start: call | tail", *lines])


def _function(tool: Mapping[str, Any], index: int) -> tuple[str, str]:
    """A tool's name and the JSON Schema of its arguments, checked."""
    function = tool.get("function") if tool.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise UsageError(f'tool {index} is no function: {{"type": "function", "function": {{"name": …}}}} is needed')
    schema = function.get("parameters")
    if schema is None or schema == {}:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    return name, schema_for_lark(schema, f"the schema of the tool {name!r}")


@dataclass(frozen=True)
class FunctionCall:
    """A call that a reply makes. `arguments` is JSON, as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolText:
    """A run of a reply, or all of it: what was said, and the calls that have become whole."""

    text: str = ""
    calls: tuple[FunctionCall, ...] = ()


class ToolCallSplitter:
    """Takes a reply's text as it comes: text streams on, a call comes out whole. What is no call stays text.

    White space between text and a call, and between calls, is nobody's. Text that could still become a call is held
    back until it is clear.
    """

    def __init__(self) -> None:
        self._held = ""
        self._searched = 0
        self._is_behind_call = False

    def push(self, text: str) -> ToolText:
        """What has become clear with `text`."""
        self._held += text
        said: list[str] = []
        calls: list[FunctionCall] = []
        while True:
            at = self._held.find(OPENING)
            if at < 0:
                said.append(self._say(_num_clear(self._held)))
                break
            found = self._call_at(at)
            if found is None:
                is_lost = len(self._held) - at > MAX_CALL_CHARS
                said.append(self._say(len(self._held) if is_lost else len(self._held[:at].rstrip())))
                break
            call, end = found
            if call is None:
                said.append(self._say(end))
                continue
            said.append(self._say(at).rstrip())
            self._held = self._held[end - at :]
            self._searched, self._is_behind_call = 0, True
            calls.append(call)
        return ToolText("".join(said), tuple(calls))

    def finish(self) -> ToolText:
        """What is left when the reply ends: an unfinished call is text."""
        rest = self._say(len(self._held))
        return ToolText(rest)

    def _call_at(self, at: int) -> tuple[FunctionCall | None, int] | None:
        """The call that begins at `at` and the place behind it; None while none is whole. (None, …): it is no call."""
        start = at + len(OPENING)
        search = max(start, self._searched)
        while (end := self._held.find(CLOSING, search)) >= 0:
            body = self._held[start:end]
            if (call := _parse(body)) is not None or not _ends_in_string(body):
                return call, end + len(CLOSING)
            search = end + 1
        self._searched = max(start, len(self._held) - len(CLOSING))
        return None

    def _say(self, num_chars: int) -> str:
        """Take text from the front. The first behind a call loses its leading white space."""
        said, self._held = self._held[:num_chars], self._held[num_chars:]
        self._searched = max(0, self._searched - num_chars)
        if self._is_behind_call:
            said = said.lstrip()
            self._is_behind_call = not said
        return said


def split_calls(reply: str) -> ToolText:
    """A whole reply, split."""
    splitter = ToolCallSplitter()
    first, rest = splitter.push(reply), splitter.finish()
    return ToolText(first.text + rest.text, first.calls)


def _num_clear(held: str) -> int:
    """Characters that cannot be the start of a call, nor white space in front of one."""
    tail = next((n for n in range(min(len(OPENING) - 1, len(held)), 0, -1) if held.endswith(OPENING[:n])), 0)
    return len(held[: len(held) - tail].rstrip())


def _ends_in_string(body: str) -> bool:
    """Whether the closing tag behind `body` may stand in a string of the call's JSON."""
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False


def _parse(body: str) -> FunctionCall | None:
    """The call between the tags, None where it is none. The arguments keep their order."""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # some models write the JSON as a string once more
        return FunctionCall(call["name"], arguments)
    if not isinstance(arguments, dict):
        return None
    return FunctionCall(call["name"], json.dumps(arguments, ensure_ascii=False))
