"""The demonstrations: what they measure adds up, their pictures fit a terminal, and they leave nothing behind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvloom.cli.demos import DemoName, Stage, find, kv, pictures, slide, truncate, window
from kvloom.cli.demos.story import story
from kvloom.reduce.windows import windows
from tests.unit.cli.conftest import Kvloom
from tests.unit.session.fakes import fake_loom

WIDTH = 80


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with fake_loom(tmp_path / "home", context=1024) as loom:
        yield Stage(loom, lambda _text: None, lambda _progress: None)


@pytest.fixture
def large_stage(tmp_path: Path) -> Iterator[Stage]:
    """Its vocabulary has a token for nearly every letter: three texts take a larger window."""
    with fake_loom(tmp_path / "large", context=4096) as loom:
        yield Stage(loom, lambda _text: None, lambda _progress: None)


def shown(name: DemoName, report: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(find(name).view(report))
    return captured.get()


@given(num_tokens=st.integers(1, 3000), seed=st.integers(0, 5))
def test_a_story_has_its_three_facts_once_each_and_in_order(num_tokens: int, seed: int) -> None:
    told = story(words, num_tokens, seed)
    assert [fact.mark for fact in told.facts] == ["A", "B", "C"]
    places = [fact.place for fact in told.facts]
    assert places == sorted(places)
    for fact in told.facts:
        assert told.text.count(fact.answer) == 1
        assert told.text[fact.place :].split("\n")[0].endswith(f"{fact.answer}.")
    assert told.num_tokens == words(told.text) >= min(num_tokens, 24)
    assert told.num_tokens <= num_tokens + 80
    assert story(words, num_tokens, seed) == told


def test_the_facts_of_a_long_story_stand_at_its_beginning_middle_and_end() -> None:
    told = story(words, 2000)
    first, second, third = (fact.place / len(told.text) for fact in told.facts)
    assert 0 < first < 0.1
    assert 0.45 < second < 0.55
    assert 0.9 < third < 1


@given(st.lists(st.integers(0, 500), min_size=1, max_size=5), st.integers(1, 2000))
def test_a_bar_is_never_wider_than_its_place(numbers: list[int], total: int) -> None:
    bar = pictures.stacked([("x", "", number) for number in numbers], total)
    assert len(bar.plain) == pictures.WIDTH
    if any(numbers):
        assert "x" in bar.plain


def test_coverage_shows_what_lies_in_a_span() -> None:
    bar = pictures.coverage(600, [(0, 300), (590, 600)]).plain
    assert bar == pictures.SEEN * 30 + pictures.UNSEEN * 29 + pictures.SEEN


def test_a_reply_cannot_steer_the_terminal_from_a_picture() -> None:
    assert pictures.shortened("a\x1b[2Jb\n" + "c" * 100, 10) == "a\ufffd[2Jb cc…"


def test_the_window_refuses_what_is_too_much_and_takes_it_when_it_is_larger(stage: Stage) -> None:
    report = window.run(stage)
    small, refused, fitted, larger = report.steps
    assert report.num_tokens > stage.loom.window
    assert small.seen[0][1] < fitted.seen[0][1] < report.num_chars
    assert not refused.seen and not refused.asked
    assert str(stage.loom.window) in refused.refused
    assert refused.used < small.used - small.num_text_tokens + 1
    assert larger.seen == ((0, report.num_chars),)
    assert larger.window == 2 * refused.window
    for step in (small, fitted, larger):
        assert step.refused == ""
        assert [one.mark for one in step.asked] == ["A", "B", "C"]
        assert step.num_text_tokens < step.used <= step.window - step.reserve
    picture = shown(DemoName.WINDOW, report)
    assert "refused: the context would hold" in picture
    assert f"{larger.used:,} of {larger.window:,} tokens used" in picture


def test_each_cut_keeps_its_end_and_stays_within_the_budget(stage: Stage) -> None:
    report = truncate.run(stage)
    whole, head, tail, both = report.cuts
    end = report.num_chars
    assert whole.kept == ((0, end),)
    assert head.kept[0][0] == 0 and head.kept[0][1] < end / 2
    assert tail.kept[0][1] == end and tail.kept[0][0] > end / 2
    assert (both.kept[0][0], both.kept[1][1]) == (0, end)
    assert all(cut.num_tokens <= report.budget and cut.num_removed_tokens for cut in (head, tail, both))
    assert all(len(cut.asked) == 3 for cut in report.cuts)
    picture = shown(DemoName.TRUNCATE, report)
    assert "the tail stays" in picture
    assert pictures.UNSEEN in picture


def test_windows_cover_the_whole_text_and_an_overlap_reads_more(stage: Stage) -> None:
    report = slide.run(stage)
    plain, overlapping = report.passes
    for one in report.passes:
        assert (one.parts[0].start, one.parts[-1].stop) == (0, report.num_chars)
        assert all(left.stop >= right.start for left, right in zip(one.parts, one.parts[1:], strict=False))
        assert all(part.num_tokens <= report.size for part in one.parts)
        assert one.num_read_tokens == sum(part.num_tokens for part in one.parts)
    assert len(overlapping.parts) > len(plain.parts)
    assert overlapping.num_read_tokens > plain.num_read_tokens
    assert "overlap 50%" in shown(DemoName.SLIDE, report)


def test_a_code_on_a_border_is_in_no_window_without_an_overlap(stage: Stage) -> None:
    report = slide.run(stage)
    plain, overlapping = report.passes
    assert not any("B" in part.held for part in plain.parts)
    assert any("B" in part.held for part in overlapping.parts)
    assert any("C" in part.held for part in plain.parts)
    assert "the sentence of B is cut in two" in " ".join(shown(DemoName.SLIDE, report).split())


@pytest.mark.parametrize("chars_per_token", [1, 3, 5])
def test_a_code_is_laid_across_a_border_in_any_vocabulary(chars_per_token: int) -> None:
    def count(text: str) -> int:
        return -(-len(text) // chars_per_token)

    told = story(count, slide.TEXT_TOKENS, marks=slide.MARKS)
    laid = slide.across_a_border(told, count)
    for before, after in zip(told.facts, laid.facts, strict=True):
        line = told.text[before.place :].split("\n")[0]
        assert "".join(laid.text[after.place :].split()).startswith("".join(line.split()))
    starts = [one.start for one in windows(laid.text, slide.SIZE, 0.0, count)]
    assert any(laid.text[start:].startswith(laid.facts[0].answer + ".") for start in starts)


def test_a_window_that_made_up_a_code_is_marked(stage: Stage) -> None:
    report = slide.run(stage)
    plain = report.passes[0]
    told = replace(plain.parts[0], reply="It is 6936.", found=("C",))
    made_up = replace(plain.parts[1], reply="It is 46.", found=())
    picture = shown(DemoName.SLIDE, replace(report, passes=(replace(plain, parts=(told, made_up)), report.passes[1])))
    assert "✓ C lines 1-" in picture
    assert any("✗ lines" in line and "It is 46." in line for line in picture.splitlines())


def test_each_reply_of_the_kv_is_whole_and_marked_right_or_wrong(large_stage: Stage) -> None:
    report = kv.run(large_stage)
    codes = [step.expected for step in report.steps]
    assert len(set(codes)) == 4, "three codes, and one that was changed"
    assert report.full.expected == codes[-1] != codes[3]
    right = "The code of the room behind the eastern stairs is, as the keeper has written down there, 8383."
    steps = (
        replace(report.steps[0], reply=right, expected="8383", is_right=True),
        replace(report.steps[1], reply="It is 9624.", expected="9703", is_right=False),
    )
    picture = shown(DemoName.KV, replace(report, steps=steps + report.steps[2:]))
    assert f"✓ {right}" in picture
    assert "✗ It is 9624. (the code is 9703)" in picture
    assert "Splice is approximate" in picture


def test_the_tokens_that_are_told_are_grouped(tmp_path: Path) -> None:
    said: list[str] = []
    with fake_loom(tmp_path / "home", context=1024) as loom:
        window.run(Stage(loom, said.append, lambda _progress: None))
    assert any("tokens in a window of 1,024" in line for line in said)


def test_only_what_is_new_is_computed(large_stage: Stage) -> None:
    report = kv.run(large_stage)
    first, again, off, on, moved, edited = report.steps
    for step in (*report.steps, report.full):
        assert step.prompt_tokens == step.reused_tokens + step.loaded_tokens + step.computed_tokens
        assert step.rotated_tokens <= step.loaded_tokens
    assert first.computed_tokens > report.text_tokens * 0.9
    assert again.computed_tokens < first.computed_tokens / 2
    assert off.off_tokens > 0
    assert off.prompt_tokens + off.off_tokens > again.prompt_tokens * 0.9
    assert on.off_tokens == 0
    assert on.computed_tokens < first.computed_tokens / 2
    assert moved.rotated_tokens > 0
    assert again.computed_tokens < edited.computed_tokens < report.full.computed_tokens
    assert report.token_bytes > 0
    assert "switched off" in shown(DemoName.KV, report)


@pytest.mark.parametrize("name", list(DemoName))
def test_a_picture_fits_a_terminal_of_80_columns(name: DemoName, large_stage: Stage) -> None:
    picture = shown(name, find(name).run(large_stage))
    bars = [line.rstrip() for line in picture.splitlines() if pictures.SEEN in line or pictures.UNSEEN in line]
    assert bars
    assert max(map(len, bars)) <= WIDTH
    assert "what to learn" in picture


def test_the_command_prints_one_document_and_leaves_the_home_alone(
    kvloom: Kvloom, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_HOME", str(tmp_path / "home"))
    ran = kvloom("demo", "kv", "--json", "--model", tiny_model, loom=False)
    assert ran.code == 0, ran.err
    assert [step["title"] for step in ran.document["steps"]][1] == "another question"
    assert ran.document["full"]["computed_tokens"] > 0
    assert not (tmp_path / "home").exists()


def test_the_command_shows_a_picture_and_what_to_learn(kvloom: Kvloom, tiny_model: Path) -> None:
    ran = kvloom("demo", "slide", "--model", tiny_model, "--context", "1024", loom=False)
    assert ran.code == 0, ran.err
    assert "overlap 0%" in ran.out
    assert "what to learn" in ran.out


def test_a_demonstration_takes_no_home(kvloom: Kvloom, tmp_path: Path) -> None:
    ran = kvloom("demo", "window", "--home", tmp_path / "home", loom=False)
    assert ran.code != 0
    assert "uses a temporary home" in ran.err


def test_a_demonstration_takes_no_files(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("demo", "window", "--file", files[0])
    assert ran.code != 0
    assert "brings its own text" in ran.err


def test_an_unknown_name_is_refused_with_the_ones_there_are(kvloom: Kvloom) -> None:
    ran = kvloom("demo", "windows", loom=False)
    assert ran.code == 2
    assert "truncate" in ran.err
