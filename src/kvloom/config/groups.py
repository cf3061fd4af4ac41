"""The groups of settings: one frozen model each, checked within itself. Knows no source and no file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from kvloom.config.token_count import token_setting
from kvloom.types import SamplingParams


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RopeSettings(_Group):
    """Overrides of the model's own RoPE settings; part of the fingerprint. None: as the model file says."""

    freq_base: float | None = Field(None, gt=0, description="RoPE base frequency")
    freq_scale: float | None = Field(None, gt=0, description="RoPE frequency scale: 0.5 stretches the window twofold")
    scaling: Literal["none", "linear", "yarn"] | None = Field(None, description="RoPE scaling method")
    yarn_orig_context: int | None = Field(None, gt=0, description="YaRN: tokens the model was trained for")
    yarn_ext_factor: float | None = Field(None, ge=0, description="YaRN: mix of extrapolation")
    yarn_attn_factor: float | None = Field(None, gt=0, description="YaRN: magnitude of attention")
    yarn_beta_fast: float | None = Field(None, gt=0, description="YaRN: low correction dimension")
    yarn_beta_slow: float | None = Field(None, gt=0, description="YaRN: high correction dimension")

    @field_validator("yarn_orig_context", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        return token_setting(value)


class SamplingSettings(_Group):
    """Defaults of every reply. None: the model file's own, where it has one."""

    temperature: float | None = Field(None, ge=0, description="0 always takes the likeliest token")
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float | None = Field(None, ge=0, le=1, description="keep the likeliest tokens up to this probability")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens below this share of the likeliest")
    repeat_penalty: float | None = Field(None, gt=0, description="1 is none")
    seed: int | None = Field(None, ge=0, lt=2**32, description="same seed, same reply")
    max_tokens: int = Field(512, gt=0, description="longest reply")

    @field_validator("max_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        return token_setting(value)

    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=self.seed,
        )


PolicyName = Literal["stop", "clear", "fifo", "sliding_window", "keep_first", "adaptive"]


class OverflowSettings(_Group):
    """What happens when the window is full."""

    policy: PolicyName | None = Field(
        None, description="what leaves a full window; default: adaptive in a chat, else stop"
    )
    window_tokens: int = Field(4096, gt=0, description="sliding_window: tokens of turns that stay")
    sink_tokens: int = Field(256, ge=0, description="keep_first: tokens of the first turns that stay")
    history_tokens: int | None = Field(None, gt=0, description="most tokens of turns in a prompt; default: no limit")

    @field_validator("window_tokens", "sink_tokens", "history_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        return token_setting(value)


class CompressionSettings(_Group):
    """Compression of a conversation's old turns. (How KV is packed on disk is `disk_compression`.)"""

    enabled: bool = Field(True, description="compress by itself; by command it always works")
    threshold: float = Field(0.8, gt=0, le=1, description="share of (window − reserve) from which it starts")
    strategy: Literal["summarize", "truncate", "hybrid"] = Field(
        "hybrid", description="hybrid: old turns are summarized, recent ones stay word for word"
    )
    preserve_recent: int | None = Field(
        None,
        ge=0,
        description="tokens of recent turns kept word for word, at most half of the window; default: a quarter",
    )
    summary_max_tokens: int = Field(1024, ge=16, description="longest summary; never more than an eighth of the window")
    min_gain: float = Field(0.1, ge=0, lt=1, description="share of what is replaced that a compression must save")
    background: bool = Field(True, description="compress between turns, at low priority")

    @field_validator("preserve_recent", "summary_max_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        return token_setting(value)


class RecallSettings(_Group):
    """What a question gets of the attached libraries."""

    share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="most of the window that a question's passages may take; the best one takes more where it has to",
    )
    depth: int = Field(2, ge=1, le=256, description="most passages to a question")
    compression: Literal["off", "lossless", "q8_0", "low4"] | None = Field(
        None, description="how passages are packed on disk; low4 takes 0.3 of off; default: disk_compression"
    )
    coverage: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of a question's weight that a passage's words must make, of 50 passages and more",
    )
    vectors: str = Field(
        "off",
        min_length=1,
        description="vectors beside the words: `off`, `model` (of the loaded model's token table), or a folder with a "
        "model2vec model (pip install 'kvloom[vectors]')",
    )
    max_file_bytes: ByteSize = Field(
        ByteSize(256 * 1024**2),
        ge=1,
        description="largest text file that is read into a library or as a long text; reading takes some four to eight "
        "times that of memory (PDF and HTML have limits of their own)",
    )


class SnapshotSettings(_Group):
    """Snapshots of a conversation."""

    enabled: bool = Field(True, description="take snapshots at all")
    max_count: int = Field(5, ge=0, description="automatic snapshots kept of a session, beside those still needed")
    auto_create: bool = Field(True, description="take them by itself: at the threshold, before overflow, before a loss")
    auto_threshold: float = Field(0.8, gt=0, le=1, description="share of (window − reserve) at which one is taken")
    max_age_days: float | None = Field(None, gt=0, description="automatic ones older than this go; default: no limit")


class GuardSettings(_Group):
    """Shares of the memory budget at which the guard acts: soft < hard < critical."""

    enabled: bool = Field(True, description="watch memory and act")
    soft: float = Field(0.80, gt=0, lt=1, description="evict cold entries")
    hard: float = Field(0.90, gt=0, lt=1, description="shrink the window, compressed first so that it fits")
    critical: float = Field(0.95, gt=0, le=1, description="refuse new work, take a snapshot, release the device's KV")
    hysteresis: float = Field(0.05, ge=0, lt=1, description="a threshold is left only this far below it")
    poll_s: float = Field(5.0, gt=0, description="seconds between two looks while a reply runs")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.soft < self.hard < self.critical:
            raise contradiction(
                f"soft < hard < critical must hold, got {self.soft} / {self.hard} / {self.critical}",
                "soft", "hard", "critical",
            )  # fmt: skip
        if self.hysteresis >= self.soft:
            raise contradiction(
                f"hysteresis must be below soft, or a threshold is never left; got {self.hysteresis} and {self.soft}",
                "hysteresis", "soft",
            )  # fmt: skip
        return self


class QuotaTier(_Group):
    """What a key of a tier may use. `null` is no limit. Windows slide: the limit holds in every hour and every day."""

    tokens_per_second: int | None = Field(1000, gt=0, description="tokens a second that a key gets in the long run")
    burst_tokens: int = Field(
        60_000, gt=0, description="tokens at once beyond tokens_per_second; a larger request never passes"
    )
    tokens_per_hour: int | None = Field(1_000_000, gt=0, description="tokens in any 3,600 seconds")
    tokens_per_day: int | None = Field(10_000_000, gt=0, description="tokens in any 24 hours")
    requests_per_hour: int | None = Field(10_000, gt=0, description="requests in any 3,600 seconds")
    concurrent_requests: int | None = Field(32, gt=0, description="requests that run or wait at once")


class ServerSettings(_Group):
    """The HTTP server: where it listens, how much runs at once, and what a request may be."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; others than loopback need keys")
    port: int = Field(9632, ge=0, le=65535, description="0 takes a free one")
    slots: int = Field(8, ge=1, le=200, description="replies that run at once")
    queue_size: int = Field(64, ge=0, description="replies that wait for a slot; more are refused with 503")
    queue_timeout_s: float = Field(300.0, gt=0, description="longest wait for a slot, or for cells")
    reuse: Literal["off", "exact", "blend", "splice"] = Field(
        "exact", description="text known as a chunk is recognised in plain requests, and its KV is placed so"
    )
    max_body_bytes: ByteSize = Field(ByteSize(8 * 1024**2), ge=1024, description="largest body of a request")
    max_upload_bytes: ByteSize = Field(ByteSize(4 * 1024**2), ge=1, description="largest text uploaded as a chunk")
    max_header_bytes: ByteSize = Field(ByteSize(32 * 1024), ge=1024, description="largest headers of a request")
    max_json_depth: int = Field(64, ge=4, le=200, description="deepest nesting of a request's JSON")
    max_messages: int = Field(2048, ge=1, description="messages of a conversation, or prompts of a request")
    max_choices: int = Field(16, ge=1, le=128, description="replies of one request: `n` times its prompts")
    max_stops: int = Field(16, ge=1, description="stop texts of a request")
    max_stop_chars: int = Field(1024, ge=1, description="characters of a stop text")
    max_logit_bias: int = Field(1024, ge=0, description="entries of `logit_bias`")
    max_tools: int = Field(64, ge=0, description="functions of a request")
    session_idle_s: float = Field(
        300.0, gt=0, description="a session that nobody asks for so long is closed; all is kept"
    )
    stalled_client_s: float = Field(60.0, gt=0, description="a client that reads nothing for so long is given up")
    models: Path | None = Field(None, description="registry file of the models to serve; default: the one model")
    models_memory_bytes: ByteSize | None = Field(
        None, description="most memory of all loaded models, as forecast; default: up to the guard's soft limit"
    )
    idle_unload_s: float = Field(
        900.0, ge=0, description="a model of several that nobody asks for so long is unloaded; 0: never"
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="replies that run at the end may go on for so long")
    log_format: Literal["text", "json"] = Field("text", description="one line per request, without its content")


def contradiction(message: str, *names: str) -> PydanticCustomError:
    """An error of several settings together; `names` are where it may have been made, the likeliest first."""
    return PydanticCustomError("contradiction", "{message}", {"message": message, "names": names})
