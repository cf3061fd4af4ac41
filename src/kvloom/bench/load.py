"""Load on a server that speaks OpenAI's completions: clients at once, streamed replies, and when each token came.

Knows HTTP and times, no engine: our server and llama.cpp's are asked by the same code.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from kvloom.errors import EngineError

TIMEOUT_S = 1800.0
"""A full queue on a small machine."""


@dataclass(frozen=True)
class Call:
    """One request: its path and body."""

    path: str
    body: Mapping[str, Any]


@dataclass
class Answer:
    """One streamed reply. `gaps_s`: between its tokens. Times are the client's own."""

    ttft_s: float = 0.0
    total_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class Load:
    """What all clients saw together."""

    seconds: float
    answers: tuple[Answer, ...]

    @property
    def tokens_per_s(self) -> float:
        """Prompt and reply tokens, by the servers' own counts."""
        return sum(a.prompt_tokens + a.completion_tokens for a in self.answers) / self.seconds

    @property
    def reply_tokens_per_s(self) -> float:
        return sum(a.completion_tokens for a in self.answers) / self.seconds

    @property
    def requests_per_min(self) -> float:
        return 60 * len(self.answers) / self.seconds

    @property
    def median_ttft_s(self) -> float:
        return statistics.median(a.ttft_s for a in self.answers)

    @property
    def gap_p95_s(self) -> float:
        """The 95th percentile of the gaps between tokens."""
        gaps = sorted(gap for answer in self.answers for gap in answer.gaps_s)
        return gaps[min(len(gaps) - 1, int(0.95 * len(gaps)))] if gaps else 0.0


async def ask(client: httpx.AsyncClient, call: Call) -> Answer:
    """Send one request and read its stream to the end."""
    answer, began, last = Answer(), time.perf_counter(), 0.0
    async with client.stream("POST", call.path, json=dict(call.body)) as response:
        if response.status_code != httpx.codes.OK:
            body = (await response.aread()).decode("utf-8", "replace")
            raise EngineError(f"{call.path} was answered {response.status_code}: {body[:500]}")
        async for event in _events(response):
            now = time.perf_counter()
            usage = event.get("usage")
            if usage:
                answer.prompt_tokens = usage["prompt_tokens"]
                answer.completion_tokens = usage["completion_tokens"]
                answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            text = "".join(_text(choice) for choice in event.get("choices", ()))
            if not text:
                continue
            if last:
                answer.gaps_s.append(now - last)
            else:
                answer.ttft_s = now - began
            last, answer.text = now, answer.text + text
    answer.total_s = time.perf_counter() - began
    return answer


async def drive(base_url: str, clients: Sequence[Sequence[Call]], on_answer: Callable[[Answer], None]) -> Load:
    """Every client sends its calls one after another, all clients at once."""
    async with _client(base_url) as client:
        began = time.perf_counter()

        async def one(calls: Sequence[Call]) -> list[Answer]:
            answers = []
            for call in calls:
                answers.append(await ask(client, call))
                on_answer(answers[-1])
            return answers

        found = await asyncio.gather(*(one(calls) for calls in clients))
        return Load(time.perf_counter() - began, tuple(answer for answers in found for answer in answers))


def run(work: Callable[[], Awaitable[Load]]) -> Load:
    """From a thread without a loop."""

    async def main() -> Load:
        return await work()

    return asyncio.run(main())


@asynccontextmanager
async def _client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    # No connection is used twice: a server may close an idle one just when the next request is on its way.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
        yield client


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line[len("data: ") :])
        if "error" in event:
            raise EngineError(f"the stream ended in an error: {event['error']}")
        yield event


def _text(choice: Mapping[str, Any]) -> str:
    delta = choice.get("delta")
    return str((delta.get("content") if delta is not None else choice.get("text")) or "")
