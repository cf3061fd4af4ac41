"""Vectors beside the words' index: what is embedded once, what is near, and both orders in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvloom.errors import IndexDamagedError, UsageError
from kvloom.index import Found, LibraryIndex, Vectors
from kvloom.index.vectors import fused
from kvloom.types import ChunkId, F32Array
from tests.unit.index.texts import document

_TOPICS = (("car", "automobile", "engine"), ("bread", "flour", "oven"), ("sea", "ocean", "wave"))


class Topics:
    """An embedder that knows three topics and their synonyms; counts what it was given."""

    def __init__(self) -> None:
        self.num_texts = 0

    def __call__(self, texts: Sequence[str]) -> F32Array:
        self.num_texts += len(texts)
        rows = [[0.1 + sum(word in text.lower() for word in topic) for topic in _TOPICS] for text in texts]
        return np.array(rows, np.float32) * 7


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LibraryIndex]:
    with LibraryIndex.open(tmp_path / "books.sqlite3") as opened:
        opened.update(
            [
                document("car.md", "The car has a strong engine.\n"),
                document("bread.md", "Bread comes from the oven.\n"),
                document("sea.md", "A wave in the sea.\n"),
            ]
        )
        yield opened


def test_a_text_without_a_word_of_the_question_is_found_by_its_meaning(index: LibraryIndex) -> None:
    vectors = Vectors("topics", Topics())
    assert vectors.update(index)
    assert index.search("automobile") == []
    found = index.search("automobile", vectors=vectors)
    assert found[0].document == "car.md"
    assert found[0].words == ()
    assert found[0].similarity is not None and found[0].similarity > 0.9


def test_each_passage_is_embedded_once_and_forgotten_with_its_document(index: LibraryIndex) -> None:
    embed = Topics()
    vectors = Vectors("topics", embed)
    vectors.update(index)
    vectors.update(index)
    assert embed.num_texts == 3
    index.update([document("flour.md", "Flour.")])
    index.remove("sea.md")
    vectors.update(index)
    assert embed.num_texts == 4
    assert {found.document for found in index.search("ocean", vectors=vectors)} == {"flour.md", "car.md", "bread.md"}


def test_embedding_can_be_stopped_and_goes_on(index: LibraryIndex) -> None:
    index.update([document(f"{n}.md", f"Text number {n}.") for n in range(100)])
    embed, told = Topics(), [0]
    vectors = Vectors("topics", embed)
    assert not vectors.update(index, lambda p: told.append(p.num_passages), lambda: told[-1] > 0)
    assert vectors.update(index)
    assert embed.num_texts == index.num_passages == 103


def test_a_passage_first_in_both_orders_has_the_score_one(index: LibraryIndex) -> None:
    vectors = Vectors("topics", Topics())
    vectors.update(index)
    found = index.search("bread and flour from the oven", vectors=vectors)
    assert found[0].document == "bread.md"
    assert found[0].score == pytest.approx(1.0)


def test_without_vectors_of_this_embedder_words_alone_answer(index: LibraryIndex) -> None:
    found = index.search("bread", vectors=Vectors("never updated", Topics()))
    assert [f.document for f in found] == ["bread.md"]
    assert index.search(" ", vectors=Vectors("never updated", Topics())) == []


def test_another_number_of_dimensions_under_one_name_is_refused(index: LibraryIndex) -> None:
    Vectors("topics", Topics()).update(index)
    with pytest.raises(UsageError, match=r"topics gives 2 dimensions, .* have 3"):
        index.search("car", vectors=Vectors("topics", lambda texts: np.ones((len(texts), 2), np.float32)))


def test_an_embedder_that_gives_another_number_of_rows_is_refused(index: LibraryIndex) -> None:
    with pytest.raises(UsageError, match="for 3 texts"):
        Vectors("broken", lambda texts: np.ones((1, 2), np.float32)).update(index)


def test_vectors_of_different_lengths_are_damage(index: LibraryIndex) -> None:
    vectors = Vectors("topics", Topics())
    vectors.update(index)
    index._file.execute("UPDATE vectors SET vector = x'0102' WHERE id = (SELECT min(id) FROM vectors)")
    with pytest.raises(IndexDamagedError, match="vectors of topics differ in length"):
        index.search("car", vectors=vectors)


def test_fusion_rewards_places_in_both_orders() -> None:
    def found(name: str, words: tuple[str, ...]) -> Found:
        return Found(ChunkId(name), f"{name}.md", 1, 1, "", name, score=0.5, words=words, coverage=0.5)

    by_words = [found("a", ("x",)), found("b", ("x",)), found("c", ())]
    order = fused(by_words, [(ChunkId("c"), 0.9), (ChunkId("b"), 0.8)], 3)
    assert [f.id for f in order] == ["b", "a", "c"]
    assert [f.similarity for f in order] == [0.8, None, 0.9]
