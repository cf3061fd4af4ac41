"""Shapes of kvloom's own API for sessions: turns, what stands in the window, states. Knows no endpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kvloom.server.schema.base import MaxTokens, RequestModel
from kvloom.server.schema.extension import FidelityName, OverflowPolicy
from kvloom.server.schema.kvloom import MAX_REFS, Label, ModelId, Ref, View
from kvloom.server.schema.kvloom_libraries import SourceView
from kvloom.server.schema.sampling import MAX_SEED, MIN_SEED
from kvloom.server.schema.usage import UsageReport
from kvloom.types import Fidelity, TierName

SESSION_ID = "9f86d081884c7d65"
MAX_WINDOW = 2**24
"""Far over any model's; the model and memory set the real limit."""

Strategy = Literal["hybrid", "summarize", "truncate"]
TurnNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


# --- sessions --------------------------------------------------------------------------------------------------------


class SessionCreate(RequestModel):
    """All of it may be left out: `{}`."""

    model_config = _example(name="review", system="You review code.", fidelity="exact")

    model: str | None = Field(None, max_length=512, description="default: the first model that is served")
    name: Label | None = None
    system: str | None = None
    fidelity: FidelityName | None = None
    policy: OverflowPolicy | None = None
    chunks: list[Ref] | None = Field(None, max_length=MAX_REFS, description="switched on at once")


class SessionChange(RequestModel):
    """What is given is changed, in this order; each but the name is a state of its own, which undo takes back."""

    model_config = _example(name="review of Tuesday", policy="fifo")

    name: Label | None = None
    system: str | None = None
    fidelity: FidelityName | None = None
    policy: OverflowPolicy | None = None


class SessionFork(RequestModel):
    model_config = _example(name="another way")

    snapshot: str | None = Field(None, max_length=64, description="go on from a snapshot; default: from here")
    name: Label | None = None


class SessionView(View):
    """A stored session. Times are seconds since the epoch."""

    id: str = Field(examples=[SESSION_ID])
    name: str
    model: ModelId
    created: float
    updated: float
    num_turns: int
    num_chunks: int
    num_tokens: int
    is_open: bool


class SessionPage(View):
    object: Literal["list"] = "list"
    data: list[SessionView]
    has_more: bool = Field(description="ask again with `after` set to the last one's id")


# --- turns -----------------------------------------------------------------------------------------------------------


