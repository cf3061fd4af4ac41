"""What is shown of a conversation with a model elsewhere, what its settings do, and compression behind one's back."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Mapping

import pytest
from rich.console import Console, RenderableType

import kvloom
from kvloom.cli.context_stats import context_stats
from kvloom.cli.context_view import context_rows, context_view
from kvloom.cli.output import jsonable
from kvloom.cli.panels import chunks_table, usage_line
from kvloom.cli.standing import read_standing
from kvloom.cli.stats_view import stats_view
from kvloom.engine.remote.engine import STAND_IN_TEMPLATE
from kvloom.errors import EngineUnsupportedError
from kvloom.session.session import Session
from kvloom.types import Fidelity, TierName
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import OpenAIModel
from tests.unit.remote.server import Server, as_json

SUMMARY = ["The ", "red ", "door ", "was ", "told ", "of."]
Messages = list[Mapping[str, str]]
MANY_WORDS = "and many more words to tell of the red door " * 5


def text_of(view: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140, markup=False, highlight=False).print(view)
    return stream.getvalue()


# -- looking --------------------------------------------------------------------------------------------------------


def test_the_state_of_a_segment_is_the_endpoints_and_estimates_are_marked(openai: OpenAIModel, opened: Opened) -> None:
    openai.gives_usage = False
    loom = opened(openai.name, context=2000)
    chat = loom.session()
    chunk = loom.load_text("Whales swim.\n", name="whales")
    chat.activate(chunk.id)
    reply = chat.generate("one two three")
    usage = chat.usage()
    assert {segment.tier for segment in usage.segments} == {TierName.UNKNOWN}
    assert all(segment.is_estimate and segment.restore_s is None for segment in usage.segments)
    shown = text_of(context_view(usage, loom.status(), read_standing(loom, chat), "work"))
    assert "at the endpoint" in shown
    assert "to compute" not in shown
    assert "Cells" not in shown, "none of its cells are ours"
    assert f"~{usage.used:,} / 2,000 tokens" in shown
    assert all(f"~{row.num_tokens}" in shown for row in context_rows(usage.segments))
    assert "are estimates" in shown
    assert all(row["is_estimate"] for row in jsonable(context_rows(usage.segments)))
    assert jsonable(usage)["is_estimate"] is True
    stats = text_of(stats_view(usage, loom.status(), context_stats(usage, chat.history(), chat.ledger())))
    assert f"at the endpoint ~{usage.used:,} tokens" in stats
    assert usage_line(reply.usage).count("~") == 3
    assert chunk.is_estimate
    assert jsonable(loom.chunks())[0]["is_estimate"] is True
    assert f"~{chunk.num_tokens}" in text_of(chunks_table(loom.chunks()))
    chat.clear()
    assert {line.tier for line in chat.ledger()} == {TierName.UNKNOWN}


def test_what_a_server_counts_is_not_marked(openai: OpenAIModel, server: Server, opened: Opened) -> None:
    props = {"chat_template": STAND_IN_TEMPLATE, "default_generation_settings": {"n_ctx": 512}}
    server.routes["GET /props"] = lambda _: as_json(props)
    server.routes["POST /tokenize"] = lambda asked: as_json({"tokens": asked.body["content"].split()})
    server.routes["POST /apply-template"] = lambda asked: as_json(
        {"prompt": " ".join(message["content"] for message in asked.body["messages"])}
    )
    loom = opened(openai.name)
    chat = loom.session()
    usage = chat.usage()
    assert not usage.is_estimate
    assert not any(segment.is_estimate for segment in usage.segments)
    shown = text_of(context_view(usage, loom.status(), read_standing(loom, chat), "work"))
    assert "~" not in shown
    assert "at the endpoint" in shown


# -- compression ----------------------------------------------------------------------------------------------------


def is_summary(messages: Messages) -> bool:
    """Whether a request is for a summary: the questions of these tests begin otherwise."""
    return not messages[-1]["content"].startswith(("turn number", "one two"))


def fill_until(chat: Session, begun: threading.Event) -> None:
    """Turns until a summary is asked for."""
    for number in range(30):
        chat.generate(f"turn number {number}: {MANY_WORDS}", max_tokens=20)
        # The next question ends a summary that is under way: once one has begun, its request is waited for.
        while chat.is_compressing and not begun.wait(0.05):
            pass
        if begun.is_set():
            return
    raise AssertionError("no compression has begun by itself")


def test_old_turns_are_summed_up_in_the_background(openai: OpenAIModel, opened: Opened) -> None:
    begun = threading.Event()

    def say(messages: Messages) -> list[str]:
        if not is_summary(messages):
            return ["Yes."]
        begun.set()
        return SUMMARY

    openai.say = say
    chat = opened(openai.name, context=1200, overflow={"policy": "fifo"}).session()
    fill_until(chat, begun)
    assert chat.wait_for_compression(20)
    replaced = [turn for turn in chat.history() if turn.replaces]
    assert len(replaced) == 1
    assert "red door was told of" in replaced[0].answer
    assert {line.ref for line in chat.ledger()} >= set(replaced[0].replaces)
    assert chat.snapshots(), "what was replaced can be gone back to"
    chat.generate("one two three")
    assert any("red door was told of" in message["content"] for message in openai.sent()[-1]["messages"])
    for _ in range(2):
        chat.undo()
    assert not any(turn.replaces for turn in chat.history())


def test_a_question_ends_the_request_of_a_background_summary_which_is_made_again(
    openai: OpenAIModel, server: Server, opened: Opened
) -> None:
    begun, was_ended = threading.Event(), []

    def say(messages: Messages) -> list[str]:
        if is_summary(messages):
            if not begun.is_set():
                openai.hold.clear()  # it stays behind its first word
            begun.set()
            return SUMMARY
        if begun.is_set():
            was_ended.append(server.gone.wait(10))
            openai.hold.set()
        return ["Yes."]

    openai.say = say
    chat = opened(openai.name, context=1200, overflow={"policy": "fifo"}).session()
    fill_until(chat, begun)
    assert chat.is_compressing
    assert chat.generate("one two three").text == "Yes."
    assert was_ended == [True], "the question did not wait for the summary"
    assert chat.wait_for_compression(20)
    assert sum(is_summary(body["messages"]) for body in openai.sent()) == 2
    history = chat.history()
    assert sum(bool(turn.replaces) for turn in history) == 1
    assert history[-1].user == "one two three", "what was said meanwhile stays"


# -- settings that need KV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kv_type": "q8_0"}, "kv_type q8_0"),
        ({"kv_type_v": "q4_0"}, "kv_type_v q4_0"),
        ({"fidelity": "splice"}, "fidelity splice"),
        ({"n_gpu_layers": 12, "fidelity": "blend"}, "fidelity blend, n_gpu_layers 12"),
    ],
)
def test_a_setting_that_needs_kv_is_warned_of_by_its_value(
    openai: OpenAIModel, opened: Opened, caplog: pytest.LogCaptureFixture, values: dict[str, object], said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        loom = opened(openai.name, **values)
    assert [record.message for record in caplog.records] == [
        f"{said}: without effect, the model's KV is the business of the server behind {openai.name.partition('#')[0]}"
    ]
    assert loom.session().fidelity is Fidelity.EXACT


@pytest.mark.parametrize("values", [{}, {"fidelity": "exact"}])
def test_what_asks_for_no_kv_is_not_warned_of(
    openai: OpenAIModel, opened: Opened, caplog: pytest.LogCaptureFixture, values: dict[str, object]
) -> None:
    opened(openai.name, **values)
    assert not caplog.records


@pytest.mark.parametrize(("name", "value"), [("kv_type", "q8_0"), ("fidelity", "splice"), ("fidelity", Fidelity.BLEND)])
def test_what_is_asked_for_by_name_and_needs_kv_is_refused(
    openai: OpenAIModel, tmp_path: object, name: str, value: object
) -> None:
    with pytest.raises(EngineUnsupportedError, match=f"{name} .* cannot be had: the KV of a model behind http"):
        kvloom.open(model=openai.name, home=tmp_path, **{name: value})  # type: ignore[arg-type]
