"""Libraries behind an endpoint: passages go along as text, as chunks do there; nothing is computed ahead."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvloom.errors import EngineUnsupportedError
from kvloom.types import TierName
from tests.unit.remote.conftest import Opened
from tests.unit.remote.models import OpenAIModel

FACT = "The lighthouse keeper of Varnholm is called Ottokar Brimblewick."
FILLER = "The market sells bread and fish and the square is full of people who talk about the weather. "


def test_a_question_takes_its_passages_to_the_endpoint(openai: OpenAIModel, opened: Opened, tmp_path: Path) -> None:
    book = tmp_path / "book.md"
    book.write_text("".join(f"# Part {n}\n\n{FILLER * 6}{FACT if n == 20 else ''}\n\n" for n in range(60)))
    loom = opened(openai.name, context=4000)
    library = loom.library("books")
    library.add(book)
    chat = loom.session()
    chat.attach(library)
    reply = chat.generate("Who is the lighthouse keeper of Varnholm?")
    assert [source.tier for source in reply.sources] == [TierName.UNKNOWN] * len(reply.sources)
    assert any(FACT in loom.catalog.text(source.chunk) for source in reply.sources)
    assert chat.manifest.num_tokens <= chat.window
    assert FACT in chat.loom.catalog.text(chat.manifest.active_chunk_ids[0])
    nothing = chat.generate("Xylophone quasar zeppelin?")
    assert nothing.sources == ()
    with pytest.raises(EngineUnsupportedError, match="searched all the same"):
        library.precompute()
