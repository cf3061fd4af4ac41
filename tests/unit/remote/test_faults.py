"""What goes wrong at an endpoint becomes an error that says what happened and what to do; the session stays whole."""

from __future__ import annotations

import json
import logging
import socket
import threading
from pathlib import Path

import pytest

import kvloom
from kvloom.engine.remote.faults import refused
from kvloom.errors import CancelledError, ContextOverflowError, EngineError, ModelNotFoundError
from kvloom.session.session import Session
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import MODEL, OpenAIModel, RecordedOllama, event
from tests.unit.remote.server import Answer, Server, as_json

CHAT = "POST /v1/chat/completions"


def failing(chat: Session, match: str, kind: type[Exception] = EngineError) -> Exception:
    """The error of a question, which leaves the session as it was."""
    before = chat.manifest
    with pytest.raises(kind, match=match) as failed:
        chat.generate("What is it?", max_tokens=8)
    assert chat.manifest == before
    return failed.value


@pytest.fixture
def chat(openai: OpenAIModel, opened: Opened) -> Session:
    chat = opened(openai.name).session()
    chat.generate("one two three")
    return chat


@pytest.mark.parametrize(
    ("status", "match", "kind"),
    [
        (401, "KVLOOM_REMOTE_KEY", EngineError),
        (403, "KVLOOM_REMOTE_KEY", EngineError),
        (404, "no model tiny", ModelNotFoundError),
        (429, "again in 7 s", EngineError),
        (500, "failed with HTTP 500: too bad", EngineError),
        (503, "not ready", EngineError),
        (307, "sends elsewhere", EngineError),
        (418, "refused the request with HTTP 418: too bad", EngineError),
    ],
)
def test_a_refusal_says_what_to_do(
    server: Server, chat: Session, status: int, match: str, kind: type[Exception]
) -> None:
    answer = as_json({"error": {"message": "too bad"}}, status, **{"Retry-After": "7"})
    server.routes[CHAT] = lambda _: answer
    failing(chat, match, kind)


@pytest.mark.parametrize(
    ("body", "needed", "window"),
    [
        (
            {"error": {"code": 400, "message": "request (3031 tokens) exceeds the available context size (2048 tokens)",
                       "type": "exceed_context_size_error", "n_prompt_tokens": 3031, "n_ctx": 2048}},
            3031, 2048,
        ),
        (
            {"error": {"message": "This model's maximum context length is 4097 tokens. However, you requested 4120 "
                       "tokens (3120 in the messages, 1000 in the completion).", "code": "context_length_exceeded"}},
            4120, 4097,
        ),
        (
            {"object": "error", "message": "This model's maximum context length is 6048 tokens. However, your messages "
             "resulted in 6616 tokens.", "type": "BadRequestError", "code": 400},
            6616, 6048,
        ),
        ({"error": "the input length exceeds the context length"}, 11, 22),
        ({"error": {"message": "prompt is too long"}}, 11, 22),
    ],
)  # fmt: skip
def test_an_overflow_that_the_server_reports_carries_its_numbers(
    body: dict[str, object], needed: int, window: int
) -> None:
    error = refused(400, json.dumps(body), "http://h/v1", "m", (11, 22))
    assert isinstance(error, ContextOverflowError)
    assert (error.num_needed_tokens, error.num_window_tokens) == (needed, window)


def test_an_ordinary_refusal_is_no_overflow() -> None:
    error = refused(400, '{"error": {"message": "temperature 9 exceeds the maximum"}}', "http://h/v1", "m")
    assert not isinstance(error, ContextOverflowError)


def test_a_page_instead_of_an_answer_is_quoted_in_short() -> None:
    error = refused(502, "<html><body><h1>Bad\n gateway</h1>" + "x" * 5000, "http://h/v1", "m")
    assert "Bad gateway" in str(error)
    assert len(str(error)) < 500


def test_an_overflow_reaches_the_caller_and_the_session_stays(server: Server, chat: Session) -> None:
    body = {"error": {"message": "maximum context length is 100 tokens. However, you requested 300 tokens"}}
    server.routes[CHAT] = lambda _: as_json(body, 400)
    error = failing(chat, "refused 300 tokens", ContextOverflowError)
    assert isinstance(error, ContextOverflowError)
    assert (error.num_needed_tokens, error.num_window_tokens) == (300, 100)


def test_nobody_at_the_address_is_said_at_opening(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EngineError, match=r"nothing answers at .*is the server running"):
            kvloom.open(model=f"http://127.0.0.1:{taken.getsockname()[1]}/v1#m", home=tmp_path)


