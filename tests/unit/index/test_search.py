"""What a question finds: rare words first, headings, camelCase, scripts without spaces; nothing where nothing is."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.errors import UsageError
from kvloom.index import LibraryIndex
from kvloom.index.question import Terms, file_names, weight, without_file_names
from kvloom.read import DocumentKind
from kvloom.text.words import joined_names
from tests.unit.index.texts import document, prose


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LibraryIndex]:
    with LibraryIndex.open(tmp_path / "books.sqlite3") as opened:
        yield opened


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibraryIndex]:
    texts = {
        "bees.md": "# Bees\n\nBees collect nectar and live in hives. The queen lays the eggs.\n",
        "cats.md": "# Cats\n\nCats hunt mice at night and sleep all day. They live with people.\n",
        "code.py": "def parseHttpHeader(raw_line):\n    return raw_line.split(':')\n",
        "zh.md": "蜜蜂采集花蜜。猫在夜里捉老鼠。\n",
    }
    with LibraryIndex.open(tmp_path_factory.mktemp("animals") / "a.sqlite3") as opened:
        opened.update([document(name, text) for name, text in texts.items()])
        yield opened


def first(index: LibraryIndex, question: str) -> str:
    found = index.search(question)
    return found[0].document if found else ""


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where do bees live?", "bees.md"),
        ("Which animal is collecting nectars?", "bees.md"),
        ("What hunts a mouse, or mice?", "cats.md"),
        ("how is the HTTP header parsed", "code.py"),
        ("rawLine", "code.py"),
        ("猫捉什么?", "zh.md"),
        ("CATS", "cats.md"),
    ],
)
def test_the_passage_that_answers_comes_first(animals: LibraryIndex, question: str, expected: str) -> None:
    assert first(animals, question) == expected


@pytest.mark.parametrize(
    "question", ["", "  ", "?!", "the", "Who are you?", "Quantenchromodynamik", '"', "a OR b*", "\ud800"]
)
def test_nothing_relevant_finds_nothing(animals: LibraryIndex, question: str) -> None:
    assert animals.search(question) == []


def test_an_empty_library_finds_nothing(index: LibraryIndex) -> None:
    assert index.search("Where do bees live?") == []


def test_a_find_says_where_it_stands_and_which_words_it_holds(animals: LibraryIndex) -> None:
    found = animals.search("Where does the queen of zebras lay her eggs?")[0]
    assert (found.document, found.first_line, found.last_line, found.heading) == ("bees.md", 1, 3, "Bees")
    assert found.label == "bees.md:1-3"
    assert found.words == ("queen", "lay", "eggs")
    assert 0.3 < found.coverage < 0.8
    assert 0 < found.score < 1


def test_coverage_tells_an_answer_from_a_word_by_accident(animals: LibraryIndex) -> None:
    answer = animals.search("Do cats hunt mice at night?")[0]
    accident = animals.search("Which quark theory explains confinement at night?")[0]
    assert answer.coverage > 0.9
    assert accident.coverage < 0.4


def test_a_question_of_common_words_alone_is_looked_for_as_it_stands(index: LibraryIndex) -> None:
    index.update(
        [
            document("hamlet.txt", "To be, or not to be, that is the question.\n"),
            document("other.txt", "It is not to be had, or is it? Be that as it may.\n"),
        ]
    )
    assert [found.document for found in index.search("to be or not to be")] == ["hamlet.txt"]


def test_a_heading_is_found_and_weighs_less_than_the_text(index: LibraryIndex) -> None:
    text = f"# Zebras\n\n{prose(6_000)}"
    index.update([document("headed.md", text), document("said.md", "In the text there are zebras, more than one.\n")])
    assert first(index, "zebras") == "said.md"
    under = [found for found in index.search("zebras", 50) if found.document == "headed.md"]
    assert len(under) > 1
    assert all(found.words == ("zebras",) for found in under)


def test_one_text_in_several_documents_is_found_once(index: LibraryIndex) -> None:
    index.update([document(name, "A licence of zebras.\n") for name in ("b.md", "a.md")])
    (found,) = index.search("zebras")
    assert found.document == "a.md"


def test_as_many_as_wanted_come_and_the_best_first(index: LibraryIndex) -> None:
    index.update([document("a.md", prose(200_000))])
    ((word, _),) = Counter(prose(200_000).split()).most_common(1)
    found = index.search(word, 60)
    assert len(found) == 60
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert index.search(word, 3) == found[:3]
    assert len(index.search(word, 2_000)) <= index.num_passages
    with pytest.raises(UsageError, match="at least 1"):
        index.search(word, 0)


def test_changed_texts_are_found_by_their_new_words_only(index: LibraryIndex) -> None:
    index.update([document("a.md", "About zebras.")])
    assert index.search("zebras")
    index.update([document("a.md", "About horses.")])
    assert index.search("zebras") == []
    assert first(index, "horses") == "a.md"


def test_a_very_long_question_is_answered(animals: LibraryIndex) -> None:
    assert first(animals, "nectar hives queen " + prose(100_000)) == "bees.md"


@settings(max_examples=60)
@given(st.text(max_size=80))
def test_no_question_breaks_the_search(animals: LibraryIndex, question: str) -> None:
    for found in animals.search(question):
        assert found.words
        assert 0 <= found.coverage <= 1.0001


def test_a_word_weighs_more_the_rarer_it_is_and_never_less_than_nothing() -> None:
    weights = [weight(num_with, 100) for num_with in (0, 1, 10, 50, 99, 100, 101)]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] > 0


def test_terms_of_a_question_are_those_of_the_index() -> None:
    terms = Terms()
    words = terms.of_question("Running the runners, parseHttpHeader 文字").words
    asked = ["running", "runners", "parse", "http", "header", "文", "字", "parse http header"]
    assert [word.asked for word in words] == asked
    assert [word.term for word in words][:2] == ["run", "runner"]
    (counts,) = terms.counts([("runs", "He ran. Running, running.")], ["run"])
    assert counts == {"run": 2.5}
    terms.close()


def test_search_in_thousands_of_passages_takes_milliseconds(tmp_path: Path) -> None:
    """The bound is generous, for slow machines; `bench retrieval` measures 100,000 passages."""
    with LibraryIndex.open(tmp_path / "large.sqlite3") as index:
        index.update([document(f"{n}.txt", prose(400_000, seed=n), kind=DocumentKind.PROSE) for n in range(4)])
        assert index.num_passages > 600
        draw = random.Random(1)
        vocabulary = prose(50_000).split()
        spent_s = []
        for _ in range(40):
            question = " ".join(draw.choices(vocabulary, k=8))
            start = time.thread_time()
            assert index.search(question)
            spent_s.append(time.thread_time() - start)
        assert statistics.median(spent_s) < 0.1


def test_a_name_of_several_words_counts_more_than_its_words_here_and_there(index: LibraryIndex) -> None:
    scattered = "The default port of the logging config is a port that the default config sets, logging aside. " * 3
    texts = {f"{n}.md": f"{scattered}\nNumber {n}.\n" for n in range(20)} | {
        "config.py": "DEFAULT_LOGGING_PORT = 9030\n"
    }
    index.update([document(name, text) for name, text in texts.items()])
    for question in ("What is DEFAULT_LOGGING_PORT?", "what is defaultLoggingPort", "default.logging.port"):
        best = index.search(question, 3)[0]
        assert best.document == "config.py"
        assert "default logging port" in best.words


@pytest.mark.parametrize(
    "question", ["What is the value of `RETRIES`?", "Which value has 'retries'?", "What does `RETRIES` mean?"]
)
def test_what_says_what_a_name_is_comes_before_what_uses_it(index: LibraryIndex, question: str) -> None:
    use = "for attempt in range(RETRIES): print('attempt', attempt, 'of', RETRIES)\n"
    index.update([
        *(document(f"use{n}.py", f"# {n}\n{use * 3}") for n in range(5)),
        document("limits.py", "# All that others share.\nTIMEOUT = 10\nRETRIES = 7\nDEPTH = 3\n" * 2),
    ])  # fmt: skip
    assert first(index, question) == "limits.py"
    assert first(index, question.replace("`", "").replace("'", "").lower()).startswith("use")


def test_a_name_that_stands_nowhere_takes_nothing_from_its_words(animals: LibraryIndex) -> None:
    (bees, *_) = animals.search("nectar")
    (asked, *_) = animals.search("nectar_hives_queen")
    assert (asked.document, asked.coverage) == ("bees.md", 1.0)
    assert bees.document == "bees.md"


@pytest.mark.parametrize(
    "question",
    [
        "In guide/cats.md, who lives with people?",
        "who lives with people, by cats.md?",
        "CATS.MD: lives with people",
        "guide\\cats.md lives with people",
    ],
)
def test_passages_of_a_document_that_the_question_names_come_first(index: LibraryIndex, question: str) -> None:
    more = {
        f"dogs{n}.md": "Who lives with people? Dogs live with people, and people live with dogs.\n" * n
        for n in range(1, 90)
    }
    texts = {**more, "guide/cats.md": "Of mice.\n\nThey may live near people, or in barns.\n", "cats.txt": "people\n"}
    index.update([document(name, text) for name, text in texts.items()])
    assert first(index, question) == "guide/cats.md"
    assert len({found.document for found in index.search(question)}) > 1  # others are not left out
    assert first(index, "who lives with people") != "guide/cats.md"


def test_a_name_with_signs_of_a_pattern_names_nothing_else(index: LibraryIndex) -> None:
    index.update([document("a_b.md", "Bees fly.\n"), document("axb.md", "Bees fly, and bees hum.\n")])
    assert first(index, "axb.md: bees") == "axb.md"
    assert first(index, "a_b.md: bees") == "a_b.md"


@pytest.fixture(scope="module")
def villages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibraryIndex]:
    """120 documents, every ninth of a bell; `long.md` has several passages."""
    texts = {
        f"notes{n}.md": f"The {'tower' if n % 9 else 'bell'} of village{n} weighs {n} stone.\n" for n in range(120)
    }
    texts["long.md"] = "The first words.\n\n" + prose(8_000)
    with LibraryIndex.open(tmp_path_factory.mktemp("villages") / "a.sqlite3") as opened:
        opened.update([document(name, text) for name, text in texts.items()])
        yield opened


@pytest.mark.parametrize(
    "question", ["What does notes18.md say about the bell?", "Is there a bell in /notes18.md, as notes18.md says?"]
)
def test_the_name_of_a_document_is_no_word_that_its_passages_lack(villages: LibraryIndex, question: str) -> None:
    best, second, *_ = villages.search(question)
    assert (best.document, best.words) == ("notes18.md", ("bell",))
    assert best.coverage == villages.search("What is said about the bell?")[0].coverage > 0.2
    assert best.score > second.score


def test_a_name_that_no_document_has_stays_in_the_question(villages: LibraryIndex) -> None:
    (best, *_) = villages.search("What does village18.md say?")
    assert (best.document, best.words) == ("notes18.md", ("village18",))


def test_a_document_named_alone_gives_its_first_passages(villages: LibraryIndex) -> None:
    found = villages.search("What is in long.md?", 4)
    assert [one.id for one in found] == [one.id for one in list(villages.passages("long.md"))[:4]]
    assert len(found) == 4
    assert all(one.coverage == 1 and one.words == () for one in found)
    scores = [one.score for one in found]
    assert scores == sorted(set(scores), reverse=True)
    assert scores[0] == 1 and scores[-1] > 0.5


def test_a_named_document_without_the_other_words_comes_before_those_that_have_them(villages: LibraryIndex) -> None:
    best, second, *_ = villages.search("What does notes18.md say of a tower?")
    assert (best.document, best.words, best.coverage) == ("notes18.md", (), 0.5)
    assert second.words == ("tower",)
    (alone,) = villages.search("summarize notes18.md")
    assert (alone.document, alone.coverage) == ("notes18.md", 0.5)


def test_a_pasted_page_without_spaces_is_looked_through_at_once() -> None:
    for page in (
        "a" * 200_000,
        "a." * 100_000,
        "/" * 200_000,
        "a.1" * 70_000,
        "ab.cd/" * 33_000,
        ("x" * 299 + " ") * 670,
    ):
        began = time.thread_time()
        names = file_names(f"see notes.md: {page}")
        without_file_names(page, names)
        joined_names(page)
        assert time.thread_time() - began < 1, page[:8]
        assert names[0] == "notes.md"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("notes.md and json/decoder.py.", ("notes.md", "json/decoder.py")),
        ("guide\\cats.md, /guide/cats.md, a.b.c and x.tar.gz", ("guide/cats.md", "a.b.c", "x.tar.gz")),
        ("v1.2 of 3.14, e.g. nothing...", ("e.g",)),
        ("notes.md.2", ("notes.md",)),
        ("a" * 400 + ".md", ()),
    ],
)
def test_names_of_files_are_told_from_other_words(question: str, expected: tuple[str, ...]) -> None:
    assert file_names(question) == expected


def test_only_the_names_that_are_given_leave_a_question() -> None:
    assert without_file_names("of b.md in a\\b.md, b.md?", ["b.md"]).split() == ["of", "in", "a\\b.md,", "?"]
