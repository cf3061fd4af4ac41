"""The form that a request asks of its reply: free text, JSON by a grammar, or tool calls. Knows no shape of a reply."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from kvloom.errors import EngineUnsupportedError, UsageError
from kvloom.server.backend import ModelLease, ReadCall, ReadText, ToolPlan, ToolReader, ToolUse
from kvloom.server.errors import invalid_value, unsupported
from kvloom.server.prompts import tool_schemas
from kvloom.server.schema.chat import ChatRequest, JsonFormat, NamedTool, SchemaFormat
from kvloom.server.schema.responses import FlatSchemaFormat, TextForm

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """`grammar` forces it ("" leaves the reply free); `tools` reads calls out of it."""

    grammar: str = ""
    tools: ToolPlan | None = None

    def reader(self) -> ToolReader | None:
        """One for each choice."""
        return self.tools.reader() if self.tools is not None else None


def chat_form(body: ChatRequest, lease: ModelLease) -> Form:
    """Blocks: a grammar may be compiled. Raises ApiError for a form that cannot be forced."""
    wanted = body.response_format
    if body.tools and body.tool_choice != "none":
        if isinstance(wanted, (JsonFormat, SchemaFormat)):
            raise unsupported("response_format", "with tools a reply is a call or text; ask for one of both")
        plan = _asked("tools", lambda: _tool_plan(body, lease))
        return Form(plan.grammar, plan)
    if isinstance(wanted, JsonFormat):
        return _json_form(ANY_OBJECT, lease, "response_format")
    if isinstance(wanted, SchemaFormat):
        return _json_form(wanted.json_schema.schema_, lease, "response_format.json_schema.schema")
    return Form()


def text_form(wanted: TextForm | None, lease: ModelLease) -> Form:
    """The same for the Responses API's `text.format`."""
    if isinstance(wanted, JsonFormat):
        return _json_form(ANY_OBJECT, lease, "text.format")
    if isinstance(wanted, FlatSchemaFormat):
        return _json_form(wanted.schema_, lease, "text.format.schema")
    return Form()


def _json_form(schema: Mapping[str, Any], lease: ModelLease, param: str) -> Form:
    return Form(_asked(param, lambda: lease.grammar_for(schema)))


def _tool_use(body: ChatRequest) -> ToolUse:
    only = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else ""
    must_call = bool(only) or body.tool_choice == "required"
    # One function that is named is called once, as at OpenAI, unless more is asked for in words.
    parallel = body.parallel_tool_calls if body.parallel_tool_calls is not None else not only
    return ToolUse(tool_schemas(body), must_call, only, parallel)


def _tool_plan(body: ChatRequest, lease: ModelLease) -> ToolPlan:
    try:
        return lease.tool_plan(_tool_use(body))
    except UsageError:
        # Alone, a schema that cannot be held to says why without the grammar that we make around it.
        for index, tool in enumerate(body.tools or ()):
            schema = tool.function.parameters or ANY_OBJECT
            _asked(f"tools[{index}].function.parameters", partial(lease.grammar_for, schema))
        raise


def _asked(param: str, work: Callable[[], T]) -> T:
    """The work's result; what it refuses is told under the parameter that asked for it."""
    try:
        return work()
    except EngineUnsupportedError as exc:
        raise unsupported(param, str(exc)) from exc
    except UsageError as exc:
        raise invalid_value(param, f"`{param}`: {exc}") from exc


# --- calls read out of a reply ---------------------------------------------------------------------------------------


@dataclass
class ReadReply:
    """A reply's text and the calls in it."""

    text: str = ""
    calls: list[ReadCall] = field(default_factory=list)

    def take(self, read: ReadText) -> None:
        self.text += read.text
        self.calls += read.calls


def read_reply(text: str, reader: ToolReader | None) -> ReadReply:
    """A whole reply."""
    if reader is None:
        return ReadReply(text)
    reply = ReadReply()
    reply.take(reader.push(text))
    reply.take(reader.finish())
    return reply


def call_id() -> str:
    """A call's id, for the tool's answer to name."""
    return f"call_{uuid.uuid4().hex[:24]}"
