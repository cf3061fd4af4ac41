"""What `bench room` plants, counts and scores, on the deterministic engine; which of its cases a run has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvloom.bench import remembering, room
from kvloom.bench.facts import MAX_FACTS, MAX_SMALL_TALK, Fact, facts, small_talk
from kvloom.bench.paired import wilson_low
from kvloom.bench.remembering import ENDLESS, ENDLESS_QUICK, Asked, EndlessSize, endless_row, recall_of, scores
from kvloom.bench.report import Report
from kvloom.bench.setting import Request
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError
from kvloom.session.loom import Loom
from kvloom.session.values import Progress
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.session.fakes import fake_loom

SMALL = EndlessSize(num_facts=4, num_turns=20, window=1024)


@pytest.fixture
def loom(tmp_path: Path) -> Iterator[Loom]:
    with fake_loom(tmp_path / "home", context=SMALL.window, compression={"enabled": False}) as opened:
        yield opened


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def tell(told: list[Progress]) -> Teller:
    return Teller("room", 3, told.append)


def test_small_talk_is_new_each_time_and_has_no_code_of_a_fact() -> None:
    said = [small_talk(number) for number in range(MAX_SMALL_TALK)]
    assert len(set(said)) == MAX_SMALL_TALK >= ENDLESS.num_turns - ENDLESS.num_facts
    assert not any(fact.is_in(text) for fact in facts(MAX_FACTS) for text in said)
    assert any("bicycles" in text for text in said), "it names what the facts are about, too"
    with pytest.raises(ValueError, match=f"there is {MAX_SMALL_TALK}"):
        small_talk(MAX_SMALL_TALK)


@pytest.mark.parametrize("size", [ENDLESS, ENDLESS_QUICK, SMALL, EndlessSize(7, 24, 512), EndlessSize(5, 5, 512)])
def test_facts_stand_at_equal_distances_each_in_one_turn(size: EndlessSize) -> None:
    places = {turn: fact for turn in range(size.num_turns) if (fact := size.fact_at(turn)) is not None}
    assert list(places.values()) == list(range(size.num_facts))
    gaps = {after - before for before, after in zip(list(places), list(places)[1:], strict=False)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("facts", "turns"), [(61, 60), (MAX_FACTS + 1, 900), (1, MAX_SMALL_TALK + 2)])
def test_a_size_that_cannot_be_is_refused_with_the_numbers(facts: int, turns: int) -> None:
    with pytest.raises(UsageError, match=f"{turns} turns"):
        ENDLESS.but(facts, turns, None)
    assert ENDLESS.but(None, None, 2048) == replace(ENDLESS, window=2048)


def test_scores_count_what_plain_sight_answers_and_what_had_left() -> None:
    asked = [
        *(Asked(is_right=True, is_plain=True, is_out=True, is_back=True) for _ in range(17)),
        *(Asked(is_right=True, is_plain=True, is_out=False, is_back=False) for _ in range(2)),
        Asked(is_right=False, is_plain=True, is_out=True, is_back=False),
        Asked(is_right=True, is_plain=False, is_out=False, is_back=False),
    ]
    found = scores(asked)
    assert (found["right"], found["plain"], found["kept"]) == (20, 20, 19), "luck beside plain sight does not count"
    assert (found["out"], found["out_plain"], found["out_kept"], found["out_back"]) == (18, 18, 17, 17)
    assert found["recall"] == 0.95
    assert found["recall_low"] == wilson_low(19, 20) == pytest.approx(0.764, abs=0.001)
    assert found["recall_high"] == pytest.approx(0.991, abs=0.001)
    nothing = scores([])
    assert (nothing["recall"], nothing["recall_low"], nothing["recall_high"]) == (0.0, 0.0, 1.0)


def test_an_endless_conversation_outgrows_its_window_and_every_fact_is_asked(
    loom: Loom, tell: Teller, told: list[Progress]
) -> None:
    row = endless_row(loom, SMALL, tell).document()
    assert (row["case"], row["planted"], row["turns"], row["window"], row["target"]) == ("endless", 4, 20, 1024, 0.9)
    assert row["said_tokens"] > 1.5 * SMALL.window
    assert 0 < row["left"] < SMALL.num_turns, "some stand to the end"
    assert 0 < row["out"] <= 4
    assert (row["plain"], row["right"], row["speedup"]) == (0, 0, 0.0), "this engine does not understand a word"
    assert 0 < row["prompt_tokens"] <= 4 * SMALL.window
    assert row["computed_tokens"] > 0
    assert row["ours_s"] > 0 and row["chat_s"] > 0
    assert told[-1].done == told[-1].total == 3
    assert len(told) == 3 + 10


def test_a_turn_that_left_comes_back_for_its_question(loom: Loom, tell: Teller) -> None:
    row = endless_row(loom, SMALL, tell).document()
    assert row["out_back"] == row["out"], "the question has the fact's own words"
    assert row["came_back"] >= row["out_back"]
    assert row["loaded_tokens"] > 0, "as KV, not computed again"


def test_what_is_answered_is_told_by_the_fact(loom: Loom, tell: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    always = [replace(fact, answer="") for fact in facts(4)]
    monkeypatch.setattr(remembering, "facts", lambda number: always[:number])
    row = endless_row(loom, SMALL, tell)
    assert (row.extra["right"], row.extra["plain"], row.extra["kept"]) == (4, 4, 4)
    assert (row.speedup, row.is_met) == (1.0, True)


def test_a_policy_is_asked_for_every_planted_fact(loom: Loom) -> None:
    planted = [
        Fact("The boat is blue.", "What is the boat?", ""),
        Fact("The tent is red.", "What is the tent?", "red!"),
    ]
    found = recall_of(loom, "fifo", planted)
    assert (found.num_right, found.num_compressions) == (1, 0)


def test_chosen_cases_are_measured_on_a_model_each_in_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_tiny(tmp_path / "tiny.gguf", TinyModel(context=4096)))
    monkeypatch.setattr(room, "QUICK", replace(room.QUICK, endless=EndlessSize(1, 3, 512), num_facts=1))
    request = Request(model, quick=True, threads=1, progress=lambda _: None)
    report = room.run(request, "resize,endless,facts")
    assert [row.case for row in report.rows] == ["resize-up-and-down", "facts-adaptive", "endless"]
    assert report.rows[0].extra["is_identical"]
    assert report.setup["left_out"] == ["restore", "compression"]
    alone = room.run(request, "endless")
    assert [row.case for row in alone.rows] == ["endless"]
    assert (alone.setup["model_name"], alone.rows[0].extra["turns"]) == (report.setup["model_name"], 3)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The cases of the runs; nothing is measured."""
    found: list[tuple[str, ...]] = []

    def noted(*given: object) -> tuple[dict[str, object], list[object]]:
        found.append(given[3])  # type: ignore[arg-type]
        return {}, []

    monkeypatch.setattr(room, "_measured", noted)
    return found


def run(cases: str | None = None, **size: int) -> Report:
    return room.run(Request(quick=True, progress=lambda _: None), cases, **size)


def test_endless_is_only_run_where_it_is_named(measured: list[tuple[str, ...]]) -> None:
    report = run()
    assert report.setup["left_out"] == ["endless"]
    assert report.notes[0] == "left out of this run: endless."
    named = run("endless, resize", facts=2, turns=9)
    assert measured == [("restore", "compression", "resize", "facts"), ("resize", "endless")]
    assert str(named.setup["command"]).endswith("--cases 'endless, resize' --facts 2 --turns 9")
    with pytest.raises(UsageError, match="there is no case 'endles'; choose of restore, compression"):
        run("endles")
    with pytest.raises(UsageError, match="add --cases endless"):
        run(window=512)
    with pytest.raises(UsageError, match="3 facts in 2 turns"):
        run("endless", facts=3, turns=2)
