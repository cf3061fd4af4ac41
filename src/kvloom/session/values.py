"""What the façade hands out: plain, frozen values that the edges print as they are. Knows no engine and no store.

Token counts are by the model's own tokenizer, sizes in bytes, times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvloom.types import ChunkId, EntryId, Fidelity, SessionId, TierName, Usage


@dataclass(frozen=True)
class Chunk:
    """A known chunk under one name. `id` is the SHA-256 of its bytes; `num_parts` > 1 where it was split.

    `is_estimate`: nobody has counted its tokens.
    """

    id: ChunkId
    name: str
    num_tokens: int
    num_parts: int
    size_bytes: int
    source: str = ""
    is_new: bool = True
    is_estimate: bool = False


@dataclass(frozen=True)
class ChunkStatus:
    """A chunk and where its KV is. `tier` is the coldest tier that any part of it has to come from.

    `is_estimate`: nobody has counted its tokens.
    """

    id: ChunkId
    name: str
    num_tokens: int
    size_bytes: int
    tier: TierName
    kv_bytes: int
    source: str = ""
    is_stale: bool = False
    is_erased: bool = False
    is_estimate: bool = False


@dataclass(frozen=True)
class ChunkPlace:
    """A chunk in one session's context. Positions are [start, stop)."""

    session: SessionId
    session_name: str
    is_active: bool
    is_pinned: bool
    start: int
    stop: int


@dataclass(frozen=True)
class ChunkPart:
    """One part's KV entry: where its rows are and how many native cells hold it."""

    part: int
    entry: EntryId
    num_tokens: int
    tier: TierName
    kv_bytes: int
    num_cells: int
    token_ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class ChunkDetail:
    """Everything about one chunk. `num_references`: sessions whose current context names it."""

    status: ChunkStatus
    parts: tuple[ChunkPart, ...]
    places: tuple[ChunkPlace, ...]
    num_references: int
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Reloaded:
    """A name that moved from one chunk to another because its file changed."""

    name: str
    old: ChunkId
    new: ChunkId
    num_parts_changed: int
    num_parts: int


@dataclass(frozen=True)
class Delta:
    """A streamed piece of a reply. `is_reasoning`: it belongs to the model's reasoning, not to the answer."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True)
class Source:
    """A passage of a library that stood in the window for a reply. Lines count from 1, `last_line` is the last one.

    `score` compares it with others of the same question, `coverage` is the share of the question's weight that its
    `words` make, 0 … 1. `document` is the name that the library knows it by. `tier`: where its KV was when the question
    came; `restore_s` what bringing it to the device was expected to take, None where nothing was measured yet.
    `similarity`: the cosine of its vector and the question's, None where there are none.
    """

    library: str
    document: str
    first_line: int
    last_line: int
    heading: str
    chunk: ChunkId
    name: str
    score: float
    coverage: float
    words: tuple[str, ...]
    num_tokens: int
    tier: TierName
    restore_s: float | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Reply:
    """A whole reply. `finish_reason`: "stop", "length" or "cancelled" (only where the partial reply was kept).

    `left` and `came_back`: ids of the turns and chunks that the policy took out of the window for it, or brought back.
    `sources`: the passages of the attached libraries that it could read, the most relevant first.
    """

    text: str
    finish_reason: str
    usage: Usage
    reasoning: str = ""
    notices: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    came_back: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class TurnPlan:
    """What a question would take, before any work: the prompt it would be computed behind and with, and its reply."""

    num_prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Turn:
    """One question and its reply, as the caller saw them. `number` counts the turns of the context from 1.

    A summary stands for the turns of the ids that it `replaces`.
    """

    id: str
    number: int
    user: str
    answer: str
    reasoning: str
    finish_reason: str
    num_tokens: int
    traces: tuple[ChunkId, ...] = ()
    is_pinned: bool = False
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class LedgerLine:
    """Something that a caller gave and that is not in the prompt. `ref`: a turn's or a chunk's id.

    `reason` is the operation that took it out; `is_undone` says that undo did. `tier`: where its KV is now. `text` is
    the beginning of it. `Session.recall(ref)` brings it back.
    """

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


@dataclass(frozen=True)
class Snapshot:
    """A stored state of a session. `created` is seconds since the epoch; `is_auto`: made by kvloom, `reason` says why.

    `compression_ratio`: tokens in the context by tokens that were ever given. `restore_s` estimates the restore.
    """

    id: str
    title: str
    reason: str
    is_auto: bool
    created: float
    summary: str
    num_tokens: int
    num_turns: int
    num_chunks: int
    window: int
    model: str
    compression_ratio: float
    kv_bytes: int
    restore_s: float | None


@dataclass(frozen=True)
class CompressionEstimate:
    """What a compression would do. `seconds` is None where nothing was measured yet."""

    strategy: str
    num_turns: int
    num_tokens_before: int
    num_tokens_after: int
    num_summary_tokens: int
    seconds: float | None


@dataclass(frozen=True)
class CompressionResult:
    """What a compression did. `is_fallback`: parts of the summary are the turns' first sentences, since the model gave
    nothing that was usable."""

    strategy: str
    num_turns: int
    num_tokens_before: int
    num_tokens_after: int
    summary: str
    num_pieces: int
    is_fallback: bool
    computed_tokens: int
    seconds: float


@dataclass(frozen=True)
class GuardNotice:
    """What the memory guard did at a crossing, in words. `share` of the device's memory was used."""

    device: str
    before: str
    after: str
    share: float
    text: str


