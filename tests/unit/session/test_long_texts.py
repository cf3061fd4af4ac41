"""Texts longer than the window on the fake engine: nothing of it is in conversations, and replies stay in the home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvloom
from kvloom.errors import CancelledError, ContentError, ContextOverflowError, UsageError
from kvloom.reduce.asking import MemoryResults
from kvloom.session.long_texts import read_files, split_by_content
from kvloom.session.loom import Loom
from kvloom.session.results import StoredResults
from kvloom.session.values import Progress
from tests.unit.reduce.models import ScriptedModel, told_facts
from tests.unit.session.fakes import fake_loom

TEXT = "\n\n".join(f"Paragraph {number} tells of fact{number}. It is plain, and short." for number in range(40))


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=2048) as opened:
        yield opened


def test_a_pass_of_windows_leaves_nothing_in_conversations(loom: Loom) -> None:
    session = loom.session()
    session.generate("hello", max_tokens=4, temperature=0.0)
    before = (loom.sessions(), session.tokens(), loom.chunks())
    found = kvloom.ask_windows(TEXT, "Which facts?", loom, size=800, overlap=0.5, max_tokens=20)
    assert len(found.replies) == found.num_asked > 4
    assert (loom.sessions(), session.tokens(), loom.chunks()) == before


def test_windows_are_counted_by_the_model(loom: Loom) -> None:
    found = kvloom.ask_windows(TEXT, "Which?", loom, size=800, overlap=0.5, max_tokens=20)
    assert all(loom.count(one.window.text) == one.window.num_tokens <= 800 for one in found.replies)
    laid = kvloom.windows(TEXT, 800, 0.5, loom.count)
    assert [one.window for one in found.replies] == list(laid)


def test_what_was_asked_is_kept_in_the_home_over_a_restart(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home") as first:
        found = kvloom.ask_windows(TEXT, "Which?", first, size=800, combine="answer", max_tokens=20)
    with fake_loom(tmp_path / "home") as second:
        again = kvloom.ask_windows(TEXT, "Which?", second, size=800, combine="answer", max_tokens=20)
    assert (again.num_asked, again.text) == (0, found.text)
    others: list[dict[str, Any]] = [{"system": "Otherwise."}, {"kv_type_v": "q8_0"}]
    for other in others:
        with fake_loom(tmp_path / "home", **other) as third:
            assert kvloom.ask_windows(TEXT, "Which?", third, size=800, max_tokens=20).num_found == 0


def test_a_pass_that_was_cancelled_goes_on_where_it_was(loom: Loom) -> None:
    done: list[Progress] = []

    def is_cancelled() -> bool:
        return bool(done) and done[-1].unit == "windows" and done[-1].done >= 2

    with pytest.raises(CancelledError):
        kvloom.ask_windows(TEXT, "Which?", loom, size=800, progress=done.append, is_cancelled=is_cancelled)
    found = kvloom.ask_windows(TEXT, "Which?", loom, size=800, progress=done.append)
    assert found.num_found == 2
    assert (done[-1].done, done[-1].total, done[-1].unit) == (len(found.replies), len(found.replies), "windows")


def test_a_summary_is_made_with_the_loom_and_kept(loom: Loom) -> None:
    first = kvloom.summarize(TEXT, loom, words=60)
    assert first.num_asked > 2
    assert 0 < first.num_words <= 60
    again = kvloom.summarize({"other name": TEXT}, loom, words=60)
    assert (again.num_asked, again.text) == (0, first.text), "a name decides nothing"
    assert loom.sessions() == []


def test_windows_that_do_not_fit_the_loom_are_refused_with_the_numbers(loom: Loom) -> None:
    with pytest.raises(ContextOverflowError, match="room for") as caught:
        kvloom.ask_windows(TEXT, "Which?", loom, size=2040)
    assert caught.value.num_needed_tokens > caught.value.num_window_tokens
    with pytest.raises(UsageError, match="choose one of list, answer"):
        kvloom.ask_windows(TEXT, "Which?", loom, combine="vote")
    with pytest.raises(UsageError, match="words at most"):
        kvloom.summarize(TEXT, loom, words=10_000)


def test_no_loom_is_needed(tmp_path: Path) -> None:
    scripted = ScriptedModel(told_facts)
    summary = kvloom.summarize({"a": TEXT, "b": "fact99 stands alone in this text."}, scripted.model, words=50)
    assert [child.name for child in summary.root.children] == ["a", "b"]
    assert kvloom.ask_windows(TEXT, "Which?", scripted.model, size=200).num_asked > 1
    with StoredResults(tmp_path) as results:
        first = kvloom.summarize(TEXT, scripted.model, words=50, results=results)
        assert kvloom.summarize(TEXT, scripted.model, words=50, results=results).num_asked == 0
        assert results.num_results() == first.num_asked
    memory = MemoryResults()
    kvloom.summarize(TEXT, scripted.model, words=50, results=memory)
    assert kvloom.summarize(TEXT, scripted.model, words=50, results=memory).num_asked == 0


def test_parts_joined_are_the_text_whatever_the_room() -> None:
    for max_tokens in (20, 100, 400, 100_000):
        assert "".join(split_by_content(TEXT, max_tokens)) == TEXT


def test_files_are_read_with_what_gave_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\nText.\n", encoding="utf-8")
    (tmp_path / "b.html").write_text("<html><body><p>Hello there.</p></body></html>", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\x00\x01\x02")
    found = read_files([tmp_path])
    assert [document.name.rpartition("/")[2] for document in found.documents] == ["a.md", "b.html"]
    assert "<p>" not in found.documents[1].text
    assert [one.name.rpartition("/")[2] for one in found.skipped] == ["c.bin"]
    with pytest.raises(ContentError, match=r"c\.bin is binary"):
        read_files([tmp_path / "c.bin"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContentError, match="is an empty folder"):
        read_files([tmp_path / "empty"])


@pytest.mark.parametrize("given", [["a", "b"], None, 5, b"bytes", {"name": None}])
def test_what_is_no_text_is_refused_with_what_is_taken(given: Any) -> None:
    scripted = ScriptedModel(told_facts)
    with pytest.raises(UsageError, match="one text, a mapping of names to texts, or documents"):
        kvloom.summarize(given, scripted.model)
    if not isinstance(given, dict):
        with pytest.raises(UsageError, match="one text, a str; got"):
            kvloom.ask_windows(given, "Which?", scripted.model)


def test_laying_windows_is_progress_before_the_first_question() -> None:
    scripted, seen = ScriptedModel(told_facts), list[Progress]()

    def progress(one: Progress) -> None:
        assert scripted.prompts == [] or one.task == "asking"
        seen.append(one)

    kvloom.ask_windows(TEXT, "Which?", scripted.model, size=100, progress=progress)
    assert seen[0] == Progress("laying windows", 0, len(TEXT), "characters")
    assert Progress("laying windows", len(TEXT), len(TEXT), "characters") in seen


def test_progress_says_what_was_known_from_before() -> None:
    scripted, results = ScriptedModel(told_facts), MemoryResults()
    seen: list[Progress] = []
    first = kvloom.ask_windows(TEXT, "Which?", scripted.model, size=100, results=results)
    kvloom.ask_windows(
        f"{TEXT}\n\nOne more.", "Which?", scripted.model, size=100, results=results, progress=seen.append
    )
    last = seen[-1]
    assert 0 < last.num_known < last.done
    assert last.num_known >= len(first.replies) - 1
