"""What is told of a home without loading the model is what is told with it, number by number."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvloom.chunk.database import DATABASE_NAME
from kvloom.engine.llamacpp import LlamaCppEngine
from kvloom.session import rooms
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.cli.conftest import Kvloom

LOOKING: list[tuple[str, ...]] = [
    ("context", "show"),
    ("context", "stats"),
    ("context", "list"),
    ("context", "ledger"),
    ("context", "policy"),
    ("context", "show", "three turns"),
    ("sessions", "list"),
    ("sessions", "show", "work"),
    ("chunks", "ls"),
]
VOLATILE = {"memory", "safe_limit_tokens", "updated"}
"""Memory as it is at this moment; what still fits beside a model is not known where none is loaded."""


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that are loaded from here on."""
    found: list[Path] = []
    begin = LlamaCppEngine.__init__

    def noted(self: LlamaCppEngine, settings: Any, fingerprint: Any) -> None:
        found.append(settings.path)
        begin(self, settings, fingerprint)

    monkeypatch.setattr(LlamaCppEngine, "__init__", noted)
    return found


@pytest.fixture
def stored(kvloom: Kvloom, files: list[Path]) -> Kvloom:
    """A home with a session of three turns over two files, one of them off, a snapshot and a ledger."""
    lines = f"/load {files[0]}\n/load {files[1]}\n/deactivate b.py\none and more\ntwo and more\nthree and more\n"
    assert kvloom("chat", "--session", "work", stdin=lines).code == 0
    assert kvloom("context", "snapshot", "three turns").code == 0
    assert kvloom("context", "clear", "1").code == 0
    return kvloom


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on nothing is opened without its model."""
    return lambda: monkeypatch.setattr("kvloom.session.stored.open_stored", lambda *_: None)


def numbers(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: numbers(value) for key, value in document.items() if key not in VOLATILE}
    return [numbers(value) for value in document] if isinstance(document, list) else document


@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
def test_the_numbers_are_those_of_the_loaded_model(
    stored: Kvloom, loads: list[Path], loaded: Callable[[], None], words: tuple[str, ...]
) -> None:
    without = stored(*words, "--json").document
    assert loads == [], "nothing was loaded"
    loaded()
    with_model = stored(*words, "--json").document
    assert len(loads) == (0 if words == ("sessions", "list") else 1)
    assert numbers(without) == numbers(with_model)
    assert stored(*words).code == 0


def test_the_cost_of_a_restore_is_known_without_the_model(stored: Kvloom, loads: list[Path]) -> None:
    [snapshot] = stored("context", "list", "--json").document["snapshots"]
    assert snapshot["restore_s"] is None or snapshot["restore_s"] > 0
    assert snapshot["kv_bytes"] > 0
    segments = stored("context", "show", "--json").document["usage"]["segments"]
    assert any(segment["tier"] == "disk" for segment in segments)
    assert loads == []


def test_edits_that_compute_nothing_need_no_model(stored: Kvloom, loads: list[Path]) -> None:
    assert stored("context", "policy", "fifo", "--json").document["policy"] == "fifo"
    [line] = [line for line in stored("context", "ledger", "--json").document["lines"] if line["kind"] == "turn"]
    stored("context", "recall", line["ref"])
    assert stored("context", "ledger", "--json").document["lines"] == []
    fork = stored("context", "fork", "--name", "other", "--json").document
    assert (fork["name"], fork["num_turns"]) == ("other", 3)
    taken = stored("context", "snapshot", "here", "--session", "work", "--json").document
    assert stored("context", "delete", taken["id"], "-s", "work", "--json").document["deleted"]["id"] == taken["id"]
    assert stored("sessions", "delete", "other").code == 0
    assert loads == []
    assert stored("context", "undo", "--json").document["undone"].startswith("recall")
    assert len(loads) == 1, "an undo may ask for a larger window beside the loaded model"


def test_a_session_of_another_model_is_counted_by_the_model(stored: Kvloom, loads: list[Path], tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", TinyModel(seed=8))
    shared = ("--home", tmp_path / "home", "--context", "1024", "--json", "--model", other)
    assert stored("chunks", "ls", *shared, loom=False).code == 0
    assert len(loads) == 1, "the home has not seen this model yet"
    found = stored("context", "show", *shared, loom=False)
    assert found.code == 0, found.err
    assert found.document["usage"]["used"] > 0
    assert len(loads) == 2
    assert stored("context", "list", *shared, loom=False).code == 0


@pytest.mark.parametrize("tokenizer", ["bpe", "spm"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_every_kind_of_vocabulary_and_kv_is_recorded(
    kvloom: Kvloom, files: list[Path], loads: list[Path], tmp_path: Path, tokenizer: str, kv_type: str
) -> None:
    model = write_tiny(tmp_path / "other.gguf", TinyModel(tokenizer=tokenizer, head_dim=32, template=None))
    shared = ("--home", tmp_path / "home", "--context", "1024", "--json", "--model", model, "--kv-type", kv_type)
    assert kvloom("chunks", "add", "--warm", files[0], *shared, loom=False).code == 0
    ran = kvloom("chunks", "ls", *shared, loom=False)
    [chunk] = ran.document["chunks"]
    assert (chunk["tier"], len(loads)) == ("disk", 1)
    assert chunk["kv_bytes"] > 0


def test_a_record_that_cannot_be_read_costs_loading_the_model(
    stored: Kvloom, loads: list[Path], tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "home" / DATABASE_NAME) as connection:
        connection.execute("UPDATE engines SET body = '{}'")
    connection.close()
    assert stored("context", "show", "--json").code == 0
    assert len(loads) == 1


def test_questions_that_were_not_put_then_make_the_record_anew(
    stored: Kvloom, loads: list[Path], tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "home" / DATABASE_NAME) as connection:
        [(body,)] = connection.execute("SELECT body FROM engines").fetchall()
        record = json.loads(body)
        record["vocabulary"]["tokenized"] = []
        connection.execute("UPDATE engines SET body = ?", (json.dumps(record),))
    connection.close()
    for _ in range(2):
        assert stored("context", "show", "--json").code == 0
    assert len(loads) == 1, "the first loading has made another"


def test_listing_the_sessions_of_an_empty_home_fetches_nothing(
    kvloom: Kvloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "ensure_model", lambda *_: pytest.fail("a model was asked for"))
    ran = kvloom("sessions", "list", "--home", tmp_path / "empty", "--json", loom=False)
    assert ran.document == {"sessions": []}
