"""What all endpoints that generate text take in common: how tokens are drawn, and where a reply ends."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from kvloom.server.schema.base import MAX_CHOICES, ListOf, Refused, RequestModel
from kvloom.server.schema.extension import KvloomOptions

MAX_BIAS = 100.0
"""OpenAI's largest bias: 100 all but forces a token, −100 bans it."""

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1

SEEDS = 2**32 - 1
"""Seeds of the engine: 32 bits, less the one that means "draw one"."""

Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]


class StreamOptions(RequestModel):
    include_usage: bool | None = Field(None, description="one more event before the end, with `usage` and no choices")
    include_obfuscation: bool | None = Field(None, description="must be false: nothing is obfuscated here")

    @model_validator(mode="after")
    def _no_obfuscation(self) -> Self:
        if self.include_obfuscation:
            raise PydanticCustomError(
                "unsupported_parameter",
                "include_obfuscation is not supported",
                {"name": "include_obfuscation", "hint": "leave it out or send false"},
            )
        return self


class SamplingOptions(RequestModel):
    """OpenAI's sampling parameters, and those that llama.cpp's and vLLM's clients send beside them."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="keep the likeliest tokens up to this probability")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="keep the k likeliest tokens; 0 keeps all")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens below this share of the likeliest")
    repeat_penalty: float | None = Field(None, gt=0, le=10, description="1 is none")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED, description="same seed, same reply")
    kvloom: KvloomOptions | None = Field(None, description="kvloom's own options")
    user: str | None = Field(None, max_length=512, description="your end user; it stands in the server's log only")


class GenerationOptions(SamplingOptions):
    """What completions and chat completions take beside their prompt."""

    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="replies to one prompt")
    stop: str | ListOf[str] | None = Field(None, description="texts that end the reply; they are not part of it")
    stream: bool | None = Field(None, description="send the reply as server-sent events")
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Bias] | None = Field(None, description="token id: −100 … 100, added to the token's logit")

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "value_error",
                "The 'stream_options' parameter is only allowed when 'stream' is true",
                {"param": "stream_options"},
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def seeds(self) -> list[int | None]:
        """The engine's seed of each choice: each draws its own way, and the same request draws the same again."""
        return [engine_seed(self.seed, choice) for choice in range(self.num_choices)]

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def engine_seed(seed: int | None, choice: int) -> int | None:
    """OpenAI's seeds have 64 bits, the engine's 32."""
    return None if seed is None else (seed + choice) % SEEDS


COMMON_REFUSALS: dict[str, Refused] = {
    "service_tier": Refused("there is one tier of service", ("auto", "default")),
    "prompt_cache_key": Refused("a cached prefix is found by its content; leave it out"),
    "prompt_cache_retention": Refused("KV is kept while there is room; leave it out"),
    "safety_identifier": Refused("send `user`, which stands in the server's log"),
}
"""Parameters of OpenAI's that no endpoint here supports."""
