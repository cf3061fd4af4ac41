"""OpenAI-compatible endpoints: /chat/completions as server-sent events. llama.cpp's own server counts tokens, too.

Knows the fields of the protocol and where servers differ in them. What is asked and what becomes of it is not its
business.
"""

from __future__ import annotations

import json
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
from kvloom.errors import EngineError, EngineUnsupportedError, ModelNotFoundError

_DATA = "data:"
_DONE = "[DONE]"
_WINDOW_FIELDS = ("max_model_len", "max_context_length", "context_length", "context_window")
"""Where servers say a model's length in /models: vLLM and SGLang, LM Studio, OpenRouter and others, Groq."""


class OpenAIEndpoint(Endpoint):
    """`is_llama_cpp`: it answered /props as llama.cpp's server does, and counts with its own tokenizer."""

    def __init__(self, address: RemoteAddress, settings: WireSettings) -> None:
        self.where = address.base_url
        self._address = address
        self._wire = Wire(settings)
        self._limit_name = "max_tokens"
        try:
            self.facts = self._found()
        except BaseException:
            self._wire.close()
            raise
        self.is_llama_cpp = self.counts_exactly
        if self.is_llama_cpp:
            self.sampling = ALL_SAMPLING

    # -- asking -------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest, is_cancelled: IsCancelled) -> Generator[Piece | Ending, None, None]:
        try:
            yield from self._chat(request, is_cancelled)
        except EngineError as error:
            # Newer models of OpenAI's refuse the older name, before anything has been said.
            if self._limit_name != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._limit_name = "max_completion_tokens"
            yield from self._chat(request, is_cancelled)

    def count(self, text: str, *, is_template: bool) -> int:
        self._check_counts()
        body = {"content": text, "add_special": False, "parse_special": is_template}
        return len(_listed(self._wire.post(f"{self._address.root}/tokenize", body), "tokens", self.where))

    def count_messages(self, messages: tuple[ChatMessage, ...]) -> int:
        self._check_counts()
        body = {"content": self.prompt(messages), "add_special": True, "parse_special": True}
        return len(_listed(self._wire.post(f"{self._address.root}/tokenize", body), "tokens", self.where))

    def prompt(self, messages: tuple[ChatMessage, ...]) -> str:
        self._check_counts()
        answer = self._wire.post(f"{self._address.root}/apply-template", {"messages": [m.wire() for m in messages]})
        prompt = answer.get("prompt") if isinstance(answer, Mapping) else None
        if not isinstance(prompt, str):
            raise not_understood(self.where, json.dumps(answer))
        return prompt

    def close(self) -> None:
        self._wire.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_counts(self) -> None:
        if not self.counts_exactly:
            raise EngineUnsupportedError(f"{self.where} does not count tokens, nor show the prompt that it makes")

    def _chat(self, request: ChatRequest, is_cancelled: IsCancelled) -> Generator[Piece | Ending, None, None]:
        asking = Asking(self.facts.model, (request.num_prompt_tokens, request.window))
        url = f"{self._address.base_url}/chat/completions"
        lines = self._wire.lines(url, self._body(request), asking, is_cancelled)
        finish, ending, plain = "", Ending(""), ""
        try:
            for line in lines:
                kind, _, rest = line.partition(":")
                data = rest.strip()
                if kind == "error":  # llama.cpp's, in the middle of a stream
                    raise refused(500, f'{{"error": {data}}}', self.where, self.facts.model, asking.sizes)
                if kind != "data":
                    plain += line[: 300 - len(plain)] if kind not in ("", "event", "id", "retry") else ""
                    continue
                if data == _DONE:
                    break
                event = self._event(data, asking)
                ending = _counted(event, ending)
                for choice in event.get("choices") or ():
                    finish = choice.get("finish_reason") or finish
                    yield from _pieces(choice.get("delta") or {})
        finally:
            lines.close()
        if not finish:
            raise not_understood(self.where, plain) if plain else cut_off(self.where)
        yield Ending(
            finish, ending.prompt_tokens, ending.completion_tokens, ending.cached_tokens, ending.reasoning_tokens
        )

    def _event(self, data: str, asking: Asking) -> Mapping[str, Any]:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise not_understood(self.where, data) from error
        if not isinstance(event, Mapping):
            raise not_understood(self.where, data)
        if event.get("error"):
            code = event["error"].get("code") if isinstance(event["error"], Mapping) else 500
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise refused(status, data, self.where, self.facts.model, asking.sizes)
        return event

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [message.wire() for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            self._limit_name: request.max_tokens,
        }
        if self.facts.model:
            body["model"] = self.facts.model
        if request.stop:
            body["stop"] = list(request.stop)
        for name in sorted(self.sampling):
            value = getattr(request.sampling, name)
            if value is not None:
                body[name] = value
        return body

    def _found(self) -> ModelFacts:
        """What the server says of itself. Raises EngineError where nothing answers."""
        props, models = self._props(), self._models()
        wanted = self._address.model
        if not wanted and len(models) == 1:
            wanted = str(models[0].get("id", ""))
        if not wanted and not props:
            known = ", ".join(str(model.get("id")) for model in models[:8]) or "it lists none"
            raise ModelNotFoundError(f"{self.where} serves {len(models)} models: name one behind the # ({known})")
        about = next((model for model in models if model.get("id") == wanted), {})
        if not props:
            window = next((size for name in _WINDOW_FIELDS if (size := _size(about.get(name)))), 0)
            return ModelFacts(wanted, "an OpenAI-compatible endpoint", window, window)
        self.counts_exactly = True
        window = _size(props["default_generation_settings"].get("n_ctx"))
        return ModelFacts(
            wanted, "llama.cpp's server", window, window, str(props.get("model_path", "")),
            str(props["chat_template"]), self._bos(str(props.get("bos_token") or "")),
            str(props.get("eos_token") or ""),
        )  # fmt: skip

    def _bos(self, text: str) -> str:
        """The text of BOS, where prompts open with it."""
        if not text:
            return ""
        url, body = f"{self._address.root}/tokenize", {"content": "a", "parse_special": True}
        plain, opened = (
            len(_listed(self._wire.post(url, {**body, "add_special": special}), "tokens", self.where))
            for special in (False, True)
        )
        return text if opened > plain else ""

    def _props(self) -> Mapping[str, Any]:
        """llama.cpp's own properties; empty where something else answers."""
        try:
            props = self._wire.get(f"{self._address.root}/props")
        except ModelNotFoundError:
            return {}
        except EngineError:
            return {}  # if nothing answers at all, the list of models says so
        if not isinstance(props, Mapping) or not isinstance(props.get("chat_template"), str):
            return {}
        return props if isinstance(props.get("default_generation_settings"), Mapping) else {}

    def _models(self) -> list[Mapping[str, Any]]:
        """The list of models; empty where the server keeps none."""
        try:
            answer = self._wire.get(f"{self._address.base_url}/models")
        except ModelNotFoundError:
            return []
        listed = answer.get("data") if isinstance(answer, Mapping) else answer
        return [model for model in listed if isinstance(model, Mapping)] if isinstance(listed, list) else []


def _pieces(delta: Mapping[str, Any]) -> Generator[Piece, None, None]:
    reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
    if isinstance(reasoning, str) and reasoning:
        yield Piece(reasoning=reasoning)
    text = delta.get("content") or ""
    if isinstance(text, str) and text:
        yield Piece(text)


def _counted(event: Mapping[str, Any], before: Ending) -> Ending:
    """The counts of an event that carries them: the last one, or every one."""
    usage = event.get("usage")
    if not isinstance(usage, Mapping):
        return before
    prompt, completion = (usage.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "completion"))
    return Ending(
        "", _size(usage.get("prompt_tokens")), _size(usage.get("completion_tokens")),
        _size(prompt.get("cached_tokens")), _size(completion.get("reasoning_tokens")),
    )  # fmt: skip


def _size(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _listed(answer: object, name: str, where: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(found, list):
        raise not_understood(where, json.dumps(answer))
    return found
