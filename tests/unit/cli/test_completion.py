"""What Tab offers behind /context, /recall, /pin and /clear: read off a real session over the deterministic engine."""

from __future__ import annotations

import pytest

from kvloom.cli.chat import Chat
from kvloom.cli.registry import COMMANDS


def offered(chat: Chat, line: str) -> list[str]:
    """The completions at the end of a line that ends behind a blank."""
    name, *before = line.removeprefix("/").split()
    return [suggestion.text for suggestion in COMMANDS[name].complete(chat, before)]


def test_the_verbs_of_context(chat: Chat) -> None:
    assert {
        "show",
        "size",
        "auto",
        "snapshot",
        "restore",
        "list",
        "fork",
        "delete",
        "clear",
        "compress",
        "policy",
    } < set(offered(chat, "/context"))


@pytest.mark.parametrize("verb", ["restore", "fork", "delete", "show"])
def test_snapshots_behind_the_verbs_that_take_one(verb: str, chat: Chat) -> None:
    taken = chat.session.snapshot("here")
    assert offered(chat, f"/context {verb}") == [taken.id]
    assert offered(chat, f"/context {verb} {taken.id}") == []


def test_policies_strategies_and_sizes(chat: Chat) -> None:
    assert {"adaptive", "fifo", "stop"} < set(offered(chat, "/context policy"))
    assert offered(chat, "/context size") == ["auto"]
    assert offered(chat, "/context compress") == ["--dry-run", "--strategy"]
    assert offered(chat, "/context compress --strategy") == ["hybrid", "summarize", "truncate"]
    assert offered(chat, "/context list") == []


def test_lines_of_the_ledger_the_newest_first_and_none_twice(chat: Chat) -> None:
    turns = chat.session.history()
    chat.session.clear([1, 2])
    refs = [turn.id[:8] for turn in turns[:2]]
    assert offered(chat, "/recall") == refs[::-1]
    assert offered(chat, f"/recall {refs[0]}") == [refs[1]]


def test_libraries_are_offered_to_be_detached(chat: Chat) -> None:
    library = chat.loom.library("handbook")
    chat.session.attach(library)
    assert offered(chat, "/deactivate") == ["handbook"]
    assert offered(chat, "/deactivate handbook") == []


def test_numbers_of_turns_to_clear_and_to_pin(chat: Chat) -> None:
    assert offered(chat, "/clear 2") == ["3", "1"]
    assert offered(chat, "/context clear") == ["3", "2", "1"]
    note = chat.loom.load_text("a note", name="note")
    chat.session.activate(note.id)
    assert offered(chat, "/pin") == ["note", note.id[:12], "3", "2", "1"]
