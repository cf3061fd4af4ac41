"""Completions as OpenAI's counts and kvloom's own report, the same for every endpoint. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence

from kvloom.server.schema.chat import ChatLogprob, ChatLogprobs, TopLogprob
from kvloom.server.schema.extension import DroppedMessage, KvloomReport
from kvloom.server.schema.usage import CompletionDetails, PromptDetails, UsageReport
from kvloom.session.requests import Completion, Dropped, TokenLogprob

DROPPED_HEADER = "x-kvloom-dropped"
"""What an overflow policy left out: `index:role:tokens`, with commas between."""

MAX_HEADER_DROPS = 100
"""Messages named in the header; the body names them all, the header ends in `+N`."""

LOWEST_LOGPROB = -9999.0
"""Stands for a log-probability that JSON cannot say, as at OpenAI."""


def usage_of(completions: Sequence[Completion], choices_each: int, num_reasoning_tokens: int) -> UsageReport:
    """Prompts count once, whatever the number of their choices; cached: of each prompt's first choice."""
    firsts = [completion.usage for completion in completions[::choices_each]]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    written = sum(completion.usage.completion_tokens for completion in completions)
    cached = sum(usage.reused_tokens + usage.loaded_tokens for usage in firsts)
    return UsageReport(
        prompt_tokens=prompt,
        completion_tokens=written,
        total_tokens=prompt + written,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
        completion_tokens_details=CompletionDetails(reasoning_tokens=num_reasoning_tokens),
    )


def kvloom_report(completions: Sequence[Completion]) -> KvloomReport:
    usages = [completion.usage for completion in completions]
    first = completions[0]
    return KvloomReport(
        fidelity=first.usage.fidelity.value,
        is_approximate=any(completion.is_approximate for completion in completions),
        reused=sum(usage.reused_tokens for usage in usages),
        loaded=sum(usage.loaded_tokens for usage in usages),
        rotated=sum(usage.rotated_tokens for usage in usages),
        computed=sum(usage.computed_tokens for usage in usages),
        recomputed=sum(usage.recomputed_tokens for usage in usages),
        dropped=[
            DroppedMessage(index=item.index, role=item.role, num_tokens=item.num_tokens) for item in first.dropped
        ],
        chunks=list(dict.fromkeys(chunk for completion in completions for chunk in completion.reused_chunks)),
        notices=list(dict.fromkeys(notice for completion in completions for notice in completion.notices)),
        ttft_s=first.usage.ttft_s,
    )


def dropped_header(dropped: Sequence[Dropped]) -> dict[str, str]:
    """Empty where nothing was left out."""
    if not dropped:
        return {}
    named = [f"{item.index}:{item.role}:{item.num_tokens}" for item in dropped[:MAX_HEADER_DROPS]]
    left = len(dropped) - len(named)
    return {DROPPED_HEADER: ",".join(named) + (f",+{left}" if left else "")}


def token_text(logprob: TokenLogprob) -> str:
    """A token as text; one that holds part of a character shows U+FFFD, its bytes stand beside it."""
    return logprob.data.decode("utf-8", "replace")


def number(logprob: float) -> float:
    return max(LOWEST_LOGPROB, logprob)  # NaN and −inf compare false


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(content=[_chat_logprob(item) for item in logprobs], refusal=None)


def _chat_logprob(item: TokenLogprob) -> ChatLogprob:
    return ChatLogprob(
        token=token_text(item),
        logprob=number(item.logprob),
        bytes=list(item.data),
        top_logprobs=[
            TopLogprob(token=token_text(top), logprob=number(top.logprob), bytes=list(top.data)) for top in item.top
        ],
    )
