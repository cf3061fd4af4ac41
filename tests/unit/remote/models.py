"""Models behind a test's server: one that speaks OpenAI's protocol, and a recorded Ollama.

Both answer with what they were asked and count every sign and every three letters as a token: far more than an estimate
expects that has not learned yet.

The shapes of Ollama's bodies (/api/chat, /api/show, /api/ps, /api/tags) are those of docs/api.md of the repository
ollama/ollama, with its `context_length` in /api/ps and `truncate` and `shift` in requests, which later versions have.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.unit.remote.server import Answer, Asked, Server, as_json

MODEL = "tiny"
NUM_AROUND = 4
"""Tokens of the template around a message."""

Say = Callable[[list[Mapping[str, str]]], list[str]]


def num_words(text: str) -> int:
    return len(re.findall(r"\w{1,3}|[^\w\s]", text))


def num_prompt(messages: list[Mapping[str, str]]) -> int:
    return sum(num_words(message["content"]) + NUM_AROUND for message in messages) + NUM_AROUND


def echo(messages: list[Mapping[str, str]]) -> list[str]:
    """The question's last three words, one by one."""
    return [f"{word} " for word in messages[-1]["content"].split()[-3:]]


class OpenAIModel:
    """Serves /v1/chat/completions and /v1/models. `window`: longer prompts are refused; 0: it does not say."""

    def __init__(self, server: Server, window: int = 0, say: Say = echo, gives_usage: bool = True) -> None:
        self.server, self.window, self.say, self.gives_usage = server, window, say, gives_usage
        self.hold = threading.Event()
        """Replies wait behind their first word until it is set."""
        self.hold.set()
        server.routes["GET /v1/models"] = self._models
        server.routes["POST /v1/chat/completions"] = self._chat

    @property
    def name(self) -> str:
        return f"{self.server.url}/v1#{MODEL}"

    def sent(self) -> list[Mapping[str, Any]]:
        return self.server.bodies("/v1/chat/completions")

    def _models(self, _: Asked) -> Answer:
        entry = {"id": MODEL, "object": "model", **({"max_model_len": self.window} if self.window else {})}
        return as_json({"object": "list", "data": [entry]})

    def _chat(self, asked: Asked) -> Answer:
        if asked.body["model"] != MODEL:
            return as_json({"error": {"message": f"The model `{asked.body['model']}` does not exist"}}, 404)
        messages = asked.body["messages"]
        needed = num_prompt(messages) + asked.body["max_tokens"]
        if self.window and needed > self.window:
            said = (
                f"This model's maximum context length is {self.window} tokens. However, you requested {needed} tokens"
            )
            return as_json({"error": {"message": said, "code": "context_length_exceeded"}}, 400)
        return Answer(200, self._events(asked.body), {"Content-Type": "text/event-stream"})

    def _events(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        words = self.say(body["messages"])
        is_cut = len(words) > body["max_tokens"]
        for number, word in enumerate(words[: body["max_tokens"]]):
            yield event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            while not number and not self.hold.wait(0.01):
                yield b": still here\n\n"
        reason = "length" if is_cut else "stop"
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if self.gives_usage:
            completion = sum(num_words(word) for word in words[: body["max_tokens"]])
            usage = {"prompt_tokens": num_prompt(body["messages"]), "completion_tokens": completion}
            yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


class RecordedOllama:
    """An Ollama that holds one model. Asked with another num_ctx, it loads the model again.

    `cuts`: an older one, which makes a prompt that is too long fit without a word.
    """

    def __init__(self, server: Server, trained: int = 8192, say: Say = echo) -> None:
        self.server, self.trained, self.say = server, trained, say
        self.loaded = 0
        self.num_loads = 0
        self.cuts = False
        server.routes["POST /api/show"] = self._show
        server.routes["GET /api/ps"] = self._ps
        server.routes["GET /api/tags"] = lambda _: as_json({"models": [self._entry()]})
        server.routes["POST /api/chat"] = self._chat

    def sent(self) -> list[Mapping[str, Any]]:
        return self.server.bodies("/api/chat")

    def _entry(self) -> dict[str, Any]:
        details = {
            "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "8.0B",
            "quantization_level": "Q4_0",
        }  # fmt: skip
        digest = "2ae6f6dd7a3dd734790bbbf58b8909a606e0e7e97e94b7604e0aa7ae4490e6d8"
        name = f"{MODEL}:latest"
        return {"name": name, "model": name, "size": 5137025024, "digest": digest, "details": details}

    def _show(self, asked: Asked) -> Answer:
        if asked.body["model"] not in (MODEL, f"{MODEL}:latest"):
            return as_json({"error": f"model '{asked.body['model']}' not found"}, 404)
        info = {"general.architecture": "llama", "llama.context_length": self.trained, "llama.block_count": 32}
        return as_json({
            "modelfile": "# Modelfile", "parameters": "num_keep 24", "template": "{{ .Prompt }}",
            "details": self._entry()["details"], "model_info": info,
        })  # fmt: skip

    def _ps(self, _: Asked) -> Answer:
        loaded = {"expires_at": "2024-06-04T14:38:31.83753-07:00", "size_vram": 5137025024}
        models = [{**self._entry(), **loaded, "context_length": self.loaded}] if self.loaded else []
        return as_json({"models": models})

    def _chat(self, asked: Asked) -> Answer:
        body = asked.body
        num_ctx, needed = body["options"]["num_ctx"], num_prompt(body["messages"])
        load_ns = 1_334_875
        if num_ctx != self.loaded:
            self.loaded, load_ns = num_ctx, 4_883_583_458
            self.num_loads += 1
        if needed > num_ctx and self.cuts:
            needed = num_ctx // 2
        if needed > num_ctx:
            said = f"the input length ({needed} tokens) exceeds the context length of {num_ctx} tokens"
            return as_json({"error": said}, 400)
        words = self.say(body["messages"])[: body["options"]["num_predict"]]
        return Answer(200, self._lines(words, needed, load_ns), {"Content-Type": "application/x-ndjson"})

    def _lines(self, words: list[str], num_prompt_tokens: int, load_ns: int) -> Iterator[bytes]:
        head = {"model": MODEL, "created_at": "2023-08-04T08:52:19.385406455-07:00"}
        for word in words:
            yield _line({**head, "message": {"role": "assistant", "content": word}, "done": False})
        yield _line({
            **head, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
            "total_duration": 8113331500, "load_duration": load_ns, "prompt_eval_count": num_prompt_tokens,
            "prompt_eval_duration": 398801000, "eval_count": sum(map(num_words, words)), "eval_duration": 7701267000,
        })  # fmt: skip


def _line(value: object) -> bytes:
    return f"{json.dumps(value)}\n".encode()
