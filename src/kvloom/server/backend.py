"""What the HTTP edge needs of whatever runs the models: contracts and values. Knows no model and no HTTP.

A backend hands out leases; a lease is one tenant's use of one loaded model until it is released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvloom.session.requests import Completion, Dropped, Request, TextDelta
from kvloom.types import F32Array


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be asked for. `window`: tokens of prompt and reply together, 0 where it is not known before it
    is loaded; `tool_form`: the form in which its template writes tool calls, "" where it has none."""

    id: str
    window: int
    aliases: tuple[str, ...] = ()
    created_s: int = 0
    owned_by: str = "kvloom"
    is_loaded: bool = True
    has_embeddings: bool = False
    tool_form: str = ""


@dataclass(frozen=True)
class ToolUse:
    """Which of a request's functions the reply may call, and whether it must.

    `only`: the one function that must be called, "" where the choice is the model's.
    """

    tools: tuple[Mapping[str, Any], ...]
    must_call: bool = False
    only: str = ""
    parallel: bool = True


class ReadCall(Protocol):
    """A call that a reply makes. `arguments` is JSON, as text."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> str: ...


class ReadText(Protocol):
    """What a piece of a reply has made clear: text that is no part of a call, and calls that have become whole."""

    @property
    def text(self) -> str: ...

    @property
    def calls(self) -> Sequence[ReadCall]: ...


class ToolReader(Protocol):
    """Reads tool calls out of one reply as it comes. Not shared between replies."""

    def push(self, text: str) -> ReadText: ...

    def finish(self) -> ReadText:
        """What was held back: the reply has ended."""


class ToolPlan(Protocol):
    """How one request's calls are forced (`grammar`) and read."""

    @property
    def grammar(self) -> str: ...

    def reader(self) -> ToolReader: ...


class Prepared(Protocol):
    """A request that was checked and cut to the window, before any work."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What an overflow policy left out."""


class CompletionStream(Protocol):
    """One running reply. Iterated by one thread; `close` may be called from any thread, at any time, twice."""

    def __iter__(self) -> Iterator[TextDelta]: ...

    @property
    def result(self) -> Completion:
        """The whole reply; there after the iteration has ended, also after `close` ("cancelled")."""

    def close(self) -> None:
        """End the reply within one step of the engine. Returns at once."""


class ModelLease(Protocol):
    """One tenant's use of a loaded model. The methods block and are called from worker threads, several at once."""

    @property
    def info(self) -> ModelInfo: ...

    def prepare(self, request: Request) -> Prepared:
        """Counts, exactly. Raises ContextOverflowError with the numbers, TemplateError, UnknownChunkError."""

    def complete(self, prepared: Prepared, seed: int | None) -> CompletionStream:
        """The reply to a request that this lease has prepared, drawn by `seed`: each choice has its own."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int]) -> str: ...

    def embedding_tokens(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """What is read of each text, or of its ids, for its embedding. Raises UsageError for one that is empty."""

    def embed(self, tokens: Sequence[Sequence[int]], is_cancelled: Callable[[], bool]) -> list[F32Array]:
        """A vector for each. Raises EngineUnsupportedError, ContextOverflowError, EngineMemoryError, CancelledError."""

    def grammar_for(self, schema: Mapping[str, Any]) -> str:
        """The grammar of JSON that a JSON schema allows. Raises UsageError for what cannot be said by one."""

    def tool_plan(self, use: ToolUse) -> ToolPlan:
        """Raises EngineUnsupportedError where the model's template has no form for tools."""

    def release(self) -> None:
        """The model may be unloaded. Idempotent, from any thread, never blocks."""


class Backend(Protocol):
    """The models of a server."""

    def models(self) -> list[ModelInfo]: ...

    async def start(self) -> None:
        """Load what is served from the beginning. The edge answers 503 until it returns."""

    async def acquire(self, model: str, tenant: str) -> ModelLease:
        """A lease on a model, by id or alias; it is loaded where it was not. Raises ModelNotFoundError."""

    async def close(self) -> None:
        """Save what is to be saved and free the models. No lease is in use any more."""
