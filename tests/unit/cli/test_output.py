"""Results, errors and progress: as JSON and for people."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kvloom.cli.library_view import explanation
from kvloom.cli.output import Output, ProgressView, error_document, error_text, jsonable, make_console
from kvloom.errors import AmbiguousChunkError, ContextOverflowError, StoreFullError
from kvloom.session.values import Progress, Source
from kvloom.types import ChunkId, Fidelity, TierName


@dataclass(frozen=True)
class Thing:
    tier: TierName
    path: Path
    numbers: tuple[float, ...]


def test_values_become_plain_json() -> None:
    thing = Thing(TierName.DISK, Path("a/b"), (1.5, math.nan))
    assert jsonable(
        {Fidelity.EXACT: [thing], "n": np.int64(3), "row": np.array([1, 2]), "none": None, "yes": True}
    ) == {
        "exact": [{"tier": "disk", "path": "a/b", "numbers": [1.5, None]}],
        "n": 3,
        "row": [1, 2],
        "none": None,
        "yes": True,
    }


def test_what_has_no_json_form_is_refused_and_not_guessed() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        jsonable(object())


def test_with_json_stdout_is_one_document_and_the_view_is_never_made(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)

    def view() -> str:
        raise AssertionError("made for nobody")

    output.note("working")
    with output.progress() as progress:
        progress(Progress("prefill", 1, 2))
    output.emit({"text": "naïve"}, view)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"text": "naïve"}
    assert shown.err == ""


def test_names_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Output().emit({}, "[bold]x[/bold] :smile: " + "y" * 200)
    assert capsys.readouterr().out == "[bold]x[/bold] :smile: " + "y" * 200 + "\n"


def test_an_overflow_carries_its_numbers() -> None:
    error = ContextOverflowError("too long", num_needed_tokens=9000, num_window_tokens=8192)
    assert error_document(error) == {
        "error": {
            "type": "ContextOverflowError",
            "message": "too long",
            "num_needed_tokens": 9000,
            "num_window_tokens": 8192,
        }
    }


def test_an_ambiguous_prefix_lists_its_candidates() -> None:
    error = AmbiguousChunkError("'abcdef' fits 2 chunks", [("abcdef01" * 8, "a.py"), ("abcdef02" * 8, "b.py")])
    assert [item["name"] for item in error_document(error)["error"]["candidates"]] == ["a.py", "b.py"]
    assert "b.py" in error_text(error)


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVLOOM_DEBUG", raising=False)
    Output().error(KeyError("lost"))
    shown = capsys.readouterr().err
    assert "KeyError" in shown
    assert "KVLOOM_DEBUG=1" in shown
    assert "Traceback" not in shown


def test_a_traceback_is_shown_where_it_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_DEBUG", "1")
    try:
        raise KeyError("lost")
    except KeyError as exc:
        Output().error(exc)
    assert "Traceback" in capsys.readouterr().err


def test_an_error_with_json_is_a_document_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).error(StoreFullError("no space left"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err) == {"error": {"type": "StoreFullError", "message": "no space left"}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    stream = Terminal()
    make_console(stream).print("warm", style="red")
    assert "\x1b[31m" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    make_console(stream).print("warm", style="red")
    assert "31m" not in stream.getvalue()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(events: list[tuple[float, Progress]]) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with ProgressView(make_console(stream), clock) as view:
        for now, event in events:
            clock.now = now
            view(event)
    return stream.getvalue().splitlines()


def test_short_work_shows_no_progress_where_there_is_no_terminal() -> None:
    assert lines_of([(0.1, Progress("prefill", 1, 2)), (1.0, Progress("prefill", 2, 2))]) == []


def test_long_work_shows_a_line_every_few_seconds() -> None:
    events = [(float(second), Progress("fetching", second * 1024**2, 20 * 1024**2, "bytes")) for second in range(12)]
    assert lines_of(events) == ["fetching: 5.0 MiB / 20.0 MiB", "fetching: 10.0 MiB / 20.0 MiB"]


def test_on_a_terminal_progress_is_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with ProgressView(make_console(stream)) as view:
        view(Progress("prefill", 512, 1024))
        view(Progress("fetching", 1, 0, ""))
    assert "prefill" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("version",), ("version", "--json"), ("--help",)])
def test_a_full_disk_behind_the_output_is_told_in_words(words: tuple[str, ...], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvloom.cli.main", *words], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "the output cannot be written: No space left on device" in done.stderr
    assert "report it" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_explanation_never_cuts_the_name_of_a_passage() -> None:
    name = "a-folder-of-some-length/and-a-file-with-a-long-name-in-it.markdown"
    source = Source(
        "books", name, 1, 20, "", ChunkId("0" * 64), name, 1.0, 0.5, ("lighthouse", "keeper"), 550, TierName.DISK
    )
    stream = io.StringIO()
    Console(file=stream, width=80, markup=False).print(explanation([source]))
    column = "".join(line.partition(" ")[0] for line in stream.getvalue().splitlines())
    assert f"{name}:1-20" in column
    assert "550" in stream.getvalue()


def test_the_number_of_slow_steps_is_told_at_once_where_there_is_no_terminal() -> None:
    events = [(0.1, Progress("asking", 0, 5, "windows")), (0.2, Progress("asking", 1, 5, "windows"))]
    assert lines_of(events) == ["asking: 0 / 5 windows"]


def test_steps_that_were_known_are_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with ProgressView(make_console(Terminal())) as view:
        view(Progress("asking", 0, 9, "windows"))
        for done in range(1, 5):
            view(Progress("asking", done, 9, "windows", num_known=done))
        assert view._bars is not None
        [task] = view._bars.tasks
        assert (task.completed, task.speed, task.time_remaining) == (4, None, None)
        for done in range(5, 8):
            view(Progress("asking", done, 9, "windows", num_known=4))
        assert task.speed
