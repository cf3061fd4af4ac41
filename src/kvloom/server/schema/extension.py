"""kvloom's own part of requests and replies, under the one key `kvloom`. Knows no endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvloom.server.schema.base import ReplyModel, RequestModel

OverflowPolicy = Literal["stop", "clear", "fifo", "sliding_window", "keep_first", "adaptive"]
FidelityName = Literal["exact", "blend", "splice"]


class KvloomOptions(RequestModel):
    """What a request may say beyond OpenAI's parameters."""

    overflow: OverflowPolicy | None = Field(
        None,
        description="policy that may leave messages out where the prompt does not fit; default: none, it is refused",
    )
    fidelity: FidelityName | None = Field(
        None, description="which stored KV may be placed; default: the server's `reuse` setting"
    )


class DroppedMessage(ReplyModel):
    """A message that the policy left out: its place in the request, from 0."""

    index: int
    role: str
    num_tokens: int


class KvloomReport(ReplyModel):
    """What the reply cost, in tokens over all choices, and what was left out.

    reused: on the device already; loaded: placed from a tier, `rotated` of them at another position; computed:
    prefilled for this reply; recomputed: in place (blend).
    """

    fidelity: FidelityName
    is_approximate: bool
    reused: int
    loaded: int
    rotated: int
    computed: int
    recomputed: int
    dropped: list[DroppedMessage]
    chunks: list[str] = Field(description="ids of the chunks whose KV was placed")
    notices: list[str]
    ttft_s: float = Field(description="seconds to the first token, of the first choice")
