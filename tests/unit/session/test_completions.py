"""Requests without a session, on the fake engine: the same replies as a session's, shared, apart, cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvloom.errors import ContextOverflowError, UsageError
from kvloom.session.completions import IDLE_TOKENS
from kvloom.session.loom import Loom
from kvloom.session.requests import (
    ChatMessage,
    ChatPrompt,
    ChunkPart,
    Completion,
    RawPrompt,
    Request,
    TextPart,
)
from kvloom.types import Fidelity, SamplingParams
from tests.unit.session.crowd import alone, crowd_of
from tests.unit.session.fakes import RecurrentEngine, engine_of, fake_loom

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=2048) as opened:
        yield opened


def said(role: str, *parts: str | ChunkPart) -> ChatMessage:
    return ChatMessage(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def chat(*messages: ChatMessage, max_tokens: int = 12, **values: object) -> Request:
    return Request(ChatPrompt(messages), max_tokens, GREEDY, **values)  # type: ignore[arg-type]


def complete(loom: Loom, request: Request) -> Completion:
    stream = loom.complete(request)
    text = "".join(delta.text for delta in stream if not delta.is_reasoning)
    assert text == stream.result.text
    return stream.result


def test_a_request_is_answered_as_a_session_answers_it(loom: Loom) -> None:
    session = loom.session(system="Answer.")
    wanted = session.generate("what is it?", max_tokens=12, temperature=0.0)
    found = complete(loom, chat(said("system", "Answer."), said("user", "what is it?")))
    assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason)
    assert found.usage.prompt_tokens == wanted.usage.prompt_tokens


def test_the_count_beforehand_is_the_count_of_the_reply(loom: Loom) -> None:
    request = chat(said("system", "Answer."), said("user", "a long question " * 60))
    assert loom.prepare(request).num_prompt_tokens == complete(loom, request).usage.prompt_tokens


def test_a_conversation_that_goes_on_computes_only_what_is_new(loom: Loom) -> None:
    first = chat(said("system", "Answer."), said("user", "a long question " * 60))
    reply = complete(loom, first)
    assert isinstance(first.prompt, ChatPrompt)
    second = chat(*first.prompt.messages, said("assistant", reply.text), said("user", "and then?"))
    usage = complete(loom, second).usage
    assert usage.computed_tokens < 40
    assert usage.reused_tokens == usage.prompt_tokens - usage.computed_tokens


def test_a_prompt_with_a_beginning_in_common_shares_it_by_blocks(loom: Loom) -> None:
    text = "the same beginning, over and over " * 30
    complete(loom, Request(RawPrompt(text + "one"), 4, GREEDY))
    usage = complete(loom, Request(RawPrompt(text + "other"), 4, GREEDY)).usage
    assert usage.reused_tokens >= 768
    assert usage.computed_tokens < 300


def test_requests_at_once_give_what_they_give_one_after_another(loom: Loom, tmp_path: Path) -> None:
    requests = [chat(said("user", f"question {number} " * (3 + 9 * number)), max_tokens=20) for number in range(8)]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = complete(loom, requests[number]).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with fake_loom(tmp_path / "other", context=2048) as other:
        assert found == {number: complete(other, requests[number]).text for number in range(8)}


def test_a_document_that_many_ask_about_at_once_is_computed_once_and_held_once(loom: Loom) -> None:
    document = "a line of the document that everybody reads\n" * 20
    computed: list[int] = []

    def ask(number: int) -> None:
        computed.append(
            complete(loom, chat(said("system", document), said("user", f"question {number}"))).usage.computed_tokens
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed)[-2] < 300, "one computed the document, the others only their own end"
    num_document = loom.count(document)
    assert engine_of(loom).used_cells() < 1.5 * num_document + 8 * 60


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers_before_any_work(loom: Loom) -> None:
    before = engine_of(loom).num_decoded_tokens
    with pytest.raises(ContextOverflowError, match="maximum context length is 2048 tokens") as refused:
        loom.complete(chat(said("user", "word " * 1000)))
    assert refused.value.num_window_tokens == 2048
    assert engine_of(loom).num_decoded_tokens == before


@pytest.mark.parametrize("policy", ["fifo", "sliding_window", "keep_first", "adaptive"])
def test_a_policy_that_was_asked_for_says_what_it_dropped(loom: Loom, policy: str) -> None:
    talk = [said("system", "Answer.")]
    for number in range(40):
        talk += [said("user", f"question {number} with some words"), said("assistant", f"answer {number} and words")]
    request = chat(*talk, said("user", "what was question 3?"), overflow=policy)
    found = complete(loom, request)
    assert found.dropped
    assert found.usage.prompt_tokens + 12 <= 2048
    assert {one.role for one in found.dropped} == {"user", "assistant"}
    assert all(0 < one.index < len(talk) for one in found.dropped)


def test_what_cannot_be_dropped_is_refused_under_any_policy(loom: Loom) -> None:
    with pytest.raises(ContextOverflowError):
        loom.complete(chat(said("user", "one"), said("assistant", "two"), said("user", "word " * 900), overflow="fifo"))
    with pytest.raises(UsageError):
        loom.complete(chat(said("user", "a"), said("assistant", "b"), said("user", "word " * 390), overflow="no-such"))


def test_a_chunk_in_a_message_is_placed_from_its_own_kv(loom: Loom) -> None:
    chunk = loom.load_text("a text that is known\n" * 20, name="known.txt")
    ask = chat(said("user", "read this:", ChunkPart(chunk.id), "what is it?"), fidelity=Fidelity.SPLICE)
    complete(loom, ask)
    again = chat(
        said("user", "please read this, which stands elsewhere:", ChunkPart("known.txt"), "well?"),
        fidelity=Fidelity.SPLICE,
    )
    found = complete(loom, again)
    assert found.usage.rotated_tokens + found.usage.reused_tokens >= chunk.num_tokens
    assert found.is_approximate
    assert found.reused_chunks == (chunk.id,)


def test_text_of_a_known_chunk_is_recognised_in_a_plain_message(loom: Loom) -> None:
    text = "".join(f"line {number} of a file that was loaded once\n" for number in range(12))
    chunk = loom.load_text(text, name="known.txt")
    plain = chat(said("user", f"look at this:\n{text}\nwhat is it?"), fidelity=Fidelity.SPLICE)
    asked = chat(said("user", f"look at this:\n{text}\nwhat is it?"), fidelity=Fidelity.SPLICE, recognises=True)
    elsewhere = chat(said("user", f"in another place {text}"), fidelity=Fidelity.SPLICE, recognises=True)
    assert complete(loom, plain).reused_chunks == ()
    assert complete(loom, asked).reused_chunks == (chunk.id,)
    found = complete(loom, elsewhere)
    assert found.usage.computed_tokens < 60
    assert found.usage.rotated_tokens >= loom.count(text) - 8
    loom.erase(chunk.id)
    assert complete(loom, elsewhere).reused_chunks == ()
    loom.restore(chunk.id)
    assert complete(loom, elsewhere).reused_chunks == (chunk.id,)
    loom.purge(chunk.id)
    assert complete(loom, elsewhere).reused_chunks == ()


def test_what_is_recognised_changes_no_reply_in_exact(loom: Loom, tmp_path: Path) -> None:
    text = "".join(f"line {number} of a file that was loaded once\n" for number in range(12))
    loom.load_text(text, name="known.txt")
    asked = chat(said("user", f"look at this:\n{text}\nwhat is it?"), recognises=True)
    found = complete(loom, asked)
    assert not found.is_approximate
    with fake_loom(tmp_path / "other") as other:
        assert complete(other, asked).text == found.text


def test_a_closed_reply_ends_soon_and_leaves_nothing_busy(loom: Loom) -> None:
    stream = loom.complete(chat(said("user", "tell me everything"), max_tokens=1500))
    next(stream)
    stream.close()
    list(stream)
    assert stream.result.finish_reason in ("cancelled", "stop")
    assert not loom.device.num_busy()
    assert not loom.device.batcher.num_streams


def test_log_probabilities_are_those_of_the_model_and_the_chosen_one_is_on_top_when_greedy(loom: Loom) -> None:
    found = complete(loom, chat(said("user", "what is it?"), top_logprobs=3))
    assert found.logprobs
    for one in found.logprobs:
        assert one.top[0].token == one.token
        assert [alternative.logprob for alternative in one.top] == sorted((a.logprob for a in one.top), reverse=True)
        assert one.logprob <= 0
    assert b"".join(one.data for one in found.logprobs).decode() == found.text


def test_more_requests_than_cells_wait_for_each_other(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", context=1024) as loom:
        done: list[str] = []

        def ask(number: int) -> None:
            request = chat(said("user", f"question {number} " * 50), max_tokens=200)
            done.append(complete(loom, request).finish_reason)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(done) == 8


# -- tenants --------------------------------------------------------------------------------------------------------


def test_no_tenant_finds_what_another_has_computed(loom: Loom) -> None:
    request = chat(said("system", "a long system text " * 30), said("user", "what?"))
    one, other = loom.tenant("one"), loom.tenant("other")
    assert complete(one, request).usage.reused_tokens == 0
    assert complete(one, request).usage.reused_tokens > 0
    for stranger in (other, loom):
        usage = complete(stranger, request).usage
        assert (usage.reused_tokens, usage.loaded_tokens) == (0, 0)


def test_no_tenant_sees_chunks_or_sessions_of_another(loom: Loom) -> None:
    one, other = loom.tenant("one"), loom.tenant("other")
    chunk = one.load_text("a secret of the first\n" * 5, name="secret.txt")
    session = one.session(name="talk")
    assert [known.id for known in one.chunks()] == [chunk.id]
    assert other.chunks() == loom.chunks() == []
    assert other.sessions() == loom.sessions() == []
    with pytest.raises(Exception, match="no chunk"):
        other.resolve(chunk.id)
    with pytest.raises(Exception, match="session"):
        other.session(id=session.id)


def test_a_tenant_finds_its_own_again_after_a_restart(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home") as loom:
        chunk = loom.tenant("one").load_text("kept\n" * 20, name="kept.txt")
        loom.tenant("one").session(name="talk").generate("what?", max_tokens=5)
    with fake_loom(tmp_path / "home") as loom:
        assert [known.id for known in loom.tenant("one").chunks()] == [chunk.id]
        assert loom.tenant("one").session(name="talk").history()
        kept = loom.gc()
        assert loom.tenant("one").session(name="talk").warm().computed_tokens == 0
        assert kept.num_entries >= 0


# -- a crowd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [1536, 2560])
def test_a_crowd_that_comes_and_goes_gets_the_replies_of_the_lonely(tmp_path: Path, context: int) -> None:
    with fake_loom(tmp_path / "home", context=context, ram_budget_bytes=1_500_000) as loom:
        crowd = crowd_of(loom, num_clients=6, seconds=4.0, seed=context)
        assert not crowd.errors
        assert not loom.device.num_busy()
        assert not loom.device.batcher.num_streams
    assert crowd.num_left
    with fake_loom(tmp_path / "other", context=context) as other:
        assert crowd.replies == {number: {alone(other, int(number))} for number in crowd.replies}


# -- engines whose state cannot be taken apart ----------------------------------------------------------------------


def talk_of(loom: Loom, *questions: str, max_tokens: int = 12) -> list[Completion]:
    """A conversation as clients hold it: everything that was said comes with each question."""
    said_so_far, replies = [said("system", "Answer. " * 30)], list[Completion]()
    for question in questions:
        said_so_far.append(said("user", question))
        replies.append(complete(loom, chat(*said_so_far, max_tokens=max_tokens)))
        said_so_far.append(said("assistant", replies[-1].text))
    return replies


def test_a_conversation_that_goes_on_continues_a_state_that_cannot_be_taken_apart(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", RecurrentEngine()) as loom:
        replies = talk_of(loom, "what? " * 60, "and then?", "and why?")
        for reply in replies[1:]:
            assert reply.usage.computed_tokens < 40
            assert reply.usage.reused_tokens == reply.usage.prompt_tokens - reply.usage.computed_tokens > 360
        assert len({owner for owner, _ in loom.device.residents()}) == 1, "the state went over, and is there once"
    with fake_loom(tmp_path / "other") as other:
        assert [one.text for one in replies] == [
            one.text for one in talk_of(other, "what? " * 60, "and then?", "and why?")
        ]


def test_such_a_state_is_longer_than_what_others_keep_and_goes_when_its_cells_are_needed(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", RecurrentEngine(num_cells=4096), context=4096 - 640) as loom:
        first, second = talk_of(loom, "what? " * 400, "and then?")
        assert first.usage.prompt_tokens > IDLE_TOKENS
        assert second.usage.computed_tokens < 40
        assert complete(loom, chat(said("user", "word " * 500), max_tokens=40)).usage.reused_tokens == 0
        assert not loom.device.num_busy()


def test_conversations_at_once_go_on_in_their_own_states(tmp_path: Path) -> None:
    found: dict[int, list[Completion]] = {}
    asked = {number: [f"question {number} " * 20, f"and {number}?", f"or {number}?"] for number in range(5)}
    with fake_loom(tmp_path / "home", RecurrentEngine(num_cells=8192)) as loom:

        def hold(number: int) -> None:
            found[number] = talk_of(loom, *asked[number])

        threads = [threading.Thread(target=hold, args=(number,)) for number in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for replies in found.values():
        assert all(reply.usage.computed_tokens < 60 for reply in replies[1:])
    with fake_loom(tmp_path / "other") as other:
        for number, replies in found.items():
            assert [one.text for one in replies] == [one.text for one in talk_of(other, *asked[number])]


def test_what_another_tenant_has_computed_is_not_continued(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", RecurrentEngine()) as loom:
        talk_of(loom.tenant("one"), "what? " * 60, "and then?")
        assert all(not reply.usage.reused_tokens for reply in talk_of(loom.tenant("other"), "what? " * 60)[:1])


@pytest.mark.parametrize("other", ["another beginning", "what? " * 60 + "with another end"])
def test_a_state_is_continued_by_what_begins_with_all_of_it_only(tmp_path: Path, other: str) -> None:
    with fake_loom(tmp_path / "home", RecurrentEngine()) as loom:
        talk_of(loom, "what? " * 60)
        assert talk_of(loom, other)[0].usage.reused_tokens == 0
        again = talk_of(loom, "what? " * 60, "and then?")
        assert again[1].usage.computed_tokens < 40
