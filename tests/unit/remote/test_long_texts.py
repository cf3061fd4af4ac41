"""Texts longer than the window of a model behind HTTP: asked part by part, kept, and never more than it serves."""

from __future__ import annotations

import kvloom
from tests.unit.reduce.models import told_facts
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import OpenAIModel

TEXT = "\n\n".join(f"Paragraph {number} tells of fact{number}. It is plain, and short." for number in range(120))


def test_windows_and_summaries_fit_what_the_endpoint_serves_and_are_kept(openai: OpenAIModel, opened: Opened) -> None:
    openai.window = 1500  # refuses what is more, by its own count
    openai.say = lambda messages: [f"{word} " for word in told_facts(messages[-1]["content"]).split(" ")]
    loom = opened(openai.name)
    found = kvloom.ask_windows(TEXT, "Which facts?", loom, overlap=0.5, max_tokens=100)
    summary = kvloom.summarize(TEXT, loom, words=60)
    assert len(found.replies) > 2
    assert "fact119" in found.text
    assert len(summary.root.children) > 1
    num_sent = len(openai.sent())
    assert num_sent == found.num_asked + summary.num_asked
    loom.close()
    again = opened(openai.name)
    assert kvloom.ask_windows(TEXT, "Which facts?", again, overlap=0.5, max_tokens=100).text == found.text
    assert kvloom.summarize(TEXT, again, words=60).text == summary.text
    assert len(openai.sent()) == num_sent
    assert again.sessions() == []
