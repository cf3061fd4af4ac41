"""Conversations over an OpenAI-compatible endpoint: what is sent, what comes back, and what cannot be had."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import kvloom
from kvloom.context.policies.base import policy_names
from kvloom.errors import (
    CancelledError,
    CompressionError,
    ContextOverflowError,
    EngineUnsupportedError,
    ModelNotFoundError,
    UsageError,
)
from kvloom.session.session import Session
from kvloom.session.values import CompressionResult
from kvloom.types import Fidelity
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import OpenAIModel, event
from tests.unit.remote.server import Answer, Server, as_json

WINDOW = 400
DROPPING = [name for name in policy_names() if name not in ("stop", "clear")]


def fill(chat: Session, num_turns: int) -> None:
    for number in range(num_turns):
        chat.generate(f"turn number {number}, and some more words of it", max_tokens=8)


def contents(openai: OpenAIModel) -> list[str]:
    """The messages of the last request, as role and text."""
    return [f"{message['role']}: {message['content']}" for message in openai.sent()[-1]["messages"]]


# -- asking ---------------------------------------------------------------------------------------------------------


def test_a_conversation_is_sent_whole_and_streams_back(openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name).session("Be brief.")
    with chat.stream("one two three") as stream:
        assert [delta.text for delta in stream] == ["one ", "two ", "three "]
    assert stream.reply.finish_reason == "stop"
    chat.generate("four five six")
    assert contents(openai) == [
        "system: Be brief.",
        "user: one two three",
        "assistant: one two three ",
        "user: four five six",
    ]
    assert [turn.user for turn in chat.history()] == ["one two three", "four five six"]


def test_chunks_stand_behind_the_system_text_with_their_headers_whole_or_off(
    openai: OpenAIModel, opened: Opened
) -> None:
    loom = opened(openai.name)
    chat = loom.session("Be brief.")
    whales, doors = loom.load_text("Whales swim.\n", name="whales"), loom.load_text("Doors open.\n", name="doors")
    chat.activate(whales.id, doors.id)
    chat.generate("one two three")
    system = 'Be brief.\n\n<file name="whales">\nWhales swim.\n</file>\n\n<file name="doors">\nDoors open.\n</file>'
    assert contents(openai)[0] == f"system: {system}"
    chat.deactivate("whales")
    chat.move("doors", 0)
    chat.generate("one two three")
    assert contents(openai)[0] == 'system: Be brief.\n\n<file name="doors">\nDoors open.\n</file>'


def test_options_are_sent_as_the_endpoint_knows_them(openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name).session()
    reply = chat.generate("one two three", max_tokens=2, temperature=0.5, seed=7, stop=["x"], top_k=5)
    sent = openai.sent()[-1]
    assert (sent["max_tokens"], sent["temperature"], sent["seed"], sent["stop"]) == (2, 0.5, 7, ["x"])
    assert "top_k" not in sent
    assert any("top_k left out" in notice for notice in reply.notices)
    assert (reply.text, reply.finish_reason) == ("one two ", "length")


def test_a_newer_name_of_the_longest_reply_is_learned(openai: OpenAIModel, server: Server, opened: Opened) -> None:
    chat = opened(openai.name).session()
    usual = server.routes["POST /v1/chat/completions"]

    def strict(asked: object) -> Answer:
        body = asked.body  # type: ignore[attr-defined]
        if "max_tokens" in body:
            return as_json({"error": {"message": "Unsupported parameter: use 'max_completion_tokens'"}}, 400)
        body["max_tokens"] = body["max_completion_tokens"]
        return usual(asked)  # type: ignore[arg-type]

    server.routes["POST /v1/chat/completions"] = strict
    assert chat.generate("one two three").text == "one two three "
    assert chat.generate("four five six").text == "four five six "
    assert len(openai.sent()) == 3, "the older name was tried once"


def test_reasoning_is_told_apart_and_not_sent_again(openai: OpenAIModel, server: Server, opened: Opened) -> None:
    chat = opened(openai.name).session()
    parts = [
        event({"choices": [{"delta": {"reasoning_content": "Hm."}}]}),
        event({"choices": [{"delta": {"content": "<think>more"}}]}),
        event({"choices": [{"delta": {"content": "</think>It is."}, "finish_reason": "stop"}]}),
        b"data: [DONE]\n\n",
    ]
    usual = server.routes["POST /v1/chat/completions"]
    server.routes["POST /v1/chat/completions"] = lambda _: Answer(200, parts)
    reply = chat.generate("is it?")
    assert (reply.reasoning, reply.text) == ("Hm.more", "It is.")
    server.routes["POST /v1/chat/completions"] = usual
    chat.generate("one two three")
    assert "assistant: It is." in contents(openai)


def test_cached_tokens_are_reused_ones(server: Server, openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name).session()
    usage = {"prompt_tokens": 90, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 70}}
    parts = [
        event({"choices": [{"delta": {"content": "It is."}, "finish_reason": "stop"}]}),
        event({"choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    ]
    server.routes["POST /v1/chat/completions"] = lambda _: Answer(200, parts)
    found = chat.generate("is it?").usage
    assert (found.prompt_tokens, found.reused_tokens, found.computed_tokens, found.completion_tokens) == (90, 70, 20, 3)


# -- cancelling -----------------------------------------------------------------------------------------------------


def test_closing_a_stream_early_ends_the_request_and_takes_the_turn_back(
    openai: OpenAIModel, server: Server, opened: Opened
) -> None:
    chat = opened(openai.name).session()
    fill(chat, 1)
    before = chat.manifest
    openai.hold.clear()
    stream = chat.stream("one two three")
    assert next(stream).text == "one "
    stream.close()
    assert server.gone.wait(10), "the server saw the connection go"
    openai.hold.set()
    assert chat.manifest == before
    assert chat.generate("four five six").text == "four five six "


def test_a_cancel_from_another_thread_keeps_the_part_if_that_is_wanted(openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name).session()
    for keep in (False, True):
        openai.hold.clear()
        stream = chat.stream("one two three", keep_partial=keep)
        assert next(stream).text == "one "
        canceller = threading.Timer(0.1, chat.cancel)
        canceller.start()
        if keep:
            for _ in stream:
                pass
            assert (stream.reply.text, stream.reply.finish_reason) == ("one ", "cancelled")
        else:
            with pytest.raises(CancelledError):
                next(stream)
            assert chat.history() == []
        canceller.join()
        openai.hold.set()
    assert [turn.answer for turn in chat.history()] == ["one "]


def test_two_sessions_ask_at_once(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name)
    first, second = loom.session(), loom.session()
    openai.hold.clear()
    stream = first.stream("one two three")
    next(stream)
    openai.hold.set()
    assert second.generate("four five six").text == "four five six "
    assert [delta.text for delta in stream] == ["two ", "three "]


def test_closing_the_loom_ends_a_reply_under_way(openai: OpenAIModel, server: Server, opened: Opened) -> None:
    loom = opened(openai.name)
    openai.hold.clear()
    stream = loom.session().stream("one two three")
    next(stream)
    loom.close()
    assert server.gone.wait(10)
    openai.hold.set()


def test_closing_ends_the_thread_of_the_connections(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name)
    loom.session().generate("one two three")
    mine = [thread for thread in threading.enumerate() if thread.name == "kvloom-remote"]
    assert mine
    loom.close()
    loom.close()
    assert not any(thread.is_alive() for thread in mine)


# -- the window -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clear", *DROPPING])
def test_a_conversation_goes_on_for_ever_within_the_servers_window(
    openai: OpenAIModel, opened: Opened, name: str
) -> None:
    openai.window = WINDOW
    chat = opened(openai.name).session()
    assert chat.window == WINDOW
    chat.policy = name
    fill(chat, 25)
    asked = {f"turn number {number}, and some more words of it" for number in range(25)}
    there = {turn.user for turn in chat.history()} | {line.text for line in chat.ledger()}
    assert asked <= there
    assert len(chat.ledger()) > 3


def test_stop_refuses_before_anything_is_sent(openai: OpenAIModel, opened: Opened) -> None:
    openai.window = WINDOW
    chat = opened(openai.name).session()
    with pytest.raises(ContextOverflowError, match=r"400 tokens.*in use"):
        fill(chat, 40)
    num_sent = len(openai.sent())
    with pytest.raises(ContextOverflowError):
        chat.generate("word " * 900)
    assert len(openai.sent()) == num_sent


def test_a_window_beyond_what_the_server_serves_is_refused(openai: OpenAIModel, opened: Opened) -> None:
    openai.window = WINDOW
    with pytest.raises(UsageError, match="more than the 400 that"):
        opened(openai.name, context=4000)
    chat = opened(openai.name).session()
    with pytest.raises(UsageError, match="start it with a larger context"):
        chat.resize(4000)
    assert chat.window == WINDOW
    assert chat.resize(300) == 300
    assert chat.resize_notice(300) == ""
    assert chat.resize(None) == WINDOW


# -- states ---------------------------------------------------------------------------------------------------------


def test_undo_retry_snapshot_restore_and_fork_change_what_is_sent(openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name).session()
    fill(chat, 2)
    taken = chat.snapshot("here")
    fill(chat, 1)
    assert chat.undo() == "turn"
    chat.generate("one two three")
    assert len(contents(openai)) == 1 + 2 * 2 + 1
    chat.retry()
    assert len(chat.history()) == 3
    chat.clear()
    assert chat.restore("here").id == taken.id
    chat.generate("four five six")
    assert len(contents(openai)) == 1 + 2 * 2 + 1
    fork = chat.fork(taken.id)
    fork.generate("only here")
    assert len(chat.history()) == len(fork.history()) == 3
    assert chat.history()[-1].user == "four five six"


def test_a_session_is_there_again_after_a_restart(openai: OpenAIModel, opened: Opened) -> None:
    with opened(openai.name) as loom:
        chat = loom.session(name="mine")
        fill(chat, 3)
        used = chat.usage().used
    again = opened(openai.name).session(name="mine")
    assert again.usage().used == used
    again.generate("one two three")
    assert len(contents(openai)) == 1 + 2 * 3 + 1
    again.undo()
    assert len(again.history()) == 3


def test_a_conversation_moves_between_a_model_here_and_one_elsewhere(
    openai: OpenAIModel, opened: Opened, tmp_path: Path
) -> None:
    from tests.unit.session.fakes import fake_loom

    with fake_loom(tmp_path / "home") as here:
        chat = here.session("Answer.", name="moving", fidelity="splice")
        note = here.load_text("Whales swim.\n", name="whales")
        chat.activate(note.id)
        chat.generate("one two three", max_tokens=4, temperature=0.0)
        said = chat.history()[0].answer
    with opened(openai.name) as elsewhere:
        chat = elsewhere.session(name="moving")
        assert chat.fidelity is Fidelity.EXACT
        chat.generate("four five six")
        assert [line.partition(": ")[2] for line in contents(openai)[1:]] == ["one two three", said, "four five six"]
        assert "Whales swim." in contents(openai)[0]
    with fake_loom(tmp_path / "home") as here:
        chat = here.session(name="moving")
        assert [turn.user for turn in chat.history()] == ["one two three", "four five six"]
        chat.generate("and now?", max_tokens=4, temperature=0.0)


def test_old_turns_are_summed_up_by_the_model_itself(openai: OpenAIModel, opened: Opened) -> None:
    chat = opened(openai.name, context=2000).session()
    for number in range(8):
        chat.generate(f"turn {number}: " + "and many more words to tell of the red door " * 6, max_tokens=20)
    openai.say = lambda _: ["The ", "red ", "door ", "was ", "told ", "of ", "many ", "times."]
    result = chat.compress()
    assert isinstance(result, CompressionResult)
    assert "red door was told of" in result.summary
    assert result.num_tokens_after < result.num_tokens_before
    chat.generate("one two three")
    assert any("red door was told of" in line for line in contents(openai))
    assert any("turn 0" in line.text for line in chat.ledger())
    chat.undo()
    chat.undo()
    assert len(chat.history()) == 8
    chat.clear(turns=range(1, 8))
    with pytest.raises(CompressionError, match="nothing to compress"):
        chat.compress(strategy="truncate")


@pytest.mark.parametrize("said", [[], ["   ", "\n"]])
def test_a_model_that_sums_up_nothing_leaves_the_first_sentences(
    openai: OpenAIModel, opened: Opened, said: list[str]
) -> None:
    chat = opened(openai.name, context=2000).session()
    for number in range(8):
        chat.generate(f"Turn {number} is here. " + "And many more words to tell of the red door. " * 6, max_tokens=20)
    openai.say = lambda _: said
    result = chat.compress()
    assert isinstance(result, CompressionResult)
    assert result.is_fallback
    assert "Turn 0" in result.summary
    assert any("Turn 0" in line.text for line in chat.ledger())


def test_a_purged_chunk_is_gone_from_what_is_sent(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name)
    chat = loom.session()
    note = loom.load_text("Whales swim.\n", name="whales")
    chat.activate(note.id)
    chat.generate("one two three")
    loom.purge("whales")
    chat.generate("four five six")
    assert not any("Whales" in line for line in contents(openai))
    loom.gc()
    assert list(loom.verify()) == []


# -- what cannot be had ---------------------------------------------------------------------------------------------


def test_what_needs_kv_is_refused_and_says_why(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name)
    chat = loom.session()
    loom.load_text("Whales swim.\n", name="whales")
    attempts = (
        lambda: chat.set_fidelity("splice"),
        lambda: loom.session(fidelity="blend"),
        lambda: chat.next_logits("and?"),
        chat.tokens,
        lambda: loom.offload("whales"),
        lambda: loom.save("whales"),
        lambda: loom.restore("whales"),
    )
    for attempt in attempts:
        with pytest.raises(EngineUnsupportedError, match="whose KV cannot be read, written or moved"):
            attempt()
    with pytest.raises(EngineUnsupportedError, match="does not count tokens, nor show the prompt"):
        chat.prompt()
    with pytest.raises(UsageError, match="no fidelity"):
        chat.set_fidelity("magic")
    status = loom.status()
    assert (status.can_move_kv, status.can_rotate, status.fidelity) == (False, False, Fidelity.EXACT)
    assert "KV is the server's own business" in status.why_not


@pytest.mark.parametrize("values", [{"kv_type": "q8_0"}, {"fidelity": "splice"}])
def test_opening_with_what_needs_kv_is_refused(openai: OpenAIModel, tmp_path: Path, values: dict[str, str]) -> None:
    with pytest.raises(EngineUnsupportedError, match="cannot be had"):
        kvloom.open(model=openai.name, home=tmp_path, **values)  # type: ignore[arg-type]


def test_an_erased_chunk_comes_back_without_kv(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name)
    note = loom.load_text("Whales swim.\n", name="whales")
    loom.erase("whales")
    assert loom.restore("whales") == 0
    assert [chunk.id for chunk in loom.chunks()] == [note.id]
    assert all(part.token_ids == () and part.num_tokens for part in loom.chunk("whales").parts)


def test_a_profile_made_with_kv_is_used_without_its_fidelity(
    openai: OpenAIModel, opened: Opened, tmp_path: Path
) -> None:
    from tests.unit.session.fakes import fake_loom

    file = tmp_path / "whales.txt"
    file.write_text("Whales swim.\n")
    with fake_loom(tmp_path / "home") as here:
        chat = here.session(fidelity="splice")
        chat.load(file)
        here.save_profile("sea", chat)
    loom = opened(openai.name)
    chat = loom.session()
    loom.use_profile("sea", chat)
    assert chat.fidelity is Fidelity.EXACT
    assert len(chat.manifest.active_chunk_ids) == 1


def test_an_address_without_a_model_takes_the_only_one(server: Server, openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(f"{server.url}/v1")
    assert loom.session().generate("one two three").text == "one two three "
    assert loom.model_name == openai.name
    server.routes["GET /v1/models"] = lambda _: as_json({"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(ModelNotFoundError, match=r"serves 2 models.*\(a, b\)"):
        opened(f"{server.url}/v1")
