"""The `usage` of OpenAI's replies. Knows no endpoint."""

from __future__ import annotations

from kvloom.server.schema.base import ReplyModel


class PromptDetails(ReplyModel):
    cached_tokens: int


class CompletionDetails(ReplyModel):
    reasoning_tokens: int


class UsageReport(ReplyModel):
    """`cached_tokens`: of the first choice's prompt, those that were not computed for it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
