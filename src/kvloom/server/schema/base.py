"""What the shapes share: strict models that refuse unsupported parameters by name. Knows no endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_TOKENS = 100_000
"""Longest reply that may be asked for."""

MAX_TOP_LOGPROBS = 20
"""Alternatives reported beside a token, as at OpenAI."""

MAX_CHOICES = 128
"""Replies to one prompt, as at OpenAI; the settings may allow fewer."""

T = TypeVar("T")

ListOf = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first wrong part: a million wrong ones would take seconds to tell."""

MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


@dataclass(frozen=True)
class Refused:
    """A parameter of OpenAI's that is not supported: why, and the values that ask for nothing (null always does)."""

    hint: str
    neutral: tuple[Any, ...] = ()


class RequestModel(BaseModel):
    """A part of a request. Unknown names are refused, known but unsupported ones by name with a hint."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    refused: ClassVar[Mapping[str, Refused]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        asked = [name for name in cls.refused if values.get(name) is not None]
        for name in asked:
            refused = cls.refused[name]
            if not any(type(values[name]) is type(one) and values[name] == one for one in refused.neutral):
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "{name} is not supported: {hint}",
                    {"name": name, "hint": refused.hint},
                )
        return {name: value for name, value in values.items() if name not in cls.refused} if cls.refused else values


class ReplyModel(BaseModel):
    """A part of a reply. What was not set does not stand in it; what was set to None stands in it as null."""

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> str:
        return self.model_dump_json(exclude_unset=True)


class ErrorDetail(ReplyModel):
    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(ReplyModel):
    """Every answer that is not 2xx."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "message": "This model's maximum context length is 4096 tokens. However, …",
                    "type": "invalid_request_error",
                    "param": "messages",
                    "code": "context_length_exceeded",
                    "n_prompt_tokens": 5120,
                    "n_ctx": 4096,
                }
            }
        }
    )

    error: ErrorDetail
