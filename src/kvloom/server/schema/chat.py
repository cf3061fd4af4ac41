"""`/v1/chat/completions`: messages, tools and the form of the reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kvloom.server.schema.base import MAX_TOP_LOGPROBS, ListOf, MaxTokens, Refused, ReplyModel, RequestModel
from kvloom.server.schema.extension import KvloomReport
from kvloom.server.schema.sampling import COMMON_REFUSALS, GenerationOptions
from kvloom.server.schema.usage import UsageReport

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]

# --- messages --------------------------------------------------------------------------------------------------------


class TextContent(RequestModel):
    type: Literal["text"]
    text: str


class ChunkContent(RequestModel):
    """A chunk of the tenant in the place of its text."""

    type: Literal["kvloom_chunk"]
    id: str = Field(min_length=1, max_length=512, description="id of a chunk, the beginning of one, or its name")


Content = Annotated[TextContent | ChunkContent, Field(discriminator="type")]
Contents = str | ListOf[Content]


class FunctionCall(RequestModel):
    name: str = Field(min_length=1, max_length=64)
    arguments: str = Field(description="JSON, as text")


class ToolCallMessage(RequestModel):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class SystemMessage(RequestModel):
    role: Literal["system", "developer"]
    content: Contents
    name: str | None = Field(None, max_length=64)


class UserMessage(RequestModel):
    role: Literal["user"]
    content: Contents
    name: str | None = Field(None, max_length=64)


class AssistantMessage(RequestModel):
    refused: ClassVar[Mapping[str, Refused]] = {
        "refusal": Refused("send it as content"),
        "audio": Refused("this server reads text"),
        "function_call": Refused("send `tool_calls`"),
        "annotations": Refused("leave them out", ([],)),
    }

    role: Literal["assistant"]
    content: Contents | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: ListOf[ToolCallMessage] | None = None
    reasoning_content: str | None = Field(None, description="the reasoning that came with this reply")


class ToolMessage(RequestModel):
    role: Literal["tool"]
    content: Contents
    tool_call_id: str = Field(min_length=1, max_length=128)
    name: str | None = Field(None, max_length=64)


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]

# --- tools and the reply's form --------------------------------------------------------------------------------------


class Function(RequestModel):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: bool | None = Field(None, description="arguments always follow the schema here, asked for or not")


class Tool(RequestModel):
    type: Literal["function"]
    function: Function


class NamedFunction(RequestModel):
    name: Name


class NamedTool(RequestModel):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(RequestModel):
    type: Literal["text"]


class JsonFormat(RequestModel):
    type: Literal["json_object"]


class Schema(RequestModel):
    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: Schema


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(GenerationOptions):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "qwen2.5-coder-0.5b",
                    "messages": [{"role": "user", "content": "What is a KV cache?"}],
                    "max_tokens": 128,
                    "stream": True,
                },
                {
                    "model": "qwen2.5-coder-0.5b",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "kvloom_chunk", "id": "utils.py"},
                                {"type": "text", "text": "What does parse() return?"},
                            ],
                        }
                    ],
                    "kvloom": {"overflow": "fifo", "fidelity": "splice"},
                },
            ]
        }
    )
    refused: ClassVar[Mapping[str, Refused]] = {
        **COMMON_REFUSALS,
        "audio": Refused("this server writes text"),
        "modalities": Refused("this server writes text", (["text"],)),
        "prediction": Refused("replies are not predicted; leave it out"),
        "store": Refused("nothing is stored; use the sessions under /v1/kvloom/", (False,)),
        "metadata": Refused("nothing is stored that it could belong to", ({},)),
        "web_search_options": Refused("there is no web search"),
        "functions": Refused("send `tools`", ([],)),
        "function_call": Refused("send `tool_choice`", ("none",)),
        "reasoning_effort": Refused("the model decides how long it reasons", ("none",)),
        "verbosity": Refused("say it in a message", ("medium",)),
        "moderation": Refused("nothing is moderated"),
    }

    model: str = Field(max_length=512)
    messages: ListOf[Message] = Field(min_length=1)
    max_tokens: MaxTokens | None = Field(None, description="default: what the window leaves, capped by the settings")
    max_completion_tokens: MaxTokens | None = Field(None, description="the newer name of max_tokens")
    logprobs: bool | None = Field(None, description="report the log-probability of every token of the reply")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: ListOf[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise _contradiction("top_logprobs", "top_logprobs needs logprobs: true")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise _contradiction("max_tokens", "max_tokens and max_completion_tokens differ; send one of them")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise _contradiction("tool_choice", "tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in self.tool_names:
            raise _contradiction("tool_choice", "tool_choice names a function that is not among the tools")
        return self

    @property
    def tool_names(self) -> tuple[str, ...]:
        return tuple(tool.function.name for tool in self.tools or ())

    @property
    def longest(self) -> int | None:
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens


def _contradiction(param: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("value_error", "{message}", {"message": message, "param": param})


# --- replies ---------------------------------------------------------------------------------------------------------


class TopLogprob(ReplyModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(ReplyModel):
    content: list[ChatLogprob]
    refusal: None = None


class FunctionCallReply(ReplyModel):
    name: str
    arguments: str


class ToolCallReply(ReplyModel):
    id: str
    type: Literal["function"]
    function: FunctionCallReply


class ChatMessageReply(ReplyModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(ReplyModel):
    index: int
    message: ChatMessageReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatReply(ReplyModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReport
    kvloom: KvloomReport


class FunctionDelta(ReplyModel):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(ReplyModel):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(ReplyModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatDeltaChoice(ReplyModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatEvent(ReplyModel):
    """One event of a streamed reply."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatDeltaChoice]
    usage: UsageReport | None = None
    kvloom: KvloomReport | None = None
