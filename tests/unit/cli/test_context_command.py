"""`kvloom context …` on stored sessions: the chat's verbs, one command each, each with its one JSON document."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kvloom.cli.commands.context import app
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
