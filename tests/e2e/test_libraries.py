"""Libraries on a real model: a text fifty times the window, and what is said in one line of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvloom
from kvloom.session.libraries import Library
from kvloom.session.loom import Loom
from kvloom.session.values import Progress
from kvloom.types import TierName
from tests.tiny_gguf import TinyModel, write_tiny

pytestmark = pytest.mark.e2e

WINDOW = 1024
TIMES = 50
WORDS = (
    "harbour pier wind sail market bread stone river garden winter lamp bridge letter horse candle window street "
    "captain island forest mountain barrel school winter shepherd meadow"
)
FACTS = {
    "What is the name of the lighthouse keeper of Varnholm?": (
        "The name of the lighthouse keeper of Varnholm is Ottokar.", "Ottokar"
    ),
    "What colour is the door of the mill of Quillfen?": (
        "The colour of the door of the mill of Quillfen is purple.", "purple"
    ),
    "In which year was the clock of Oldenmoor built?": ("The clock of Oldenmoor was built in the year 1731.", "1731"),
}  # fmt: skip
SYSTEM = "Answer from the files, in a few words."


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other are slower than one where other tests share the cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOOM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 1,500 paragraphs of the same words, with three facts far apart."""
    chosen, facts = random.Random(7), dict(zip((300, 700, 1100), (fact for fact, _ in FACTS.values()), strict=True))
    parts, words = [], WORDS.split()
    for number in range(1500):
        line = " ".join(chosen.choice(words) for _ in range(40)).capitalize()
        parts.append(f"## Part {number}\n\n{line}. {facts.get(number, '')}\n")
    path = tmp_path_factory.mktemp("book") / "book.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def opened(model: Path, home: Path) -> Loom:
    return kvloom.open(model, context=WINDOW, home=home)


def test_facts_of_a_text_fifty_times_the_window_are_found_and_cited_and_never_computed_again(
    qwen_path: Path, book: Path, tmp_path: Path
) -> None:
    with opened(qwen_path, tmp_path) as loom:
        assert loom.count(book.read_text()) > TIMES * WINDOW
        library = loom.library("books")
        library.add(book)
        with loom.session(system=SYSTEM, name="talk", fidelity="splice") as chat:
            chat.attach(library)
            lines = book.read_text().splitlines()
            for question, (fact, answer) in FACTS.items():
                reply = chat.generate(question, max_tokens=24, temperature=0.0)
                cited = lines[reply.sources[0].first_line - 1 : reply.sources[0].last_line]
                assert fact in "\n".join(cited)
                assert answer in reply.text
                assert chat.manifest.num_tokens <= WINDOW
            nothing = chat.generate("Xylophone quasar zeppelin?", max_tokens=4, temperature=0.0)
            assert nothing.sources == ()

    question, (_, answer) = next(iter(FACTS.items()))
    with opened(qwen_path, tmp_path) as loom, loom.session(system=SYSTEM, fidelity="splice") as chat:
        assert [one.name for one in loom.libraries()] == ["books"]
        chat.attach("books")
        reply = chat.generate(question, max_tokens=24, temperature=0.0)
        assert answer in reply.text
        assert {source.tier for source in reply.sources} == {TierName.DISK}
        assert reply.usage.computed_tokens < min(source.num_tokens for source in reply.sources)


# -- a model that is computed in a moment -----------------------------------------------------------------------------

NUM_COMPUTED = 40
"""Passages of the long document that are computed ahead: all thousand of them take as many times longer."""


def test_an_edited_paragraph_of_a_megabyte_costs_the_kv_of_two_passages_at_most(tmp_path: Path) -> None:
    chosen, words = random.Random(3), WORDS.split()
    paragraphs = [
        f"{' '.join(chosen.choice(words) for _ in range(90)).capitalize()}, paragraph {number}."
        for number in range(1700)
    ]
    path = tmp_path / "long.md"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    assert path.stat().st_size > 1_000_000
    model = write_tiny(tmp_path / "tiny.gguf", TinyModel())
    with kvloom.open(model, context=4096, home=tmp_path / "home") as loom:
        library = loom.library("long")
        added = library.add(path)
        assert added.num_passages_added > 500
        seen: list[Progress] = []
        first = library.precompute(seen.append, lambda: bool(seen) and seen[-1].done >= NUM_COMPUTED)
        num_passages = first.num_passages
        assert NUM_COMPUTED <= first.num_computed < num_passages / 2
        assert computed_again(library, first.num_computed) == 0

        edited = paragraphs.copy()
        edited[20] = "This paragraph is another one. " * 4
        path.write_text("\n\n".join(edited), encoding="utf-8")
        updated = library.add(path)
        assert updated.num_passages_added <= 2
        assert updated.num_passages_kept >= num_passages - 2
        assert 1 <= computed_again(library, first.num_computed) <= 2


def computed_again(library: Library, num_first: int) -> int:
    """How many of a library's first passages are computed by going on, one passage at a time."""
    num_computed = 0
    while True:
        done = library.precompute(max_tokens=1)
        if done.num_known + done.num_computed > num_first or not done.num_computed:
            return num_computed
        num_computed += done.num_computed
