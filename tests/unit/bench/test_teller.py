"""Progress of a benchmark: a callback where someone watches, plain lines for a log."""

from __future__ import annotations

import pytest

from kvloom.bench.teller import Teller
from kvloom.session.values import Progress


def test_a_log_gets_one_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Teller("decode", 2, None)
    tell.say("loading the model tiny")
    tell.step("first 3.0 s")
    tell.step("second 2.0 s")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.partition(", ")[2] for line in shown.err.splitlines()] == [
        "0/2] loading the model tiny",
        "1/2] first 3.0 s",
        "2/2] second 2.0 s",
    ]


def test_a_log_gets_one_line_for_each_thing_that_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Teller("decode", 2, None)
    for task in ("fetching", "checking"):
        for done in range(0, 101, 10):
            tell.wait(Progress(task, done, 100, "bytes"))
    assert [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()] == ["fetching", "checking"]


def test_a_callback_gets_everything_and_no_line_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[Progress] = []
    tell = Teller("decode", 1, told.append)
    tell.wait(Progress("fetching", 5, 10, "bytes"))
    tell.step("first")
    tell.step("one more than was planned")
    assert [(p.task, p.done, p.total) for p in told] == [
        ("fetching", 5, 10),
        ("bench decode", 1, 1),
        ("bench decode", 2, 2),
    ]
    assert capsys.readouterr().err == ""
