"""Conversations over real models whose state cannot be taken apart: the next request continues it where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import kvloom
from kvloom.session.loom import Loom
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.session.fakes import fake_settings
from tests.unit.session.test_completions import chat, complete, said, talk_of

MODELS = {
    "recurrent": TinyModel(arch="mamba"),
    "sliding-window": TinyModel(arch="gemma3", num_layers=6, sliding_window=64),
}


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def loom(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loom]:
    path = write_tiny(tmp_path / "tiny.gguf", request.param)
    with kvloom.open(model=path, home=tmp_path / "home", settings=fake_settings(context=1024)) as opened:
        assert not opened.engine.capabilities.can_move_kv
        yield opened


def test_a_real_conversation_continues_the_state_that_stands(loom: Loom) -> None:
    replies = talk_of(loom, "what is it? " * 10, "and then?", "and why?", max_tokens=8)
    for before, reply in pairwise(replies):
        assert reply.usage.reused_tokens >= before.usage.prompt_tokens
        assert reply.usage.computed_tokens < 60
    beside = complete(loom, chat(said("user", "something else"), max_tokens=4))
    assert not beside.usage.reused_tokens
    assert not loom.device.num_busy()


def test_what_is_continued_says_what_a_whole_prefill_says(loom: Loom, tmp_path: Path) -> None:
    questions = ("what is it? " * 10, "and then?")
    continued = talk_of(loom, *questions, max_tokens=8)
    with loom.device.lock:
        loom.device.drop_idle("request-", 0)
    messages = [
        said("system", "Answer. " * 30), said("user", questions[0]), said("assistant", continued[0].text),
        said("user", questions[1]),
    ]  # fmt: skip
    whole = complete(loom, chat(*messages, max_tokens=8))
    assert not whole.usage.reused_tokens
    assert whole.text == continued[1].text
