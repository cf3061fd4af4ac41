"""A backend over one loom: the model of this process, each tenant with a loom of its own over it.

Knows the session room's façade. The tenant `local` (everyone, where there are no keys) has the home's own chunks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvloom.errors import ModelNotFoundError, UsageError
from kvloom.server.auth import LOCAL_TENANT
from kvloom.server.backend import CompletionStream, ModelInfo, ToolPlan, ToolUse
from kvloom.server.backend import Prepared as AnyPrepared
from kvloom.session.loom import Loom
from kvloom.session.reply_forms import json_grammar, tool_form, tool_plan
from kvloom.session.request_prompts import Prepared
from kvloom.session.requests import RawPrompt, Request
from kvloom.types import F32Array


class LocalBackend:
    """The loom that `open_loom` opens (it may take seconds), by its model's name and `aliases`."""

    def __init__(self, open_loom: Callable[[], Loom], model: str, aliases: Sequence[str] = ()) -> None:
        self._open_loom = open_loom
        self._model = model
        self._aliases = tuple(aliases)
        self._loom: Loom | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._created_s = int(time.time())

    @property
    def loom(self) -> Loom:
        """Raises ModelNotFoundError before `start` has ended."""
        if self._loom is None:
            raise ModelNotFoundError("no model is loaded yet")
        return self._loom

    def models(self) -> list[ModelInfo]:
        if self._loom is None:
            return [ModelInfo(public_name(self._model), 0, self._aliases, self._created_s, is_loaded=False)]
        return [self._info(self._loom)]

    async def start(self) -> None:
        await asyncio.to_thread(self._open)

    async def acquire(self, model: str, tenant: str) -> LoomLease:
        loom = self.loom
        info = self._info(loom)
        # A path is understood as well, for whoever knows it already; it is shown to nobody.
        if model not in (info.id, *info.aliases, self._model):
            known = ", ".join((info.id, *info.aliases))
            raise ModelNotFoundError(f"there is no model {model[:64]!r} here; known: {known}")
        if tenant != LOCAL_TENANT:
            loom = await asyncio.to_thread(loom.tenant, tenant)
        return LoomLease(loom, info)

    async def close(self) -> None:
        with self._lock:
            self._is_closed = True
            loom, self._loom = self._loom, None
        if loom is not None:
            await asyncio.to_thread(loom.close)

    def _open(self) -> None:
        loom = self._open_loom()
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                self._loom = loom
        if is_closed:
            # The server ended while the model was being loaded, which nothing can cut short.
            loom.close()

    def _info(self, loom: Loom) -> ModelInfo:
        return ModelInfo(
            id=public_name(loom.model_name),
            window=min(loom.window, loom.pool.window),
            aliases=self._aliases,
            created_s=self._created_s,
            has_embeddings=loom.embeddings.is_possible,
            tool_form=tool_form(loom.builder.chat_template.source),
        )


def public_name(model: str) -> str:
    """A model's name as clients see it: of a path its file's name only, without the suffix."""
    return Path(model).stem if model.endswith(".gguf") else model


class LoomLease:
    """A use of a loom. Nothing is unloaded, so there is nothing to give back."""

    def __init__(self, loom: Loom, info: ModelInfo) -> None:
        self._loom = loom
        self.info = replace(info, has_embeddings=loom.embeddings.is_possible)

    @property
    def loom(self) -> Loom:
        """The tenant's own, for what OpenAI's API has no word for."""
        return self._loom

    def prepare(self, request: Request) -> Prepared:
        if isinstance(request.prompt, RawPrompt):
            self._check_tokens(request.prompt.tokens)
        for token, _ in request.sampling.logit_bias:
            self._check_tokens((token,))
        return self._loom.prepare(request)

    def complete(self, prepared: AnyPrepared, seed: int | None) -> CompletionStream:
        assert isinstance(prepared, Prepared)
        request = prepared.request
        drawn = replace(request, sampling=replace(request.sampling, seed=seed))
        return self._loom.complete(replace(prepared, request=drawn))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        tokenizer = self._loom.builder.tokenizer
        bos = tokenizer.vocabulary.bos if add_special else None
        return [*(() if bos is None else (bos,)), *tokenizer.content(text)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        self._check_tokens(tokens)
        return self._loom.builder.tokenizer.text(tokens)

    def embedding_tokens(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        return self._loom.embeddings.tokens(texts)

    def embed(self, tokens: Sequence[Sequence[int]], is_cancelled: Callable[[], bool]) -> list[F32Array]:
        vectors, _ = self._loom.embed(tokens, is_cancelled)
        return vectors

    def grammar_for(self, schema: Mapping[str, Any]) -> str:
        return json_grammar(schema)

    def tool_plan(self, use: ToolUse) -> ToolPlan:
        source = self._loom.builder.chat_template.source
        return tool_plan(source, use.tools, must_call=use.must_call, only=use.only, parallel=use.parallel)

    def release(self) -> None:
        """A loom stays loaded."""

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        size = self._loom.builder.tokenizer.vocabulary.size
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise UsageError(f"there is no token {wrong}: the model's ids are 0 to {size - 1}")
