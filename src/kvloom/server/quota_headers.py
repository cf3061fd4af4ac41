"""A key's limits as the headers that OpenAI's clients read. Pure; knows no request."""

from __future__ import annotations

import math

from kvloom.errors import QuotaExceededError
from kvloom.server.quota_windows import Standing

INSUFFICIENT_QUOTA = "insufficient_quota"
RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
MAX_WAIT_S = 60.0


def limit_headers(standing: Standing) -> dict[str, str]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; of the limits on tokens the one with the least room.

    A kind that the tier does not limit has no headers.
    """
    headers: dict[str, str] = {}
    for kind, state in (("requests", standing.requests), ("tokens", standing.tokens)):
        if state is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(state.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(state.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{math.ceil(state.reset_s)}s"
    return headers


def refusal_code(error: QuotaExceededError) -> str:
    """Wait, or do not."""
    return INSUFFICIENT_QUOTA if error.is_spent else RATE_LIMIT_EXCEEDED


def _should_retry(error: QuotaExceededError) -> bool:
    """OpenAI's clients wait as long as they are told up to a minute, and else ask again within seconds."""
    return error.should_retry and (error.retry_after_s or 0.0) <= MAX_WAIT_S


def refusal_headers(error: QuotaExceededError, standing: Standing) -> dict[str, str]:
    """The limits, `Retry-After` in whole seconds where waiting helps, and whether a program should."""
    headers = limit_headers(standing)
    headers["x-should-retry"] = "true" if _should_retry(error) else "false"
    if error.retry_after_s is not None:
        # Never early: rounded up, and 0 would mean at once.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return headers
