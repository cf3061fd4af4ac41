"""Room and overflow in scripted chats on a real tiny model: sizes, policies, snapshots, compression, the ledger."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvloom.cli import context_verbs as verbs
from kvloom.cli.chat import Chat
from kvloom.cli.line import parse_line
from kvloom.errors import CancelledError, KvloomError
from tests.unit.cli.conftest import Kvloom, Ran, results

TURNS = "".join(f"question number {number}, with some more words\n" for number in range(4))


def failed(ran: Ran) -> str:
    """What the one failing line of a script says."""
    assert ran.code == 1
    assert "Traceback" not in ran.err
    return ran.err


def users(kvloom: Kvloom, name: str = "s") -> list[str]:
    return [turn["user"] for turn in kvloom("sessions", "show", name, "--json").document["turns"]]


def test_the_status_tells_memory_guard_snapshots_policy_and_compression(kvloom: Kvloom) -> None:
    _, _, view = results(kvloom("chat", "--json", stdin="hello\n/context snapshot\n/context show\n"))
    standing = view["standing"]
    assert standing["num_snapshots"] == 1
    assert standing["guard"] in ("normal", "soft", "hard", "critical")
    assert standing["auto_compress"] == "armed"
    [memory] = standing["memory"]
    assert 0 < memory["used_bytes"] < memory["total_bytes"]
    usage = view["usage"]
    assert usage["policy"] == "adaptive"
    assert standing["compress_at_tokens"] == int(0.8 * (usage["capacity"] - usage["reserve"]))
    out = kvloom("chat", stdin="/context\n").out
    assert all(word in out for word in ("─ Context ─", "RAM", "Guard", "Snapshots", "Policy", "adaptive", "Compress"))


def test_looking_costs_no_context(kvloom: Kvloom) -> None:
    looks = "/context\n/context stats\n/ledger\n/context list\n/context compress --dry-run --strategy summarize\n"
    *_, before, _, _, _, _, _, after = results(
        kvloom("chat", "--json", stdin=f"{TURNS}/context prompt\n{looks}/context prompt\n")
    )
    assert before == after


# -- the window -------------------------------------------------------------------------------------------------------


def test_the_window_grows_and_shrinks_and_undo_takes_it_back(kvloom: Kvloom) -> None:
    script = "hello\n/context size 2k\n/context size 1_024\n/context auto\n/undo\n/context\n"
    _, up, down, auto, undone, view = results(kvloom("chat", "--json", stdin=script))
    assert (up["window_before"], up["window"], down["window"]) == (1024, 2048, 1024)
    assert auto["window"] > 1024
    assert "resize" in undone["undone"]
    assert view["usage"]["capacity"] == 1024
    assert "1,024 → 2,048 tokens" in kvloom("chat", stdin="/context size 2048\n").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("size", "takes one number of tokens"),
        ("size many", "number of tokens (16384, 16,384, 16k) or auto, got 'many'"),
        ("size -4", "number of tokens"),
        ("size 40", "cannot hold the"),
        ("size 1000k", "trained for"),
        ("auto 5", "takes no argument"),
        ("polcy fifo", "did you mean policy"),
        ("policy fifi", "did you mean fifo"),
        ("compress", "nothing to compress"),
        ("compress --strategy", "takes one of hybrid"),
        ("compress --strategy=hybird", "did you mean hybrid"),
        ("compress now", "takes --dry-run and --strategy"),
        ("restore", "/context snapshot takes one"),
        ("restore nosuch", "no snapshot 'nosuch'"),
        ("delete nosuch", "no snapshot 'nosuch'"),
        ("delete", "takes one snapshot"),
        ("fork nosuch", "no snapshot 'nosuch'"),
        ("fork a b c", "takes no argument"),
        ("show nosuch", "no snapshot 'nosuch'"),
        ("clear one", "by its number"),
        ("clear 7", "no turn 7"),
    ],
)
def test_what_is_wrong_is_said_and_the_context_stays(words: str, said: str, chat: Chat) -> None:
    before = chat.session.tokens()
    with pytest.raises(KvloomError, match=re.escape(said)):
        chat.run(parse_line(f"/context {words}"))
    assert chat.session.tokens() == before


def test_a_chat_goes_on_where_its_window_is_full_and_says_once_what_left(
    kvloom: Kvloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_COMPRESSION__ENABLED", "false")
    script = "/context policy fifo\n" + "".join(f"number {number} {'and more ' * 6}\n" for number in range(16))
    *replies, ledger, view = results(kvloom("chat", "--json", stdin=f"{script}/ledger\n/context\n"))
    full = [reply for reply in replies[1:] if reply["left"]]
    assert full
    assert all(sum("policy fifo" in notice for notice in reply["notices"]) == 1 for reply in full)
    assert all(not reply["notices"] or reply["left"] for reply in replies[2:])
    assert {line["reason"] for line in ledger["lines"]} == {"policy fifo"}
    assert {ref for reply in full for ref in reply["left"]} == {line["ref"] for line in ledger["lines"]}
    assert view["usage"]["used"] <= view["usage"]["capacity"]


def test_the_policy_of_an_option_wins_over_the_chats_own(kvloom: Kvloom) -> None:
    long = "x y z " * 100
    assert "maximum context length" in failed(kvloom("chat", "--policy", "stop", stdin=f"{long}\n{long}\n"))
    [shown] = results(kvloom("chat", "--policy", "fifo", "--json", stdin="/context policy\n"))
    assert shown["policy"] == "fifo"
    assert "did you mean `fifo`" in failed(kvloom("chat", "--policy", "fifi"))


def test_the_policy_of_the_settings_wins_over_the_chats_own(kvloom: Kvloom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOOM_OVERFLOW__POLICY", "keep_first")
    [shown] = results(kvloom("chat", "--json", stdin="/context policy\n"))
    assert shown["policy"] == "keep_first"


def test_another_model_keeps_the_policy_of_the_chat(kvloom: Kvloom, tiny_model: Path) -> None:
    *_, shown = results(kvloom("chat", "--json", stdin=f"/model {tiny_model}\n/context policy\n"))
    assert shown["policy"] == "adaptive"


# -- snapshots --------------------------------------------------------------------------------------------------------


def test_a_restored_snapshot_is_the_very_same_context_and_undo_takes_it_back(kvloom: Kvloom) -> None:
    script = (
        f"{TURNS}/context snapshot my place\n/context prompt\nsomething else\n/clear\n/context prompt\n"
        "/context restore 'my place'\n/context prompt\n/undo\n/context prompt\n/context list\n"
    )
    *_, taken, there, _, _, cleared, back, again, _, undone, listed = results(kvloom("chat", "--json", stdin=script))
    assert (taken["title"], taken["num_turns"], taken["is_auto"]) == ("my place", 4, False)
    assert back["restored"]["id"] == taken["id"]
    assert (there, cleared) == (again, undone)
    assert taken["id"] in [one["id"] for one in listed["snapshots"] if not one["is_auto"]]
    assert {one["reason"] for one in listed["snapshots"] if one["is_auto"]} == {"before clear"}


def test_without_an_id_and_a_terminal_the_list_and_a_hint_are_the_answer(kvloom: Kvloom) -> None:
    results(kvloom("chat", "--session", "s", "--json", stdin="hello\n/context snapshot here\n"))
    listed, prompt = results(kvloom("chat", "--session", "s", "--json", stdin="/context restore\n/context prompt\n"))
    assert listed["restored"] is None
    [one] = listed["snapshots"]
    assert len(prompt["tokens"]) == one["num_tokens"]
    out = kvloom("chat", "--session", "s", stdin="/context restore\n").out
    assert f"which one? /context restore {one['id']} takes the newest" in out


def test_a_fork_is_a_session_of_its_own_and_the_chat_goes_on_there(kvloom: Kvloom) -> None:
    script = "one\n/context snapshot here\ntwo\n/context fork here other\nthree\n"
    *_, forked, _ = results(kvloom("chat", "--session", "s", "--json", stdin=script))
    assert (forked["name"], forked["num_turns"], forked["left_session"]) == ("other", 1, "s")
    assert users(kvloom) == ["one", "two"]
    assert users(kvloom, "other") == ["one", "three"]
    assert "other" in failed(kvloom("chat", "--session", "s", stdin="/context fork here other\n"))


def test_a_fork_without_an_id_goes_on_from_here(kvloom: Kvloom) -> None:
    _, forked = results(kvloom("chat", "--json", stdin="one\n/context fork\n"))
    assert forked["num_turns"] == 1


def test_a_snapshots_messages_can_be_read_without_restoring_it(kvloom: Kvloom) -> None:
    script = "one\n/context snapshot here\n/clear\n/context show here\n/context delete here\n/context list\n"
    *_, shown, gone, listed = results(kvloom("chat", "--json", stdin=script))
    assert [message["role"] for message in shown["messages"]] == ["system", "user", "assistant"]
    assert shown["messages"][1]["content"] == "one"
    assert gone["deleted"]["title"] == "here"
    assert all(one["is_auto"] for one in listed["snapshots"])
    assert "[1] > one" in kvloom("chat", stdin="one\n/context snapshot here\n/context show here\n").out


def test_no_snapshot_is_no_error_to_list(kvloom: Kvloom) -> None:
    assert "no snapshots yet: /context snapshot takes one" in kvloom("chat", stdin="/context list\n").out


# -- compression, ledger, pins ----------------------------------------------------------------------------------------


def test_an_estimate_changes_nothing_and_is_what_then_happens(kvloom: Kvloom) -> None:
    script = (
        f"{TURNS * 3}/context compress --dry-run --strategy truncate\n/context\n"
        "/context compress --strategy truncate\n/context\n/undo\n/context\n"
    )
    *_, estimate, before, done, after, _, undone = results(kvloom("chat", "--json", stdin=script))
    assert estimate["num_tokens_before"] == before["usage"]["used"] == undone["usage"]["used"]
    assert estimate["num_tokens_after"] == done["num_tokens_after"] == after["usage"]["used"]
    out = kvloom("chat", stdin=f"{TURNS * 3}/context compress --dry-run\n/context compress --strategy truncate\n").out
    assert "nothing was changed" in out
    assert "/ledger lists what left; /undo takes it back" in out


def test_a_summary_is_shown(kvloom: Kvloom) -> None:
    script = f"{TURNS * 3}/context compress --strategy summarize\n"
    *_, done = results(kvloom("chat", "--json", stdin=script))
    assert done["summary"]
    assert done["num_tokens_after"] < done["num_tokens_before"]
    assert "summary: " in kvloom("chat", stdin=script).out


def test_the_ledger_names_what_left_why_and_the_way_back(kvloom: Kvloom, files: list[Path]) -> None:
    script = f"/load a.py\n{TURNS}/clear 1 2\n/ledger\n"
    *_, ledger = results(kvloom("chat", "--session", "s", "--json", stdin=script))
    first, second = ledger["lines"]
    assert first["text"].startswith("question number 0")
    assert first["reason"].startswith("clear turns")
    assert ledger["num_tokens"] == first["num_tokens"] + second["num_tokens"]
    back, left = results(kvloom("chat", "--session", "s", "--json", stdin=f"{first['how']}\n/ledger\n"))
    assert back["refs"] == [first["ref"][:8]]
    assert [line["ref"] for line in left["lines"]] == [second["ref"]]
    assert users(kvloom)[0].startswith("question number 0")
    assert "everything that was ever given is in the prompt" in kvloom("chat", stdin="/ledger\n").out


def test_a_recall_of_what_the_ledger_has_not_is_refused(kvloom: Kvloom) -> None:
    assert "no line 'beef'" in failed(kvloom("chat", stdin="/recall beef\n"))


def test_a_turn_is_pinned_by_its_number_and_stays(kvloom: Kvloom) -> None:
    filling = "".join(f"number {number} {'and more ' * 6}\n" for number in range(16))
    script = f"/context policy fifo\nremember this\n/pin 1\n{filling}/context\n/unpin 1\n"
    _, _, pinned, *_, view, unpinned = results(kvloom("chat", "--session", "s", "--json", stdin=script))
    assert pinned["pinned"] is True
    assert [row["ref"] for row in view["rows"] if row["is_pinned"]] == [pinned["id"]] == [unpinned["id"]]
    assert users(kvloom)[0] == "remember this"
    assert "pinned: turn 1" in kvloom("chat", "--session", "s", stdin="/pin 1\n").out


def test_stats_add_up(kvloom: Kvloom) -> None:
    *_, found = results(kvloom("chat", "--json", stdin=f"{TURNS}/clear 1\n/context stats\n"))
    usage, stats = found["usage"], found["stats"]
    assert stats["num_turns"] == 3
    assert sum(share["num_tokens"] for share in stats["tiers"]) == usage["used"]
    assert stats["num_ledger_lines"] == 1
    given = usage["used"] + stats["num_ledger_tokens"]
    assert stats["compression_ratio"] == pytest.approx(usage["used"] / given, abs=1e-4)
    out = kvloom("chat", stdin=f"{TURNS}/context stats\n").out
    assert "more until the window is full" in out


def test_a_json_line_holds_the_whole_snapshot(kvloom: Kvloom) -> None:
    _, taken = results(kvloom("chat", "--json", stdin="one\n/context snapshot\n"))
    promised: dict[str, Any] = {
        "id": str, "created": float, "num_tokens": int, "summary": str, "model": str, "window": int,
        "compression_ratio": float, "kv_bytes": int,
    }  # fmt: skip
    assert {name: type(taken[name]) for name in promised} == promised


def test_leaving_the_picker_says_that_nothing_was_changed(chat: Chat) -> None:
    chat.session.snapshot("here")
    before = chat.session.manifest
    chat.pick = lambda _snapshots, _read: None
    result = verbs.restore(chat, "")
    assert result.data == {"restored": None}
    assert result.view == "no snapshot was chosen; nothing was changed, the context is as before"
    assert chat.session.manifest == before


def test_an_interrupt_behind_a_restore_says_that_the_conversation_is_back(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = chat.session.snapshot("here")
    chat.session.clear()

    def interrupted() -> None:
        raise CancelledError("cancelled")

    monkeypatch.setattr(chat, "warm", interrupted)
    result = verbs.restore(chat, "here")
    assert "interrupted while its KV was placed: the next question does that" in str(result.view)
    assert len(chat.session.history()) == taken.num_turns
