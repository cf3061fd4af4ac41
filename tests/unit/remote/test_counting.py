"""Counts of a model that is elsewhere: exact where the endpoint counts, else estimates that learn and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvloom.engine.remote.engine import stand_in_ids
from kvloom.errors import ContextOverflowError
from kvloom.session.remote_counting import RemoteCounts
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import OpenAIModel, num_prompt, num_words
from tests.unit.remote.server import Answer, Asked, Server, as_json

PROSE = "The keeper of the light climbs the stairs every evening and looks at the sea for a while. "


def test_stand_ins_are_as_many_as_counted_and_the_same_for_the_same_text() -> None:
    for number in (0, 1, 7, 8, 9, 5000):
        ids = stand_in_ids("a text", number)
        assert len(ids) == number
        assert ids == stand_in_ids("a text", number)
        assert all(0 <= token < 2**31 for token in ids)
        assert number < 2 or ids != stand_in_ids("another", number)


def test_an_estimate_is_marked_everywhere(openai: OpenAIModel, opened: Opened) -> None:
    openai.gives_usage = False
    loom = opened(openai.name, context=512)
    chat = loom.session()
    assert loom.counted("hello").is_estimate
    assert not loom.counts_exactly
    assert "estimated" in loom.status().engine
    reply = chat.generate("one two three")
    assert reply.usage.is_estimate
    assert reply.usage.prompt_tokens > 0
    assert any("estimates" in notice for notice in reply.notices)
    assert chat.usage().is_estimate
    with pytest.raises(ContextOverflowError, match="the numbers are estimates"):
        chat.generate("word " * 3000)
    assert not any("estimates" in notice for notice in chat.generate("and?").notices), "said once"


def test_counts_that_come_back_are_the_servers_and_teach_the_estimate(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name, context=8192)
    chat = loom.session()
    before = loom.counted(PROSE * 9).num_tokens
    wanted = num_words(PROSE * 9)
    for number in range(6):
        reply = chat.generate(f"{number} {PROSE * (number + 3)}")
        assert not reply.usage.is_estimate
        assert reply.usage.prompt_tokens == num_prompt(openai.sent()[-1]["messages"])
    after = loom.counted(PROSE * 9).num_tokens
    assert abs(after - wanted) < abs(before - wanted)
    assert abs(after - wanted) <= 0.06 * wanted
    assert loom.counted(PROSE * 9).is_estimate, "an estimate that has learned is one still"


def test_a_context_is_counted_anew_once_the_estimate_has_moved(openai: OpenAIModel, opened: Opened) -> None:
    loom = opened(openai.name, context=8192)
    chat = loom.session()
    text = "".join(f"def function_{n}(value):\n    return value[{n}] + {{'a': {n}}}[value]\n" for n in range(60))
    chunk = loom.load_text(text, name="code.py")
    chat.activate(chunk.id)
    errors = []
    for number in range(5):
        reply = chat.generate(f"question {number} {PROSE}")
        counted = reply.usage.prompt_tokens + reply.usage.completion_tokens
        errors.append(abs(chat.usage().used - counted) / counted)
    assert errors[-1] < 0.08
    assert errors[-1] <= errors[0]
    assert chat.undo() == "turn", "a count that moves is no change of its own"


def test_what_was_learned_is_kept_for_the_next_time(openai: OpenAIModel, opened: Opened) -> None:
    with opened(openai.name, context=8192) as loom:
        chat = loom.session()
        for number in range(5):
            chat.generate(f"{number} {PROSE * 8}")
        learned = loom.counted(PROSE * 20).num_tokens
    assert opened(openai.name).counted(PROSE * 20).num_tokens == learned


def test_a_damaged_memory_of_counts_is_forgotten(openai: OpenAIModel, opened: Opened, tmp_path: Path) -> None:
    with opened(openai.name) as loom:
        loom.session().generate(PROSE * 8)
    (kept,) = (tmp_path / "home" / "remote").glob("*.json")
    fresh = opened(f"{openai.name}").counted(PROSE).num_tokens
    kept.write_text("{broken")
    assert opened(openai.name).counted(PROSE).num_tokens > 0
    assert fresh > 0


def test_an_estimate_stays_until_all_are_made_anew(openai: OpenAIModel, opened: Opened, tmp_path: Path) -> None:
    loom = opened(openai.name)
    counts = RemoteCounts(loom.endpoint, tmp_path / "learned.json")  # type: ignore[attr-defined]
    first = counts.number(PROSE, False)
    counts.learn(PROSE * 30, num_words(PROSE * 30) * 2)
    assert counts.epoch == 1
    assert counts.number(PROSE, False) > first
    counts.remember(PROSE, 12345)
    assert counts.count(PROSE).num_tokens == 12345
    assert not counts.count(PROSE).is_estimate


def test_special_tokens_in_a_document_count_as_text(openai: OpenAIModel, opened: Opened, tmp_path: Path) -> None:
    counts = RemoteCounts(opened(openai.name).endpoint, tmp_path / "l.json")  # type: ignore[attr-defined]
    assert counts.number("<|im_start|>", True) == 1
    assert counts.number("<|im_start|>", False) > 1


@pytest.mark.parametrize("says_numbers", [True, False])
def test_a_refusal_by_the_server_teaches_the_estimate_and_a_policy_makes_room(
    openai: OpenAIModel, server: Server, opened: Opened, says_numbers: bool
) -> None:
    chat = opened(openai.name, context=600).session()
    chat.policy = "fifo"
    usual, openai.gives_usage = server.routes["POST /v1/chat/completions"], False

    def refusing(asked: Asked) -> Answer:
        needed = num_prompt(asked.body["messages"])
        if needed <= 600:
            return usual(asked)
        numbers = f" of 600 tokens: you requested {needed}" if says_numbers else ""
        return as_json({"error": {"message": f"the input exceeds the context length{numbers}"}}, 400)

    server.routes["POST /v1/chat/completions"] = refusing
    num_refused = 0
    for number in range(24):
        try:
            chat.generate(f"{number} {PROSE}", max_tokens=4)
        except ContextOverflowError:
            num_refused += 1
    assert num_refused <= 4, "it is not refused for ever"
    assert num_prompt(openai.sent()[-1]["messages"]) <= 600
    assert chat.history()[-1].user.startswith("23 ")
