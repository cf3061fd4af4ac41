"""`/v1/responses`: text in, text out, with the events of OpenAI's Responses API. No tools, nothing stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kvloom.server.schema.base import MAX_TOP_LOGPROBS, ListOf, MaxTokens, Refused, ReplyModel, RequestModel
from kvloom.server.schema.chat import ChunkContent, JsonFormat, Name, TextFormat
from kvloom.server.schema.extension import KvloomReport
from kvloom.server.schema.sampling import COMMON_REFUSALS, SamplingOptions, StreamOptions

MAX_METADATA = 16


class InputText(RequestModel):
    type: Literal["input_text"]
    text: str


class OutputText(RequestModel):
    """A part of an earlier reply, as this API gave it."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "annotations": Refused("leave them out", ([],)),
        "logprobs": Refused("leave them out of the input", ([],)),
    }

    type: Literal["output_text"]
    text: str


InputPart = Annotated[InputText | OutputText | ChunkContent, Field(discriminator="type")]


class InputMessage(RequestModel):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | ListOf[InputPart]
    id: str | None = Field(None, max_length=128)
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FlatSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


TextForm = Annotated[TextFormat | JsonFormat | FlatSchemaFormat, Field(discriminator="type")]


class TextOptions(RequestModel):
    refused: ClassVar[Mapping[str, Refused]] = {"verbosity": Refused("say it in a message", ("medium",))}

    format: TextForm | None = None


_NO_TOOLS = "tools are offered at /v1/chat/completions"
_NOTHING_STORED = "nothing is stored; send the whole conversation as `input`, or use the sessions under /v1/kvloom/"


class ResponseRequest(SamplingOptions):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "qwen2.5-coder-0.5b", "input": "What is a KV cache?", "max_output_tokens": 128}]
        }
    )
    refused: ClassVar[Mapping[str, Refused]] = {
        **COMMON_REFUSALS,
        "previous_response_id": Refused(_NOTHING_STORED),
        "conversation": Refused(_NOTHING_STORED),
        "store": Refused(_NOTHING_STORED, (False,)),
        "background": Refused("a reply is made while its client waits", (False,)),
        "tools": Refused(_NO_TOOLS, ([],)),
        "tool_choice": Refused(_NO_TOOLS, ("auto", "none")),
        "max_tool_calls": Refused(_NO_TOOLS),
        "parallel_tool_calls": Refused(_NO_TOOLS, (True, False)),
        "reasoning": Refused("the model decides how long it reasons"),
        "prompt": Refused("there are no stored prompts; send `input`"),
        "context_management": Refused("send `truncation` or kvloom.overflow"),
        "include": Refused("log-probabilities come with `top_logprobs`; there is nothing else to include", ([],)),
        "moderation": Refused("nothing is moderated"),
    }

    model: str = Field(max_length=512)
    input: str | ListOf[InputMessage] = Field(description="a text of the user, or messages")
    instructions: str | None = Field(None, description="system prompt")
    max_output_tokens: MaxTokens | None = Field(None, description="default: what the window leaves, capped")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: the oldest messages leave a prompt that does not fit (`fifo`); default: refused"
    )
    text: TextOptions | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    metadata: dict[str, str] | None = Field(None, max_length=MAX_METADATA, description="comes back with the reply")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        policy = self.kvloom.overflow if self.kvloom else None
        if self.truncation is not None and policy is not None:
            raise PydanticCustomError("value_error", "truncation and kvloom.overflow are two names of one thing", {})
        if isinstance(self.input, list) and not self.input:
            raise PydanticCustomError("value_error", "input needs at least one message", {})
        if self.stream_options is not None and self.stream_options.include_usage is not None:
            raise PydanticCustomError(
                "unsupported_parameter",
                "include_usage is not supported",
                {"name": "stream_options", "hint": "usage always comes with the last event here"},
            )
        return self


class InputDetails(ReplyModel):
    cached_tokens: int


class OutputDetails(ReplyModel):
    reasoning_tokens: int


class ResponseUsage(ReplyModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseTopLogprob(ReplyModel):
    token: str
    logprob: float
    bytes: list[int]


class ResponseLogprob(ResponseTopLogprob):
    top_logprobs: list[ResponseTopLogprob]


class OutputTextReply(ReplyModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseLogprob]


class ReasoningTextReply(ReplyModel):
    type: Literal["reasoning_text"]
    text: str


class MessageItem(ReplyModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputTextReply]


class ReasoningItem(ReplyModel):
    id: str
    type: Literal["reasoning"]
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[Any]
    content: list[ReasoningTextReply]


class IncompleteDetails(ReplyModel):
    reason: Literal["max_output_tokens"]


class ResponseError(ReplyModel):
    code: str
    message: str


class ResponseReply(ReplyModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[ReasoningItem | MessageItem]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float | None
    top_p: float | None
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    truncation: Literal["auto", "disabled"]
    metadata: dict[str, str]
    usage: ResponseUsage | None
    kvloom: KvloomReport | None
