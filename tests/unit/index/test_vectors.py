"""Vectors beside the words' index: what is embedded once, what is near, and both orders in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvloom.chunk.content import content_id
from kvloom.errors import IndexDamagedError, UsageError
from kvloom.index import Found, LibraryIndex, Vectors
from kvloom.index.vectors import NEAR_WEIGHT, Near, fused
from kvloom.types import F32Array
from tests.unit.index.texts import document
from tests.unit.index.topics import Topics


class Ones(Topics):
    """Gives other numbers of rows and dimensions than it should."""

    def __init__(self, num_rows: int, num_dimensions: int) -> None:
        super().__init__()
        self.shape = (num_rows, num_dimensions)

    def _rows(self, texts: Sequence[str]) -> F32Array:
        return np.ones(self.shape, np.float32)


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


def ids(index: LibraryIndex) -> set[bytes]:
    return {key for (key,) in index._file.rows("SELECT id FROM vectors")}


def test_a_text_without_a_word_of_the_question_is_found_where_its_vector_is_near_enough(index: LibraryIndex) -> None:
    vectors = Vectors(Topics())
    assert vectors.update(index)
    assert index.search("automobile") == []
    (found,) = index.search("automobile", vectors=vectors)
    assert (found.document, found.words, found.is_near) == ("car.md", (), True)
    assert found.similarity is not None and found.similarity > 0.9


def test_vectors_that_find_nothing_by_themselves_only_order(index: LibraryIndex) -> None:
    embedder = Topics()
    embedder.least_similarity = 2.0
    vectors = Vectors(embedder)
    vectors.update(index)
    index.update([document("oven.md", "The car has an oven and flour and bread.\n")])
    vectors.update(index)
    assert index.search("automobile", vectors=vectors) == []
    by_words = index.search("car in the ocean")
    found = index.search("car in the ocean", vectors=vectors)
    assert {one.document for one in found} == {one.document for one in by_words} == {"car.md", "oven.md"}
    assert all(one.similarity is not None for one in found)


def test_each_passage_is_embedded_once_and_forgotten_with_its_document(index: LibraryIndex) -> None:
    embedder = Topics()
    vectors = Vectors(embedder)
    vectors.update(index)
    vectors.update(index)
    assert embedder.num_texts == 3
    index.update([document("flour.md", "Flour.")])
    index.remove("sea.md")
    assert vectors.num_missing(index) == 1
    vectors.update(index)
    assert embedder.num_texts == 4
    assert vectors.num_missing(index) == 0
    assert ids(index) == {bytes.fromhex(passage.id) for passage in index.passages()}


def test_a_vector_stays_while_another_document_has_the_text(index: LibraryIndex) -> None:
    index.update([document("copy.md", "A wave in the sea.\n")])
    Vectors(Topics()).update(index)
    index.remove("sea.md")
    assert len(ids(index)) == 3
    index.remove("copy.md")
    assert len(ids(index)) == 2


def test_a_purged_text_leaves_no_vector_of_any_embedder(index: LibraryIndex) -> None:
    for name in ("one", "another"):
        Vectors(Topics(name)).update(index)
    gone = next(index.passages("sea.md")).id
    index.forget(gone)
    assert bytes.fromhex(gone) not in ids(index)
    assert len(ids(index)) == 2


def test_embedding_can_be_stopped_and_goes_on(index: LibraryIndex) -> None:
    index.update([document(f"{n}.md", f"Text number {n}.") for n in range(100)])
    embedder, told = Topics(), [0]
    vectors = Vectors(embedder)
    assert not vectors.update(index, lambda p: told.append(p.num_passages), lambda: told[-1] > 0)
    assert 0 < vectors.num_missing(index) < 103
    assert vectors.update(index)
    assert embedder.num_texts == index.num_passages == 103


def test_a_text_that_leaves_while_it_is_embedded_leaves_no_vector(index: LibraryIndex) -> None:
    class Purging(Topics):
        def embed(self, texts: Sequence[str]) -> F32Array:
            index.remove("sea.md")
            return super().embed(texts)

    Vectors(Purging()).update(index)
    assert ids(index) == {bytes.fromhex(passage.id) for passage in index.passages()}
    assert len(ids(index)) == 2


def test_another_embedder_s_vectors_are_its_own(index: LibraryIndex) -> None:
    Vectors(Topics("one")).update(index)
    other = Vectors(Topics("another"))
    assert other.num_missing(index) == 3
    found = index.search("bread", vectors=other)
    assert [(one.document, one.similarity) for one in found] == [("bread.md", None)]
    assert index.search(" ", vectors=other) == []


def test_a_passage_first_in_both_orders_has_the_highest_score_that_there_is(index: LibraryIndex) -> None:
    vectors = Vectors(Topics())
    vectors.update(index)
    (alone, *_) = index.search("bread and flour from the oven")
    (found, *_) = index.search("bread and flour from the oven", vectors=vectors)
    assert found.document == "bread.md"
    assert found.score == pytest.approx(alone.score)


def test_another_number_of_dimensions_under_one_name_is_refused(index: LibraryIndex) -> None:
    Vectors(Topics()).update(index)
    with pytest.raises(UsageError, match=r"topics gives 2 dimensions, .* have 3"):
        index.search("car", vectors=Vectors(Ones(1, 2)))


def test_an_embedder_that_gives_another_number_of_rows_is_refused(index: LibraryIndex) -> None:
    with pytest.raises(UsageError, match="for 3 texts"):
        Vectors(Ones(1, 2)).update(index)


def test_vectors_of_different_lengths_are_damage(index: LibraryIndex) -> None:
    vectors = Vectors(Topics())
    vectors.update(index)
    index._file.execute("UPDATE vectors SET vector = x'0102' WHERE id = (SELECT min(id) FROM vectors)")
    with pytest.raises(IndexDamagedError, match="vectors of topics differ in length"):
        index.search("car", vectors=vectors)


def test_what_is_near_gains_a_share_of_the_best_and_nothing_is_taken_away() -> None:
    def found(text: str, score: float) -> Found:
        return Found(content_id(text.encode()), f"{text}.md", 1, 1, "", text, score=score, words=("x",), coverage=0.5)

    scored = [found("a", 0.5), found("b", 0.45), found("c", 0.2)]
    cosines = {scored[1].id: 0.9, scored[2].id: 0.1, content_id(b"d"): 0.3}
    keys = sorted(bytes.fromhex(chunk) for chunk in cosines)
    near = Near(keys, np.array([{bytes.fromhex(c): v for c, v in cosines.items()}[key] for key in keys], np.float32))
    order = fused(scored, near, 3, lambda _: 1.0)
    assert [one.text for one in order] == ["b", "a", "c"]
    assert [one.score * (1 + NEAR_WEIGHT) for one in order] == pytest.approx([0.45 + 0.5 * NEAR_WEIGHT, 0.5, 0.2])
    assert [one.text for one in fused(scored, near, 3, lambda _: 0.1)] == ["a", "b", "c"]


class Broken(Topics):
    """Gives a row of `number` for each text that holds `word`."""

    def __init__(self, word: str, number: float) -> None:
        super().__init__()
        self.word, self.number = word, number

    def _rows(self, texts: Sequence[str]) -> F32Array:
        rows = super()._rows(texts)
        rows[[self.word in text for text in texts]] = self.number
        return rows


@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38])
def test_a_vector_that_is_no_number_counts_as_zeros(index: LibraryIndex, number: float) -> None:
    vectors = Vectors(Broken("oven", number))
    assert vectors.update(index)
    (near,) = index.search("ocean", 3, vectors)
    assert (near.document, near.is_near) == ("sea.md", True)
    (found,) = index.search("bread", 3, vectors)
    assert (found.document, found.similarity, found.words) == ("bread.md", 0, ("bread",))
    assert all(0 < one.score <= 1 for one in (near, found))


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_question_without_a_vector_goes_by_its_words(index: LibraryIndex, number: float) -> None:
    vectors = Vectors(Broken("bread?", number))
    assert vectors.update(index)
    (found,) = index.search("bread?", 3, vectors)
    assert (found.document, found.similarity) == ("bread.md", 0)
    assert 0 < found.score <= 1


def test_stored_vectors_that_are_no_numbers_count_as_zeros(index: LibraryIndex) -> None:
    vectors = Vectors(Topics())
    assert vectors.update(index)
    index._file.execute("UPDATE vectors SET vector = ?", (np.full(3, np.nan, "<f2").tobytes(),))
    (found,) = index.search("bread", 3, vectors)
    assert (found.document, found.similarity) == ("bread.md", 0)


def test_a_document_named_alone_gives_its_first_passages_beside_vectors(index: LibraryIndex) -> None:
    embedder = Topics()
    vectors = Vectors(embedder)
    assert vectors.update(index)
    (by_vector,) = index.search("What does sea.md say about the ocean?", 3, vectors)
    assert (by_vector.document, by_vector.is_near) == ("sea.md", True)
    embedder.least_similarity = np.inf
    (opening,) = index.search("What is in bread.md?", 3, vectors)
    assert (opening.document, opening.score, opening.coverage) == ("bread.md", 1, 1)
    assert opening.similarity == pytest.approx(1, abs=0.01)
