"""`/v1/completions`: a text or token ids to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from kvloom.server.schema.base import MAX_TOP_LOGPROBS, ListOf, MaxTokens, Refused, ReplyModel
from kvloom.server.schema.extension import KvloomReport
from kvloom.server.schema.sampling import COMMON_REFUSALS, GenerationOptions
from kvloom.server.schema.usage import UsageReport

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class CompletionRequest(GenerationOptions):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "qwen2.5-coder-0.5b", "prompt": "def fibonacci(n):", "max_tokens": 64, "temperature": 0},
                {"model": "qwen2.5-coder-0.5b", "prompt": ["One", "Two"], "stream": True, "logprobs": 2},
            ]
        }
    )
    refused: ClassVar[Mapping[str, Refused]] = {
        **COMMON_REFUSALS,
        "suffix": Refused("filling in the middle is not offered; put what follows into the prompt"),
        "best_of": Refused("ask for `n` replies and choose among them", (1,)),
    }

    model: str = Field(max_length=512)
    prompt: str | ListOf[str] | ListOf[TokenId] | ListOf[ListOf[TokenId]] = Field(
        description="text, token ids, or several of either; no special token comes out of a text"
    )
    max_tokens: MaxTokens | None = Field(None, description="default: what the window leaves, capped by the settings")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="alternatives reported with each token")
    echo: bool | None = Field(None, description="the prompt stands before the reply")


class CompletionLogprobs(ReplyModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(ReplyModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionReply(ReplyModel):
    """A whole reply, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReport | None = None
    kvloom: KvloomReport | None = None
