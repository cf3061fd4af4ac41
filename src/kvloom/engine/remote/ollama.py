"""Ollama's own protocol: /api/chat as lines of JSON, with the window (num_ctx) chosen by each request.

Fields as in Ollama's docs/api.md. `truncate` and `shift` are switched off: it would cut a prompt that is too long
without a word. Servers that do not know them pass them over.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Generator, Mapping
from typing import Any

from kvloom.engine.remote.address import RemoteAddress
from kvloom.engine.remote.base import (
    ALL_SAMPLING,
    ChatMessage,
    ChatRequest,
    Ending,
    Endpoint,
    IsCancelled,
    ModelFacts,
    Piece,
)
from kvloom.engine.remote.faults import cut_off, not_understood, refused
from kvloom.engine.remote.wire import Asking, Wire, WireSettings
from kvloom.errors import EngineUnsupportedError, KvloomError, ModelNotFoundError, UsageError

NANOSECONDS = 1e9
_MARKS = re.compile(r"<[^\s<>'\"{}]{1,48}>|\[/?[A-Z_]{1,32}\]")
"""Words around messages in one of Ollama's templates, which are Go's: `{{ … }}` is none of them."""


class OllamaEndpoint(Endpoint):
    """A model that an Ollama server holds. It counts no tokens before they are computed."""

    is_resizable = True
    sampling = ALL_SAMPLING

    def __init__(self, address: RemoteAddress, settings: WireSettings) -> None:
        self.where = address.base_url
        self._model = address.model
        self._wire = Wire(settings)
        self._lock = threading.Lock()
        try:
            self.facts = self._found()
        except BaseException:
            self._wire.close()
            raise
        self.window = self.facts.window
        """num_ctx of the next request; 0 leaves it to the server."""

    def chat(self, request: ChatRequest, is_cancelled: IsCancelled) -> Generator[Piece | Ending, None, None]:
        asking = Asking(self._model, (request.num_prompt_tokens, request.window))
        lines = self._wire.lines(f"{self.where}/api/chat", self._body(request), asking, is_cancelled)
        try:
            for line in lines:
                if not line.strip():
                    continue
                event = self._event(line, asking)
                message = event.get("message")
                if isinstance(message, Mapping):
                    yield from _pieces(message)
                if event.get("done"):
                    yield _ending(event)
                    return
        finally:
            lines.close()
        raise cut_off(self.where)

    def prompt(self, messages: tuple[ChatMessage, ...]) -> str:
        del messages
        raise EngineUnsupportedError(f"Ollama at {self.where} does not show the prompt that it makes of the messages")

    def metadata(self) -> tuple[dict[str, object], int]:
        shown = self._wire.post(f"{self.where}/api/show", {"model": self._model}, Asking(self._model))
        info = shown.get("model_info") if isinstance(shown, Mapping) else None
        sizes = {model.get("name"): _whole(model.get("size")) for model in self._tags()}
        size = sizes.get(_full(self._model), 0)
        if not isinstance(info, Mapping) or not size:
            raise EngineUnsupportedError(f"Ollama at {self.where} does not tell the shape and size of {self._model}")
        return dict(info), size

    def resize(self, window: int) -> None:
        limit = self.facts.max_window
        if 0 < limit < window:
            raise UsageError(f"num_ctx {window} is beyond the {limit} tokens that {self._model} was trained for")
        with self._lock:
            self.window = window

    def reload_reason(self, window: int) -> str:
        model = self._running()
        loaded = _whole(model.get("context_length"))
        if not model or loaded == window:
            return ""
        now = f", it is loaded with {loaded} now" if loaded else ""
        return f"Ollama loads {self._model} again for num_ctx {window}{now}: the next reply waits for that"

    def close(self) -> None:
        self._wire.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options: dict[str, Any] = {"num_predict": request.max_tokens}
        with self._lock:
            if self.window:
                options["num_ctx"] = self.window
        for name in sorted(self.sampling):
            value = getattr(request.sampling, name)
            if value is not None:
                options[name] = value
        if request.stop:
            options["stop"] = list(request.stop)
        return {
            "model": self._model,
            "messages": [message.wire() for message in request.messages],
            "stream": True,
            "truncate": False,
            "shift": False,
            "options": options,
        }

    def _event(self, line: str, asking: Asking) -> Mapping[str, Any]:
        try:
            event = json.loads(line)
        except ValueError as error:
            raise not_understood(self.where, line) from error
        if not isinstance(event, Mapping):
            raise not_understood(self.where, line)
        if event.get("error"):  # the status was sent before the server knew
            raise refused(500, line, self.where, self._model, asking.sizes)
        return event

    def _found(self) -> ModelFacts:
        """Raises EngineError where nothing answers, ModelNotFoundError naming the models that are there."""
        try:
            shown = self._wire.post(f"{self.where}/api/show", {"model": self._model}, Asking(self._model))
        except ModelNotFoundError as error:
            raise self._not_there() from error
        info = shown.get("model_info") if isinstance(shown, Mapping) else None
        if not isinstance(info, Mapping):
            raise not_understood(self.where, json.dumps(shown))
        trained = _whole(info.get(f"{info.get('general.architecture')}.context_length"))
        digests = {model.get("name"): str(model.get("digest", "")) for model in self._tags()}
        loaded = _whole(self._running().get("context_length"))
        template = shown.get("template")
        marks = tuple(sorted(set(_MARKS.findall(template)))) if isinstance(template, str) else ()
        digest = digests.get(_full(self._model), "")
        return ModelFacts(self._model, "Ollama", loaded, trained, digest, marks=marks)

    def _running(self) -> Mapping[str, Any]:
        """What /api/ps says of the model; empty where it is not loaded."""
        answer = self._wire.get(f"{self.where}/api/ps")
        for model in (answer.get("models") if isinstance(answer, Mapping) else None) or ():
            if isinstance(model, Mapping) and _full(self._model) in (model.get("name"), model.get("model")):
                return model
        return {}

    def _not_there(self) -> KvloomError:
        known = ", ".join(str(model.get("name")) for model in self._tags()[:8]) or "none"
        return ModelNotFoundError(
            f"Ollama at {self.where} has no model {self._model}; it has {known}; ollama pull {self._model} fetches it"
        )

    def _tags(self) -> list[Mapping[str, Any]]:
        answer = self._wire.get(f"{self.where}/api/tags")
        models = (answer.get("models") if isinstance(answer, Mapping) else None) or []
        return [model for model in models if isinstance(model, Mapping)]


def _full(model: str) -> str:
    """The name with its tag, as /api/ps and /api/tags list it."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _pieces(message: Mapping[str, Any]) -> Generator[Piece, None, None]:
    thinking, text = message.get("thinking"), message.get("content")
    if isinstance(thinking, str) and thinking:
        yield Piece(reasoning=thinking)
    if isinstance(text, str) and text:
        yield Piece(text)


def _ending(event: Mapping[str, Any]) -> Ending:
    load_ns = event.get("load_duration")
    return Ending(
        str(event.get("done_reason") or "stop"),
        _whole(event.get("prompt_eval_count")),
        _whole(event.get("eval_count")),
        load_s=load_ns / NANOSECONDS if isinstance(load_ns, int) else 0.0,
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
