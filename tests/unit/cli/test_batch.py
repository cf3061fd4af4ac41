"""`kvloom batch` from the command line: what is told before any model is loaded, and what at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvloom.cli.commands.batch import summary_line
from kvloom.cli.main import run
from kvloom.server.batch import BatchSummary


def batch(folder: Path, text: str, *arguments: str) -> int:
    source = folder / "in.jsonl"
    source.write_text(text)
    return run(["batch", str(source), str(folder / "out.jsonl"), "--home", str(folder / "home"), *arguments])


LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "none", "prompt": "Hi"}}


def test_a_mistake_in_the_input_is_told_by_line_and_no_output_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(tmp_path, json.dumps(LINE) + "\n{\n") == 1
    assert "in.jsonl, line 2: not valid JSON" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_that_is_not_served_is_told_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tmp_path / "models.json"
    registry.write_text('[{"id": "coder", "aliases": ["small"]}]')
    assert batch(tmp_path, json.dumps(LINE), "--models", str(registry), "--json") == 1
    message = json.loads(capsys.readouterr().err)["error"]["message"]
    assert "line 1: there is no model 'none'" in message
    assert "known: coder, small" in message


def test_a_mistake_in_the_registry_is_told_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = tmp_path / "models.yaml"
    registry.write_text("- id: coder\n  alias: [small]\n")
    assert batch(tmp_path, json.dumps(LINE), "--models", str(registry), "--json") == 1
    message = json.loads(capsys.readouterr().err)["error"]["message"]
    assert message == f"{registry}, line 2: there is no setting `alias`; did you mean `aliases`?"


def test_the_input_is_never_its_own_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(LINE))
    assert run(["batch", str(source), str(source), "--home", str(tmp_path / "home")]) == 1
    assert "is the input" in capsys.readouterr().err
    assert source.read_text() == json.dumps(LINE)


def test_the_summary_says_what_was_done_and_what_was_spared() -> None:
    told = summary_line(BatchSummary(10, 4, 6, 1, 6000, 4500, 300, 2.5), Path("out.jsonl"))
    assert "6 requests answered" in told
    assert "1 of them errors" in told
    assert "(4 stood there before)" in told
    assert "6,000 prompt tokens, 4,500 of them not computed, 300 in replies" in told
