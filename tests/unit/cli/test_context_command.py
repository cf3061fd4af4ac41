"""`kvloom context …` on stored sessions: the chat's verbs, one command each, each with its one JSON document."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvloom.cli.commands.context import app
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.cli.conftest import Kvloom

TURNS = "one, and some words\ntwo, and some words\nthree, and some words\n"

VERBS = {
    "show", "list", "snapshot", "restore", "fork", "delete", "compress", "clear", "size", "policy", "stats", "ledger",
    "recall", "undo",
}  # fmt: skip


@pytest.fixture
def stored(kvloom: Kvloom) -> Kvloom:
    """`kvloom` in a home with a session "work" of three turns."""
    assert kvloom("chat", "--session", "work", stdin=TURNS).code == 0
    return kvloom


def test_every_promised_verb_is_there() -> None:
    assert {command.name for command in app.registered_commands} == VERBS


def test_the_session_used_last_is_the_default_and_another_is_named(stored: Kvloom) -> None:
    assert stored("chat", "--session", "later", stdin="hello\n").code == 0
    assert stored("context", "show", "--json").document["session"]["name"] == "later"
    assert stored("context", "show", "--session", "work", "--json").document["session"]["name"] == "work"


def test_a_snapshot_is_taken_listed_shown_restored_and_deleted(stored: Kvloom) -> None:
    taken = stored("context", "snapshot", "three turns", "--json").document
    assert (taken["title"], taken["num_turns"]) == ("three turns", 3)
    assert stored("context", "clear", "--json").document["turns"] == []
    listed = stored("context", "list", "--json").document["snapshots"]
    assert [(one["id"], one["is_auto"]) for one in listed] == [(taken["id"], False)], "a state is kept once"
    shown = stored("context", "show", taken["id"][:6], "--json").document["messages"]
    assert [message["content"] for message in shown if message["role"] == "user"] == TURNS.splitlines()
    assert stored("context", "restore", "three turns", "--json").document["restored"]["id"] == taken["id"]
    assert stored("context", "show", "--json").document["usage"]["used"] == taken["num_tokens"]
    assert stored("context", "undo", "--json").document["undone"].startswith("restore")
    assert stored("context", "delete", taken["id"], "--json").document["deleted"]["id"] == taken["id"]


def test_a_damaged_snapshot_is_listed_as_such_and_can_be_deleted(stored: Kvloom, tmp_path: Path) -> None:
    taken = stored("context", "snapshot", "whole", "--json").document
    stored("context", "snapshot", "later")
    with closing(sqlite3.connect(tmp_path / "home" / "catalog.sqlite3")) as database, database:
        database.execute("UPDATE snapshots SET messages = x'00' WHERE id = ?", (taken["id"],))
    assert f"snapshot {taken['id']} is damaged" in stored("context", "list").out
    listed = stored("context", "list", "--json").document
    assert [one["title"] for one in listed["snapshots"]] == ["later"]
    assert len(listed["unreadable"]) == 1
    assert "damaged" in stored("context", "restore", taken["id"]).err
    assert stored("context", "delete", taken["id"], "--json").document["deleted"]["id"] == taken["id"]
    assert stored("context", "list", "--json").document["unreadable"] == []


def test_a_fork_is_another_session_and_this_one_stays(stored: Kvloom) -> None:
    stored("context", "snapshot", "here")
    found = stored("context", "fork", "here", "--name", "other", "--json").document
    assert (found["name"], found["left_session"]) == ("other", "work")
    names = {info["name"] for info in stored("sessions", "list", "--json").document["sessions"]}
    assert names == {"work", "other"}


def test_turns_leave_are_listed_and_come_back(stored: Kvloom) -> None:
    assert stored("context", "clear", "1", "2", "--json").document["turns"] == [1, 2]
    lines = stored("context", "ledger", "--json").document["lines"]
    assert [line["text"] for line in lines] == TURNS.splitlines()[:2]
    ran = stored("context", "ledger")
    assert f"kvloom context recall {lines[0]['ref'][:8]}" in " ".join(ran.out.split())
    stored("context", "recall", *(line["ref"] for line in lines))
    assert stored("context", "ledger", "--json").document["lines"] == []


def test_size_policy_and_stats_of_a_stored_session(stored: Kvloom) -> None:
    assert stored("context", "size", "2k", "--json").document["window"] == 2048
    assert stored("context", "policy", "fifo", "--json").document["policy"] == "fifo"
    assert stored("context", "policy", "--json").document["policy"] == "fifo"
    assert stored("context", "stats", "--json").document["stats"]["num_turns"] == 3


def test_a_compression_is_estimated_and_done(stored: Kvloom) -> None:
    assert stored("chat", "--session", "work", stdin=TURNS * 3).code == 0
    words = ("context", "compress", "--strategy", "summarize", "--json")
    estimate = stored(*words, "--dry-run").document
    done = stored(*words).document
    assert estimate["num_turns"] == done["num_turns"] == 11
    assert done["num_tokens_before"] == estimate["num_tokens_before"]
    assert done["summary"]


def test_to_a_dry_run_nothing_to_compress_is_an_answer(stored: Kvloom) -> None:
    ran = stored("context", "compress", "--dry-run")
    assert ran.code == 0
    assert ran.out.startswith("nothing to compress: of 3 turns")
    found = stored("context", "compress", "--dry-run", "--json").document
    assert (found["num_turns"], found["strategy"]) == (0, "hybrid")
    assert found["num_tokens_before"] == found["num_tokens_after"] > 0
    assert "nothing to compress" in found["reason"]
    assert stored("context", "compress").code == 1
    assert stored("context", "compress", "--dry-run", "--strategy", "magic").code == 1
    [answer] = stored("chat", "--session", "work", "--json", stdin="/context compress --dry-run\n").lines
    assert answer["ok"] and answer["result"]["num_turns"] == 0


def test_the_window_that_a_session_was_open_with_is_the_one_that_is_shown(
    kvloom: Kvloom, tiny_model: Path, tmp_path: Path
) -> None:
    shared = ("--model", tiny_model, "--home", tmp_path / "home")

    def look(*words: str) -> tuple[int, str]:
        found: dict[str, Any] = kvloom("context", "show", "-s", "work", *shared, *words, "--json", loom=False).document
        capacity: int = found["usage"]["capacity"]
        for verb in (("context", "show", "-s"), ("sessions", "show")):
            assert f"{capacity:,} tokens, " in kvloom(*verb, "work", *shared, *words, loom=False).out
        return capacity, found["standing"]["window_origin"]

    assert kvloom("chat", "--session", "work", *shared, "-c", "1k", stdin=TURNS, loom=False).code == 0
    assert look() == (1024, "last")
    assert look("--context", "2k") == (2048, "asked for")
    assert look() == (1024, "last"), "looking is not opening"
    sized = kvloom("context", "size", "600", "-s", "work", *shared, "--json", loom=False).document
    assert (sized["window_before"], sized["window"]) == (1024, 600)
    assert look() == (600, "own")
    assert kvloom("context", "undo", "-s", "work", *shared, loom=False).code == 0
    assert kvloom("chat", "--session", "work", *shared, stdin="hello\n", loom=False).code == 0
    capacity, origin = look()
    assert (capacity > 1024, origin) == (True, "default")
    assert "the default; --context N takes another" in kvloom("context", "show", *shared, loom=False).out


def test_a_window_that_memory_does_not_have_any_more_gives_way_to_the_default(
    stored: Kvloom, tiny_model: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "home" / "catalog.sqlite3")) as database, database:
        database.execute("UPDATE sessions SET window = 4000000000")
    shared = ("--model", tiny_model, "--home", tmp_path / "home", "--json")
    for words in (("show",), ("snapshot", "here"), ("size", "2k")):
        assert stored("context", *words, *shared, loom=False).code == 0, words
    found = stored("context", "show", *shared, loom=False).document
    assert found["standing"]["window_origin"] == "own"


def test_a_window_beyond_the_trained_length_is_warned_of_wherever_it_is_shown(
    kvloom: Kvloom, tiny_model: Path, tmp_path: Path
) -> None:
    shared = ("--model", tiny_model, "--home", tmp_path / "home", "-c", "5000")
    script = "hello\n/context\n"
    ran = kvloom("chat", "--session", "work", *shared, stdin=script, loom=False)
    assert "trained for 4,096 tokens, 5,000 were asked for" in " ".join(ran.out.replace("│", " ").split())
    *_, view = kvloom("chat", "--session", "work", *shared, "--json", stdin=script, loom=False).lines
    for found in (view["result"], kvloom("context", "show", *shared[:-2], "--json", loom=False).document):
        assert "trained for 4,096 tokens" in found["standing"]["window_warning"]
        assert found["standing"]["window_warning"] in found["notes"]
    small = kvloom("context", "show", *shared[:-2], "-c", "1k", "--json", loom=False).document
    assert (small["standing"]["window_warning"], small["notes"]) == ("", [])


def test_a_restore_under_another_model_tells_the_tokens_as_that_model_counts_them(
    stored: Kvloom, tmp_path: Path
) -> None:
    taken = stored("context", "snapshot", "here", "--json").document
    other = write_tiny(tmp_path / "other.gguf", TinyModel(tokenizer="spm", template=None))
    shared = ("--model", other, "--home", tmp_path / "home", "-c", "2k")
    found = stored("context", "restore", taken["id"], *shared, "--json", loom=False).document
    used = found["used"]
    assert used != taken["num_tokens"] == found["restored"]["num_tokens"]
    said = stored("context", "restore", taken["id"], *shared, loom=False).out
    assert f"3 turns, {used:,} tokens ({taken['num_tokens']:,} when it was taken, under {taken['model']})" in said
    again = stored("context", "restore", taken["id"]).out
    assert f"3 turns, {taken['num_tokens']:,} tokens; " in again


@pytest.mark.parametrize(
    ("words", "window"),
    [(("chat", "--session", "small"), 64), (("ask", "hello"), 64), (("chat", "--system", "be kind " * 40), 256)],
)
def test_a_window_too_small_for_a_turn_is_refused_with_the_least_that_will_do(
    kvloom: Kvloom, tiny_model: Path, tmp_path: Path, words: tuple[str, ...], window: int
) -> None:
    shared = ("--model", tiny_model, "--home", tmp_path / "home", "-c")
    refused = kvloom(*words, *shared, str(window), stdin="hello\n", loom=False)
    assert refused.code == 1
    assert f"a window of {window} tokens is too small to talk in: the system prompt takes" in refused.err
    assert kvloom("sessions", "list", "--json").document["sessions"] == []
    least = refused.err.split("give ")[1].split()[0]
    assert kvloom(*words, *shared, least, stdin="hello\n", loom=False).code == 0


def test_hints_are_commands_of_the_command_line(stored: Kvloom) -> None:
    assert "kvloom context undo --session work takes it back" in stored("context", "clear", "-s", "work").out
    taken = stored("context", "snapshot", "a b", "--json").document
    out = stored("context", "restore").out
    assert f"kvloom context restore {taken['id']} takes the newest" in out
    assert "no snapshots yet: kvloom context snapshot takes one" in _empty(stored, "list")
    assert "kvloom context snapshot --session empty takes one" in _empty(stored, "restore", "--session", "empty")


def _empty(kvloom: Kvloom, *words: str) -> str:
    """What a command says of a session without turns."""
    assert kvloom("chat", "--session", "empty", stdin="/quit\n").code == 0
    ran = kvloom("context", *words)
    return ran.out + ran.err


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("show", "--session", "wrok"), "UnknownSessionError", "did you mean work"),
        (("restore", "nosuch"), "UnknownSnapshotError", "no snapshot 'nosuch'"),
        (("restore",), "SnapshotError", "kvloom context snapshot"),
        (("compress",), "CompressionError", "nothing to compress"),
        (("compress", "--strategy", "magic"), "UsageError", "choose one of hybrid"),
        (("policy", "adaptiv"), "UsageError", "did you mean adaptive"),
        (("size", "50"), "UsageError", "in use"),
        (("recall", "beef"), "UsageError", "it is empty"),
        (("clear", "9"), "UsageError", "there is no turn 9"),
    ],
)
def test_what_is_wrong_is_one_json_error(words: tuple[str, ...], kind: str, said: str, stored: Kvloom) -> None:
    ran = stored("context", *words, "--json")
    assert (ran.code, ran.out) == (1, "")
    error = json.loads(ran.err)["error"]
    assert error["type"] == kind
    assert said in error["message"]


def test_without_any_session_the_way_to_one_is_said(kvloom: Kvloom) -> None:
    ran = kvloom("context", "show")
    assert ran.code == 1
    assert "`kvloom chat` starts one" in ran.err
