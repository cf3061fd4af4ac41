"""What an edge asks of a loom without a session, and what comes back: one prompt, one reply. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvloom.types import Fidelity, SamplingParams, Usage


@dataclass(frozen=True)
class TextPart:
    """Text of a message. It is content: no special token comes out of it."""

    text: str


@dataclass(frozen=True)
class ChunkPart:
    """A chunk of this loom in the place of its text: an id, a prefix of one, or a name."""

    ref: str


Part = TextPart | ChunkPart


@dataclass(frozen=True)
class ToolCall:
    """A call that an earlier reply made. `arguments` is JSON, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    """One message as the model's chat template knows them: system, user, assistant, tool, …"""

    role: str
    parts: tuple[Part, ...]
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation. `tools`: function schemas as the template wants them; `values`: what else it is handed
    (`enable_thinking`, …). A last message of the assistant is gone on with where `continues` is set."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False


@dataclass(frozen=True)
class RawPrompt:
    """A text to go on with (content, like every text), or token ids as they are. BOS is put before a text where the
    model wants one."""

    text: str = ""
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """One prompt to complete. `max_tokens` None: what the window leaves, capped by the settings.

    `top_logprobs`: how many alternatives to report beside each token's own log-probability; None reports nothing.
    `overflow`: the policy that may take messages out where the prompt does not fit; "stop" refuses it. `recognises`:
    text of messages that is a known chunk's is placed as that chunk.
    """

    prompt: ChatPrompt | RawPrompt
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    fidelity: Fidelity = Fidelity.EXACT
    overflow: str = "stop"
    recognises: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was chosen (`data`: its bytes), and the most likely ones in its place, best first.

    Log-probabilities are of the model's own distribution, before temperature and cuts.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """A streamed piece of a reply, and the log-probabilities of the tokens that it came from."""

    text: str
    is_reasoning: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A message that a policy left out: its place in the request, from 0."""

    index: int
    role: str
    num_tokens: int


@dataclass(frozen=True)
class Completion:
    """A whole reply. `finish_reason`: "stop", "length" or "cancelled". `reused_chunks`: those of the prompt;
    `is_approximate` where their KV was computed elsewhere (blend, splice)."""

    text: str
    reasoning: str
    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    reused_chunks: tuple[str, ...] = ()
    is_approximate: bool = False
    notices: tuple[str, ...] = ()