def test_a_server_that_goes_away_is_said_and_the_session_stays(server: Server, chat: Session) -> None:
    server.close()
    with pytest.raises(EngineError, match="nothing answers"):
        chat.generate("still there?")
    assert len(chat.history()) == 1
    assert chat.undo() == "turn"


@pytest.mark.parametrize("breaks", [True, False])
def test_a_stream_that_breaks_in_the_middle_is_taken_back(server: Server, chat: Session, breaks: bool) -> None:
    parts = [event({"choices": [{"delta": {"content": "half"}, "finish_reason": None}]})]
    server.routes[CHAT] = lambda _: Answer(200, parts, {"Content-Type": "text/event-stream"}, breaks)
    failing(chat, "broke off|in the middle")
    assert len(chat.history()) == 1


@pytest.mark.parametrize(
    "part",
    [
        b'data: {"error": {"message": "out of memory", "code": 500}}\n\n',
        b'error: {"message": "out of memory", "code": 500}\n\n',
    ],
)
def test_an_error_inside_a_stream_takes_the_turn_back(server: Server, chat: Session, part: bytes) -> None:
    parts = [event({"choices": [{"delta": {"content": "half"}}]}), part]
    server.routes[CHAT] = lambda _: Answer(200, parts)
    failing(chat, "out of memory")


@pytest.mark.parametrize("part", [b"<html>hello</html>\n", b"data: {broken\n\n", b"data: []\n\n"])
def test_an_answer_in_another_protocol_is_quoted(server: Server, chat: Session, part: bytes) -> None:
    server.routes[CHAT] = lambda _: Answer(200, [part])
    failing(chat, "an answer that is none")


def test_an_empty_reply_is_an_error(openai: OpenAIModel, chat: Session) -> None:
    openai.say = lambda _: []
    failing(chat, "empty reply .*stop")


def test_a_silent_server_is_given_up(openai: OpenAIModel, server: Server, opened: Opened) -> None:
    chat = opened(openai.name, remote_timeout_s=3).session()
    wait = threading.Event()

    def silent(_: object) -> Answer:
        wait.wait(30)
        return as_json({})

    server.routes[CHAT] = silent
    try:
        failing(chat, "silent for 3 s.*remote_timeout_s")
    finally:
        wait.set()


def test_a_cancel_ends_a_request_over_which_the_server_is_silent(server: Server, chat: Session) -> None:
    begun, wait = threading.Event(), threading.Event()

    def silent(_: object) -> Answer:
        begun.set()
        wait.wait(20)
        return as_json({})

    server.routes[CHAT] = silent

    def cancel() -> None:
        begun.wait(10)
        chat.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    failing(chat, "cancelled", CancelledError)
    assert not wait.is_set(), "it did not wait for the server"
    wait.set()
    canceller.join()


def test_an_unknown_model_is_named(openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name.replace(MODEL, "other")).session()
    failing(chat, "no model other .*does not exist", ModelNotFoundError)


def test_the_key_is_sent_and_stands_in_no_log_and_no_message(
    openai: OpenAIModel,
    server: Server,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KVLOOM_REMOTE_KEY", "sehr-geheim")
    caplog.set_level(logging.DEBUG)
    loom = opened(openai.name)
    chat = loom.session()
    chat.generate("one two three")
    assert server.asked[-1].headers["Authorization"] == "Bearer sehr-geheim"
    server.routes[CHAT] = lambda _: as_json({"error": {"message": "wrong key"}}, 401)
    error = failing(chat, "wrong key")
    shown = f"{caplog.text} {error} {loom.settings!r} {loom.settings.model_dump_json()} {loom.status()}"
    assert "geheim" not in shown


def test_ollama_names_the_models_that_it_has(ollama: RecordedOllama, opened: Opened) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model other; it has tiny:latest; ollama pull other"):
        opened("ollama:other")


def test_ollama_breaking_off_takes_the_turn_back(ollama: RecordedOllama, server: Server, opened: Opened) -> None:
    chat = opened().session()
    chat.generate("one two three")
    line = json.dumps({"message": {"role": "assistant", "content": "half"}, "done": False}).encode() + b"\n"
    server.routes["POST /api/chat"] = lambda _: Answer(200, [line])
    failing(chat, "in the middle")
    server.routes["POST /api/chat"] = lambda _: Answer(
        200, [line, b'{"error": "llama runner process has terminated"}\n']
    )
    failing(chat, "runner process has terminated")