@dataclass(frozen=True)
class Threshold:
    """The window has passed a share of what it may hold."""

    session: SessionId
    share: float
    used: int
    limit: int


@dataclass(frozen=True)
class Overflow:
    """A question would not fit beside what the window holds; `needed` tokens are wanted of `window`."""

    session: SessionId
    needed: int
    window: int
    policy: str


@dataclass(frozen=True)
class Message:
    """One message of the conversation: role "system", "user" or "assistant"."""

    role: str
    content: str
    turn: int = 0


@dataclass(frozen=True)
class Segment:
    """A run of the context, in the order of the prompt; inactive chunks are listed too, with `is_active` False.

    `kind`: "head", "chunk", "turn". `restore_s` estimates what it would take to bring it to the device from where it
    is, from rates measured on this machine (0 on the device; None where nothing was measured yet, or where `tier` is
    unknown). `traces`: chunks that are off now and that this turn was computed behind. `is_estimate`: nobody has
    counted its tokens.
    """

    kind: str
    name: str
    ref: str
    num_tokens: int
    start: int
    stop: int
    is_active: bool
    is_pinned: bool
    is_stale: bool
    tier: TierName
    kv_bytes: int
    restore_s: float | None
    traces: tuple[ChunkId, ...] = ()
    is_estimate: bool = False


@dataclass(frozen=True)
class ContextUsage:
    """What the window holds. used + free = capacity; `num_hole_tokens` are free positions inside the span.

    `is_estimate`: the model is elsewhere, and nobody counts its tokens before it computes them.
    """

    used: int
    capacity: int
    free: int
    reserve: int
    num_hole_tokens: int
    fidelity: Fidelity
    policy: str
    segments: tuple[Segment, ...]
    is_estimate: bool = False


@dataclass(frozen=True)
class SessionInfo:
    """A stored session. Times are seconds since the epoch."""

    id: SessionId
    name: str
    model: str
    created: float
    updated: float
    num_turns: int
    num_chunks: int
    num_tokens: int
    is_open: bool


@dataclass(frozen=True)
class TierStatus:
    """Bytes and entries of one tier. `budget_bytes` is None for the device, whose limit is its cells."""

    tier: TierName
    num_entries: int
    used_bytes: int
    budget_bytes: int | None


@dataclass(frozen=True)
class LoomStatus:
    """The loaded model, its cells and the tiers. `faults` counts entries that were refused, by reason."""

    model: str
    model_path: str
    fingerprint: str
    engine: str
    kv_type: str
    window: int
    num_cells: int
    used_cells: int
    train_context: int
    fidelity: Fidelity
    can_move_kv: bool
    can_rotate: bool
    why_not: str
    tiers: tuple[TierStatus, ...]
    faults: Mapping[str, int]
    home: str


@dataclass(frozen=True)
class VerifyResult:
    """One stored entry that was read and checked. `fault` is empty where it is whole."""

    entry: EntryId
    size_bytes: int
    fault: str = ""


@dataclass(frozen=True)
class GcReport:
    """What a collection removed."""

    num_entries: int
    freed_bytes: int


@dataclass(frozen=True)
class Warmed:
    """What was done ahead of a question: tokens by origin, and how long it took."""

    reused_tokens: int
    loaded_tokens: int
    computed_tokens: int
    rotated_tokens: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far long work has come. `total` is 0 where it is not known.

    `num_known`: so many of `done` were known from before; they took no time and say nothing of the speed.
    """

    task: str
    done: int
    total: int
    unit: str = "tokens"
    num_known: int = 0


ProgressCallback = Callable[[Progress], None]
