"""The groups of settings: one frozen model each, checked within itself. Knows no source and no file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

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


class SamplingSettings(_Group):
    """Defaults of every reply. None: the model file's own, where it has one."""

    temperature: float | None = Field(None, ge=0, description="0 always takes the likeliest token")
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float | None = Field(None, ge=0, le=1, description="keep the likeliest tokens up to this probability")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens below this share of the likeliest")
    repeat_penalty: float | None = Field(None, gt=0, description="1 is none")
    seed: int | None = Field(None, ge=0, lt=2**32, description="same seed, same reply")
    max_tokens: int = Field(512, gt=0, description="longest reply")

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


class CompressionSettings(_Group):
    """Compression of a conversation's old turns. (How KV is packed on disk is `disk_compression`.)"""

    enabled: bool = Field(True, description="compress by itself; by command it always works")
    threshold: float = Field(0.8, gt=0, le=1, description="share of (window − reserve) from which it starts")
    strategy: Literal["summarize", "truncate", "hybrid"] = Field(
        "hybrid", description="hybrid: old turns are summarized, recent ones stay word for word"
    )
    preserve_recent: int | None = Field(
        None, ge=0, description="tokens of recent turns kept word for word; default: a quarter of the window"
    )
    summary_max_tokens: int = Field(1024, ge=16, description="longest summary; never more than an eighth of the window")
    min_gain: float = Field(0.1, ge=0, lt=1, description="share of what is replaced that a compression must save")
    background: bool = Field(True, description="compress between turns, at low priority")


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


def contradiction(message: str, *names: str) -> PydanticCustomError:
    """An error of several settings together; `names` are where it may have been made, the likeliest first."""
    return PydanticCustomError("contradiction", "{message}", {"message": message, "names": names})
