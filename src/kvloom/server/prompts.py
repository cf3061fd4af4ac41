"""Requests in OpenAI's shapes as the session room's prompts and sampling. Knows both sides' values, runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvloom.config import ServerSettings
from kvloom.server.errors import invalid_value
from kvloom.server.limits import check_count, check_stops
from kvloom.server.schema.chat import AssistantMessage, ChatRequest, Contents, Message, TextContent, ToolMessage
from kvloom.server.schema.completions import CompletionRequest
from kvloom.server.schema.extension import KvloomOptions
from kvloom.server.schema.responses import InputMessage, ResponseRequest
from kvloom.server.schema.sampling import GenerationOptions, SamplingOptions
from kvloom.session.requests import ChatMessage, ChatPrompt, ChunkPart, Part, RawPrompt, TextPart, ToolCall
from kvloom.types import Fidelity, SamplingParams

MAX_TOKEN_DIGITS = 10
"""A token id has no more digits."""

OLDEST_FIRST = "fifo"
"""What `truncation: auto` means here."""

# --- prompts ---------------------------------------------------------------------------------------------------------


def chat_prompt(body: ChatRequest, limits: ServerSettings) -> ChatPrompt:
    check_count("messages", body.messages, limits.max_messages, "max_messages")
    check_count("tools", body.tools, limits.max_tools, "max_tools")
    tools = () if body.tool_choice == "none" else tool_schemas(body)
    return ChatPrompt(tuple(_chat_message(message) for message in body.messages), tools)


def tool_schemas(body: ChatRequest) -> tuple[Mapping[str, Any], ...]:
    """Functions as chat templates want them."""
    found = []
    for tool in body.tools or ():
        function: dict[str, Any] = {"name": tool.function.name}
        if tool.function.description is not None:
            function["description"] = tool.function.description
        function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
        found.append({"type": "function", "function": function})
    return tuple(found)


def raw_prompts(body: CompletionRequest, limits: ServerSettings) -> list[RawPrompt]:
    given = body.prompt
    if isinstance(given, str):
        return [RawPrompt(text=given)]
    if not given:
        raise invalid_value("prompt", "`prompt` is an empty list")
    texts = [item for item in given if isinstance(item, str)]
    runs = [item for item in given if isinstance(item, list)]
    if texts:
        check_count("prompt", texts, limits.max_messages, "max_messages")
        return [RawPrompt(text=text) for text in texts]
    if runs:
        check_count("prompt", runs, limits.max_messages, "max_messages")
        if not all(runs):
            raise invalid_value("prompt", "`prompt` holds an empty list of token ids")
        return [RawPrompt(tokens=tuple(run)) for run in runs]
    return [RawPrompt(tokens=tuple(item for item in given if isinstance(item, int)))]


def response_prompt(body: ResponseRequest, limits: ServerSettings) -> ChatPrompt:
    messages: list[ChatMessage] = []
    if body.instructions is not None:
        messages.append(ChatMessage("system", (TextPart(body.instructions),)))
    if isinstance(body.input, str):
        messages.append(ChatMessage("user", (TextPart(body.input),)))
    else:
        check_count("input", body.input, limits.max_messages, "max_messages")
        messages += [_input_message(message) for message in body.input]
    return ChatPrompt(tuple(messages))


def _chat_message(message: Message) -> ChatMessage:
    parts = _parts(message.content)
    name = message.name or ""
    if isinstance(message, AssistantMessage):
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
        )
        return ChatMessage("assistant", parts, name, calls, reasoning=message.reasoning_content or "")
    if isinstance(message, ToolMessage):
        return ChatMessage("tool", parts, name, tool_call_id=message.tool_call_id)
    return ChatMessage(_template_role(message.role), parts, name)


def _input_message(message: InputMessage) -> ChatMessage:
    content = message.content
    if isinstance(content, str):
        parts: tuple[Part, ...] = (TextPart(content),)
    else:
        parts = tuple(ChunkPart(one.id) if one.type == "kvloom_chunk" else TextPart(one.text) for one in content)
    return ChatMessage(_template_role(message.role), parts)


def _parts(content: Contents | None) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(TextPart(one.text) if isinstance(one, TextContent) else ChunkPart(one.id) for one in content)


def _template_role(role: str) -> str:
    """Templates know no developer: it is OpenAI's later name of the system."""
    return "system" if role == "developer" else role


# --- how tokens are drawn --------------------------------------------------------------------------------------------


def sampling(body: SamplingOptions, limits: ServerSettings, grammar: str = "") -> SamplingParams:
    """What every choice shares; the seed of each comes with it."""
    bias: tuple[tuple[int, float], ...] = ()
    if isinstance(body, GenerationOptions):
        check_stops(body.stops, limits)
        bias = _bias(body.logit_bias, limits)
    return SamplingParams(
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        repeat_penalty=body.repeat_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=bias,
        grammar=grammar,
    )


def _bias(given: Mapping[str, float] | None, limits: ServerSettings) -> tuple[tuple[int, float], ...]:
    check_count("logit_bias", given, limits.max_logit_bias, "max_logit_bias")
    found = []
    for key, value in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_TOKEN_DIGITS and int(key) < 2**31):
            raise invalid_value("logit_bias", "`logit_bias` maps token ids (digits, as text) to numbers")
        found.append((int(key), value))
    return tuple(found)


def fidelity(options: KvloomOptions | None, limits: ServerSettings) -> Fidelity:
    """The request's, else the server's."""
    if options is not None and options.fidelity is not None:
        return Fidelity(options.fidelity)
    return Fidelity.EXACT if limits.reuse == "off" else Fidelity(limits.reuse)


def overflow(options: KvloomOptions | None) -> str:
    """The policy that may take messages out; "stop" where the request names none."""
    return (options.overflow if options is not None else None) or "stop"
