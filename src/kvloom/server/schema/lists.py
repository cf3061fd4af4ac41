"""Embeddings, models and tokens: the endpoints that generate nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from kvloom.server.schema.base import ListOf, Refused, ReplyModel, RequestModel
from kvloom.server.schema.completions import TokenId

MAX_INPUTS = 2048
"""Texts of one request for embeddings, as at OpenAI."""


class EmbeddingRequest(RequestModel):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "qwen2.5-coder-0.5b", "input": ["first text", "second text"]}]}
    )
    refused: ClassVar[Mapping[str, Refused]] = {
        "dimensions": Refused("vectors have the model's own length"),
    }

    model: str = Field(max_length=512)
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[ListOf[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[ListOf[TokenId], Field(min_length=1)]
        | Annotated[ListOf[Annotated[ListOf[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
    ) = Field(description="text, texts, token ids, or lists of token ids")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="default: float")
    user: str | None = Field(None, max_length=512)


class Embedding(ReplyModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ReplyModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(ReplyModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class ModelCard(ReplyModel):
    """A model that can be asked for. `max_model_len`: tokens of prompt and reply together, null until it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    max_model_len: int | None
    is_loaded: bool
    has_embeddings: bool
    tool_form: str | None


class ModelList(ReplyModel):
    object: Literal["list"]
    data: list[ModelCard]


class TokenizeRequest(RequestModel):
    """`content`: llama.cpp's name, `prompt`: vLLM's; one of them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"content": "Hello, world"}]})

    model: str | None = Field(None, max_length=512, description="default: the first model that is served")
    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = Field(None, description="put BOS before it where the model wants one; default: false")


class TokenizeReply(ReplyModel):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(RequestModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [9707, 11, 1879]}]})

    model: str | None = Field(None, max_length=512, description="default: the first model that is served")
    tokens: ListOf[TokenId]


class DetokenizeReply(ReplyModel):
    content: str
    prompt: str


class Health(ReplyModel):
    """`status`: "ok", "loading" or "draining"; only "ok" comes with 200."""

    status: Literal["ok", "loading", "draining"]
    running: int
    waiting: int
    slots: int