class RetryRequest(RequestModel):
    """How a reply is drawn; null takes the server's settings, then the model's."""

    model_config = _example(temperature=0.8)

    stream: bool | None = Field(None, description="send the reply as server-sent events")
    max_tokens: MaxTokens | None = Field(None, description="default: what the window leaves, capped by the settings")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED)
    stop: str | list[str] | None = Field(None, description="texts that end the reply; they are not part of it")
    keep_partial: bool | None = Field(
        None, description="a cancelled reply stays as far as it came; default: the session is as before the turn"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TurnRequest(RetryRequest):
    model_config = _example(text="When is the meeting?", max_tokens=64, temperature=0)

    text: str = Field(min_length=1)


class TurnCost(View):
    """Tokens of the prompt by where their KV came from: reused + loaded + computed = the whole of it."""

    fidelity: Fidelity
    reused_tokens: int
    loaded_tokens: int
    computed_tokens: int
    rotated_tokens: int
    recomputed_tokens: int
    ttft_s: float
    total_s: float
    is_estimate: bool


class TurnReply(View):
    """A reply, which is part of the session now. `left`, `came_back`: ids of what the policy moved for it.

    `sources`: the passages of the attached libraries that it could read, the most relevant first.
    """

    session: str
    id: str
    number: int
    text: str
    reasoning: str
    finish_reason: Literal["stop", "length", "cancelled"]
    usage: UsageReport
    kvloom: TurnCost
    notices: list[str]
    left: list[str]
    came_back: list[str]
    sources: list[SourceView]


class DeltaEvent(View):
    """More of a streamed reply."""

    type: Literal["delta", "reasoning"]
    text: str


class DoneEvent(View):
    """The last event before `[DONE]`."""

    type: Literal["done"] = "done"
    turn: TurnReply


class Cancelled(View):
    """`cancelled` false: nothing ran."""

    cancelled: bool


# --- what it holds ---------------------------------------------------------------------------------------------------


class ChunkRefs(RequestModel):
    model_config = _example(chunks=["notes.txt"])

    chunks: list[Ref] = Field(min_length=1, max_length=MAX_REFS)


class ChunkMove(RequestModel):
    model_config = _example(chunk="notes.txt", index=0)

    chunk: Ref
    index: int = Field(ge=0, le=MAX_WINDOW, description="its place in the block, 0 the first")


class PinRef(RequestModel):
    model_config = _example(ref="notes.txt")

    ref: Ref = Field(description="a chunk, or a turn by its number or id")


class ChunkRef(RequestModel):
    model_config = _example(chunk="notes.txt")

    chunk: Ref


class ClearRequest(RequestModel):
    """`{}` takes everything but the system prompt out of the context; the ledger keeps it."""

    model_config = _example(turns=[1])

    turns: list[TurnNumber] | None = Field(None, min_length=1, max_length=4096)


class CompressRequest(RequestModel):
    model_config = _example(strategy="hybrid", dry_run=True)

    strategy: Strategy | None = None
    dry_run: bool | None = Field(None, description="only say what it would do")


class ResizeRequest(RequestModel):
    model_config = _example(window=4096)

    window: int | None = Field(ge=16, le=MAX_WINDOW, description="null: what the server gives")


class RecallRequest(RequestModel):
    model_config = _example(refs=["notes.txt"])

    refs: list[Ref] = Field(min_length=1, max_length=MAX_REFS, description="ids, their beginnings, or names of lines")


class SegmentView(View):
    """A run of the context. `restore_s`: what bringing it to the device would take (null: not measured yet)."""

    kind: str
    name: str
    ref: str
    num_tokens: int
    start: int
    stop: int
    is_active: bool
    is_pinned: bool
    tier: TierName
    kv_bytes: int
    restore_s: float | None
    traces: list[str]
    is_estimate: bool


class UsageView(View):
    """What the window holds: used + free = capacity."""

    used: int
    capacity: int
    free: int
    reserve: int
    num_hole_tokens: int
    fidelity: Fidelity
    policy: str
    segments: list[SegmentView]
    is_estimate: bool


class TurnView(View):
    """`traces`: chunks that are off now and that it was computed behind. A summary `replaces` other turns."""

    id: str
    number: int
    user: str
    answer: str
    reasoning: str
    finish_reason: str
    num_tokens: int
    traces: list[str]
    is_pinned: bool
    replaces: list[str]


class HistoryView(View):
    object: Literal["list"] = "list"
    data: list[TurnView]


class MessageView(View):
    role: str
    content: str
    turn: int


class MessageList(View):
    object: Literal["list"] = "list"
    data: list[MessageView]


class PromptView(View):
    """What the model sees, special tokens spelled out, and its ids."""

    num_tokens: int
    prompt: str
    tokens: list[int]


class ResizedView(View):
    window: int


class RecomputedView(View):
    """Turns that carry the trace of a chunk that is off; they are computed again for the next reply."""

    num_turns: int


class UndoneView(View):
    """`undone`: the operation that was taken back."""

    undone: str
    usage: UsageView


class CompressionView(View):
    """What a compression does (`is_dry_run`) or did. `seconds` null: nothing was measured yet."""

    is_dry_run: bool
    strategy: str
    num_turns: int
    num_tokens_before: int
    num_tokens_after: int
    summary: str
    is_fallback: bool
    seconds: float | None


# --- states ----------------------------------------------------------------------------------------------------------


class SnapshotCreate(RequestModel):
    model_config = _example(title="before the change")

    title: Label | None = None


class SnapshotView(View):
    id: str = Field(examples=["5e884898da28"])
    title: str
    reason: str
    is_auto: bool
    created: float
    summary: str
    num_tokens: int
    num_turns: int
    num_chunks: int
    window: int
    model: ModelId
    compression_ratio: float
    kv_bytes: int
    restore_s: float | None


class SnapshotList(View):
    object: Literal["list"] = "list"
    data: list[SnapshotView]


class LedgerLineView(View):
    """Something that was given and is not in the prompt. `reason`: the operation that took it out."""

    kind: str
    ref: str
    name: str
    text: str
    num_tokens: int
    reason: str
    is_undone: bool
    is_summary: bool
    tier: TierName
    restore_s: float | None


class LedgerView(View):
    object: Literal["list"] = "list"
    data: list[LedgerLineView]
