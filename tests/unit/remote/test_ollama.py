"""Conversations over a recorded Ollama: its own protocol, and windows by num_ctx."""

from __future__ import annotations

import pytest

from kvloom.errors import ContextOverflowError, EngineUnsupportedError, UsageError
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import MODEL, RecordedOllama, num_prompt, num_words


def test_a_conversation_streams_with_the_windows_size(ollama: RecordedOllama, opened: Opened) -> None:
    loom = opened(context=2048)
    assert loom.model_name == f"ollama:{MODEL}"
    assert "Ollama at" in loom.status().engine
    chat = loom.session("Be brief.")
    with chat.stream("one two three", temperature=0.0, top_k=9, stop="x") as stream:
        assert [delta.text for delta in stream] == ["one ", "two ", "three "]
    sent = ollama.sent()[-1]
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    options = sent["options"]
    assert (options["num_ctx"], options["temperature"], options["top_k"], options["stop"]) == (2048, 0.0, 9, ["x"])
    assert (sent["truncate"], sent["shift"], sent["stream"]) == (False, False, True)


def test_usage_is_the_servers(ollama: RecordedOllama, opened: Opened) -> None:
    reply = opened().session().generate("one two three")
    wanted = num_prompt(ollama.sent()[-1]["messages"]), num_words("one two three")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == wanted
    assert not reply.usage.is_estimate


@pytest.mark.parametrize(("loaded", "wanted"), [(0, 8192), (3000, 3000)])
def test_the_automatic_window_is_what_is_loaded_else_what_the_model_can(
    ollama: RecordedOllama, opened: Opened, loaded: int, wanted: int
) -> None:
    ollama.loaded = loaded
    assert opened().session().window == wanted


def test_a_resize_says_first_that_the_model_is_loaded_again(ollama: RecordedOllama, opened: Opened) -> None:
    chat = opened(context=1024).session()
    chat.generate("one two three")
    assert ollama.num_loads == 1
    assert "loads tiny again for num_ctx 4096, it is loaded with 1024" in chat.resize_notice(4096)
    assert ollama.num_loads == 1, "looking loads nothing"
    before = chat.history()
    assert chat.resize(4096) == 4096
    reply = chat.generate("four five six")
    assert ollama.sent()[-1]["options"]["num_ctx"] == 4096
    assert any("loads tiny again" in notice and "4.9 s" in notice for notice in reply.notices)
    assert chat.history()[:1] == before
    assert (chat.resize_notice(4096), ollama.num_loads) == ("", 2)
    chat.undo()
    chat.undo()
    assert chat.window == 1024


def test_a_smaller_window_gives_memory_back_and_one_beyond_the_model_is_refused(
    ollama: RecordedOllama, opened: Opened
) -> None:
    chat = opened(context=4096).session()
    chat.generate("one two three")
    chat.resize(1024)
    chat.generate("four five six")
    assert ollama.loaded == 1024
    with pytest.raises(UsageError, match="8192 that tiny was trained for"):
        chat.resize(10_000)
    with pytest.raises(UsageError, match="8192"):
        opened(context=10_000)


def test_sessions_of_two_windows_do_not_load_the_model_in_turns(ollama: RecordedOllama, opened: Opened) -> None:
    loom = opened(context=1024)
    small, large = loom.session(), loom.session()
    large.resize(4096)
    for _ in range(3):
        small.generate("one two three")
        large.generate("one two three")
    assert ollama.num_loads == 1
    assert (small.window, large.window) == (1024, 4096)


def test_an_overflow_that_only_the_server_sees_carries_its_numbers(ollama: RecordedOllama, opened: Opened) -> None:
    chat = opened(context=256).session()
    with pytest.raises(ContextOverflowError, match="context length is 256") as refused:
        chat.generate("!?" * 190)  # few characters, and as many tokens
    assert refused.value.num_window_tokens == 256
    assert refused.value.num_needed_tokens > 256
    assert chat.history() == []


def test_a_prompt_that_the_server_cut_is_told(ollama: RecordedOllama, opened: Opened) -> None:
    ollama.cuts = True
    chat = opened(context=512).session()
    reply = chat.generate("and then there was another word to say, " * 48, max_tokens=8)
    assert any("may have cut off its beginning" in notice for notice in reply.notices)


def test_ollama_shows_no_prompt(ollama: RecordedOllama, opened: Opened) -> None:
    with pytest.raises(EngineUnsupportedError, match="does not show the prompt"):
        opened().session().prompt()
