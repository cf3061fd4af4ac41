"""A backend that says what a test tells it to, word by word, with the faults and pauses of the test's choice.

It is honest about threads: its streams block, are closed from other threads, and count what runs.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from kvloom.config import ServerSettings
from kvloom.errors import ContextOverflowError, EngineUnsupportedError, ModelNotFoundError
from kvloom.server.app import create_app
from kvloom.server.auth import KeyCheck, Quota
from kvloom.server.backend import ModelInfo, ToolUse
from kvloom.session.reply_forms import ToolPlan, json_grammar, tool_plan
from kvloom.session.requests import (
    ChatPrompt,
    Completion,
    Dropped,
    RawPrompt,
    Request,
    TextDelta,
    TextPart,
    TokenLogprob,
)
from kvloom.types import F32Array, Usage

MODEL = "scripted"
HERMES = "{% for tool in tools %}{{ tool }}{% endfor %}<tool_call>"
"""As much of a template as its form is read from."""

VALUES = np.array([0.5, -0.25, 1.0], np.float32)


@dataclass(frozen=True)
class ScriptedPrepared:
    request: Request
    num_prompt_tokens: int
    max_tokens: int
    dropped: tuple[Dropped, ...] = ()


@dataclass
class Script:
    """What every reply says and does. `pace`: each delta takes one permit; None: none is needed."""

    words: Sequence[str] = ("Hello", " there", ".")
    reasoning: Sequence[str] = ()
    fails_at: int | None = None
    error: Exception = field(default_factory=lambda: RuntimeError("a secret of the engine: /home/someone"))
    pace: threading.Semaphore | None = None
    dropped: tuple[Dropped, ...] = ()
    chunks: tuple[str, ...] = ()
    fails_before: Exception | None = None


class ScriptedStream:
    def __init__(self, lease: ScriptedLease, prepared: ScriptedPrepared) -> None:
        self._lease = lease
        self._prepared = prepared
        self._closed = threading.Event()
        self._result: Completion | None = None

    @property
    def result(self) -> Completion:
        assert self._result is not None, "asked before the end"
        return self._result

    def close(self) -> None:
        self._closed.set()
        if self._lease.script.pace is not None:
            self._lease.script.pace.release()

    def __iter__(self) -> Iterator[TextDelta]:
        script, backend, request = self._lease.script, self._lease.backend, self._prepared.request
        backend.enter()
        said: list[str] = []
        thought: list[str] = []
        told: list[TokenLogprob] = []
        try:
            if script.fails_before is not None:
                raise script.fails_before
            for number, word in enumerate([*script.reasoning, *script.words][: self._prepared.max_tokens]):
                if script.pace is not None:
                    script.pace.acquire()
                if self._closed.is_set():
                    break
                if number == script.fails_at:
                    raise script.error
                is_reasoning = number < len(script.reasoning)
                (thought if is_reasoning else said).append(word)
                logprobs = _logprobs(word, request.top_logprobs)
                told += logprobs
                yield TextDelta(word, is_reasoning, logprobs)
            self._result = self._completion("".join(said), "".join(thought), len(said) + len(thought), tuple(told))
        finally:
            backend.leave()

    def _completion(self, text: str, reasoning: str, num_tokens: int, told: tuple[TokenLogprob, ...]) -> Completion:
        script = self._lease.script
        whole = num_tokens == len(script.words) + len(script.reasoning)
        reason = "stop" if whole else "length"
        if self._closed.is_set():
            reason = "cancelled"
        prompt = self._prepared.num_prompt_tokens
        usage = Usage(prompt, 1, 0, prompt - 1, 0, 0, 0, num_tokens, self._prepared.request.fidelity, 0.01)
        return Completion(text, reasoning, reason, usage, told, self._prepared.dropped, script.chunks)


def _logprobs(word: str, num_top: int | None) -> tuple[TokenLogprob, ...]:
    if num_top is None:
        return ()
    tops = tuple(TokenLogprob(i, f"other{i}".encode(), -1.0 - i) for i in range(num_top))
    return (TokenLogprob(7, word.encode(), -0.5, tops),)


class ScriptedLease:
    def __init__(self, backend: ScriptedBackend, info: ModelInfo) -> None:
        self.backend = backend
        self.info = info
        self.script = backend.script
        self.is_released = False

    def prepare(self, request: Request) -> ScriptedPrepared:
        self.backend.requests.append(request)
        count = len(_words(request.prompt))
        wanted = request.max_tokens or 1
        if count + wanted > self.info.window and request.overflow == "stop":
            raise ContextOverflowError(
                f"maximum context length is {self.info.window} tokens: {count} in the prompt",
                num_needed_tokens=count + wanted,
                num_window_tokens=self.info.window,
            )
        max_tokens = request.max_tokens or min(64, max(1, self.info.window - count))
        return ScriptedPrepared(request, min(count, self.info.window), max_tokens, self.script.dropped)

    def complete(self, prepared: object, seed: int | None) -> ScriptedStream:
        assert isinstance(prepared, ScriptedPrepared)
        self.backend.seeds.append(seed)
        return ScriptedStream(self, prepared)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return [1] * add_special + [ord(char) for char in text]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) if token < 0xD800 else "\ufffd" for token in tokens)

    def embedding_tokens(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        return [[ord(char) for char in text] if isinstance(text, str) else list(text) for text in texts]

    def embed(self, tokens: Sequence[Sequence[int]], is_cancelled: Callable[[], bool]) -> list[F32Array]:
        if not self.info.has_embeddings:
            raise EngineUnsupportedError("no embeddings")
        return [VALUES for _ in tokens]

    def grammar_for(self, schema: Mapping[str, Any]) -> str:
        return json_grammar(schema)

    def tool_plan(self, use: ToolUse) -> ToolPlan:
        source = HERMES if self.info.tool_form else ""
        return tool_plan(source, use.tools, must_call=use.must_call, only=use.only, parallel=use.parallel)

    def release(self) -> None:
        if not self.is_released:
            self.is_released = True
            self.backend.num_leases -= 1


def _words(prompt: ChatPrompt | RawPrompt) -> list[str]:
    if isinstance(prompt, RawPrompt):
        return [str(token) for token in prompt.tokens] or prompt.text.split() or ["<bos>"]
    texts = [part.text for message in prompt.messages for part in message.parts if isinstance(part, TextPart)]
    return ["<head>", *" ".join(texts).split()]


class ScriptedBackend:
    """One model, one script. What it was asked stands in `requests`."""

    def __init__(self, script: Script | None = None, **info: Any) -> None:
        self.script = script or Script()
        self.info = replace(ModelInfo(MODEL, 256, ("alias",), tool_form="hermes"), **info)
        self.requests: list[Request] = []
        self.seeds: list[int | None] = []
        self.num_leases = 0
        self.num_running = 0
        self.most_running = 0
        self.is_closed = False
        self.idle = threading.Event()
        self.started = threading.Semaphore(0)
        self.loading: Any = None
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
            self.idle.clear()
        self.started.release()

    def leave(self) -> None:
        with self._lock:
            self.num_running -= 1
            if not self.num_running:
                self.idle.set()

    def models(self) -> list[ModelInfo]:
        return [self.info]

    async def start(self) -> None:
        if self.loading is not None:
            await self.loading()

    async def acquire(self, model: str, tenant: str) -> ScriptedLease:
        if model not in (self.info.id, *self.info.aliases):
            raise ModelNotFoundError(f"there is no model {model[:40]!r}; known: {self.info.id}")
        self.num_leases += 1
        return ScriptedLease(self, self.info)

    async def close(self) -> None:
        self.is_closed = True


def app_over(
    backend: ScriptedBackend, keys: KeyCheck | None = None, quota: Quota | None = None, **settings: Any
) -> FastAPI:
    return create_app(backend, ServerSettings(**settings), keys=keys, quota=quota)


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application itself, once it serves. Errors that leave the application fail the test."""
    async with app.router.lifespan_context(app):
        await app.state.service.lifecycle.loaded()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **options) as client:
            yield client


@asynccontextmanager
async def scripted(backend: ScriptedBackend | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_over(backend or ScriptedBackend(), **settings)) as client:
        yield client


def chat(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
