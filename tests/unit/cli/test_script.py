"""Scripted chats on a real tiny model: every slash command, exit codes, JSON lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kvloom.cli.registry import COMMANDS
from tests.unit.cli.conftest import Kvloom, results


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_load_prints_id_tokens_and_positions(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("chat", stdin="/load a.py\n")
    assert ran.code == 0
    assert ran.out.startswith(f"> /load a.py\nloaded {digest(files[0])[:12]} a.py: ")
    assert "positions " in ran.out


def test_load_takes_globs_and_quoted_names_and_places_them_in_order(kvloom: Kvloom, files: list[Path]) -> None:
    [loaded] = results(kvloom("chat", "--json", stdin='/load *.py "c d.txt"\n'))
    rows = loaded["loaded"]
    assert [row["name"] for row in rows] == ["a.py", "b.py", "c d.txt"]
    assert all(row["stop"] - row["start"] == row["num_tokens"] for row in rows)
    assert [row["start"] for row in rows[1:]] == [row["stop"] for row in rows[:-1]]


def test_load_keeps_the_good_files_and_fails_for_the_bad_one(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("chat", "--json", stdin="/load a.py nosuch.py\n/help\n")
    assert ran.code == 1
    [line] = ran.lines
    assert line["ok"] is False
    assert [row["name"] for row in line["result"]["loaded"]] == ["a.py"]
    assert "nosuch.py" in line["errors"][0]["message"]


def test_a_glob_that_fits_nothing_is_an_error(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("chat", stdin="/load *.rs\n")
    assert ran.code == 1
    assert "no file matches *.rs" in ran.err


def test_the_context_view_agrees_with_the_tokens_that_the_model_sees(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/load a.py b.py\nhello\n/deactivate a.py\n/context\n/context prompt\n"
    *_, view, prompt = results(kvloom("chat", "--json", stdin=script))
    used = view["usage"]["used"]
    assert used == len(prompt["tokens"]) == sum(row["num_tokens"] for row in view["rows"] if row["is_active"])
    assert view["usage"]["used"] + view["usage"]["free"] == view["usage"]["capacity"] == 1024
    assert "def b()" in prompt["text"]
    assert "def a()" not in prompt["text"]


def test_context_prompt_is_the_text_that_the_model_sees(kvloom: Kvloom, files: list[Path]) -> None:
    out = kvloom("chat", "--system", "Be kind.", stdin="/load a.py\n/context prompt\n").out
    assert "Be kind." in out
    assert "def a():\n    return 1\n" in out


def test_context_stats_shows_tiers_and_cells(kvloom: Kvloom, files: list[Path]) -> None:
    _, stats = results(kvloom("chat", "--json", stdin="/load a.py\n/context stats\n"))
    assert {tier["tier"] for tier in stats["status"]["tiers"]} >= {"device", "ram", "disk"}
    assert stats["status"]["used_cells"] > 0
    assert "Refused entries" in kvloom("chat", stdin="/context stats\n").out


def test_switching_a_chunk_off_computes_nothing_and_names_the_trace_it_left(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/load a.py b.py\nhello\n/deactivate a.py\nagain\n/activate a.py\nonce more\n"
    _, _, off, again, on, more = results(kvloom("chat", "--json", stdin=script))
    assert off["state"] == "off"
    assert "a.py" in off["notes"][0]
    assert "/recompute" in off["notes"][0]
    assert on["notes"] == [] or "a.py" not in on["notes"][0]
    for reply in (again, more):
        assert reply["usage"]["computed_tokens"] < 40


def test_recompute_clears_the_trace(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/load a.py\nhello\n/deactivate a.py\n/recompute\n/context\n/recompute\n"
    *_, done, view, nothing = results(kvloom("chat", "--json", stdin=script))
    assert done["num_turns"] == 1
    assert view["notes"] == []
    assert nothing["num_turns"] == 0


def test_the_first_reply_over_spliced_chunks_says_so_and_the_second_does_not(kvloom: Kvloom, files: list[Path]) -> None:
    _, first, second = results(kvloom("chat", "--json", stdin="/load a.py\nhello\nagain\n"))
    assert first["usage"]["fidelity"] == "splice"
    assert "splice" in first["notices"][0]
    assert second["notices"] == []


def test_moving_changes_the_order(kvloom: Kvloom, files: list[Path]) -> None:
    _, moved = results(kvloom("chat", "--json", stdin="/load a.py b.py\n/move b.py 0\n"))
    assert moved["order"] == [digest(files[1]), digest(files[0])]
    assert "whole number" in kvloom("chat", stdin="/load a.py\n/move a.py first\n").err


def test_a_changed_file_is_stale_until_it_is_reloaded(kvloom: Kvloom, files: list[Path]) -> None:
    kvloom("chat", "--session", "s", stdin="/load a.py\n")
    files[0].write_text("def a():\n    return 3\n", encoding="utf-8")
    before, moved, after, again = results(
        kvloom("chat", "--session", "s", "--json", stdin="/context\n/reload\n/context\n/reload\n")
    )
    assert any("a.py; /reload" in note for note in before["notes"])
    assert moved["reloaded"][0]["new"] == digest(files[0])
    assert after["notes"] == []
    assert again["reloaded"] == []


def test_tiers_can_be_driven_by_hand(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/load a.py\n/save a.py\n/offload a.py\n/restore a.py\n/pin a.py\n/unpin a.py\n"
    _, saved, offloaded, restored, pinned, unpinned = results(kvloom("chat", "--json", stdin=script))
    assert saved["bytes"] > 0
    assert offloaded["tier"] == "disk"
    assert restored["tier"] in ("ram", "device")
    assert (pinned["pinned"], unpinned["pinned"]) == (True, False)


def test_erase_can_be_undone_and_restored_and_purge_cannot(kvloom: Kvloom, files: list[Path]) -> None:
    script = (
        "/load a.py\n/erase a.py\n/undo\n/context\n/erase a.py\n/restore a.py\n/activate a.py\n/purge a.py\n/context\n"
    )
    _, _, undone, view, _, _, _, purged, empty = results(kvloom("chat", "--json", stdin=script))
    assert "erase" in undone["undone"]
    assert [row["name"] for row in view["rows"] if row["kind"] == "chunk"] == ["a.py"]
    assert purged["bytes"] > 0
    assert [row for row in empty["rows"] if row["kind"] == "chunk"] == []
    assert kvloom("chat", stdin="/activate a.py\n").code == 1


def test_turns_can_be_retried_undone_and_cleared(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/load a.py\none\n/retry\ntwo\n/clear 1\n/undo\n/undo\n/clear\n"
    _, one, retried, _, cleared, _, undone, bare = results(kvloom("chat", "--json", stdin=script))
    assert retried["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert cleared["turns"] == [1]
    assert "turn" in undone["undone"]
    assert bare["used"] < one["usage"]["prompt_tokens"]


def test_undo_with_nothing_to_undo_is_a_failing_command(kvloom: Kvloom) -> None:
    ran = kvloom("chat", stdin="/undo\n/help\n")
    assert ran.code == 1
    assert "nothing to undo" in ran.err
    assert "/help" not in ran.out


def test_sessions_are_made_switched_renamed_and_deleted(kvloom: Kvloom, files: list[Path]) -> None:
    script = "/session rename first\nhello\n/session new second\n/session list\n"
    script += "/session switch first\n/session delete second\n"
    _, _, new, listed, back, deleted = results(kvloom("chat", "--json", stdin=script))
    assert {info["name"] for info in listed["sessions"]} == {"first", "second"}
    assert listed["current"] == new["id"] == deleted["id"]
    assert (back["name"], back["num_turns"]) == ("first", 1)
    assert "switch or /session new first" in kvloom("chat", "--session", "first", stdin="/session delete first\n").err


def test_a_session_survives_export_and_import(kvloom: Kvloom, files: list[Path]) -> None:
    results(kvloom("chat", "--json", stdin="/load a.py\nhello\n/session export out.json\n"))
    assert Path("out.json").stat().st_mode & 0o077 == 0
    ran = kvloom("chat", "--json", stdin="/session import out.json\n")
    [info] = results(ran)
    assert info["num_turns"] == 1
    assert info["num_chunks"] == 1
    again = kvloom("chat", stdin="/session export out.json\n")
    assert again.code == 1
    assert "is there already" in again.err


def test_a_file_that_is_no_export_is_refused(kvloom: Kvloom, files: list[Path]) -> None:
    assert "no exported session" in kvloom("chat", stdin="/session import a.py\n").err
    Path("list.json").write_text("[1]", encoding="utf-8")
    assert "not an object" in kvloom("chat", stdin="/session import list.json\n").err


def test_profiles_are_saved_used_and_deleted(kvloom: Kvloom, files: list[Path]) -> None:
    script = (
        "/load a.py b.py\n/profile save both\n/profile save one {which}.py\n/session new\n/profile use both\n"
        "/session new\n/profile use one which=b\n/context\n/profile list\n/profile delete both\n/profile list\n"
    )
    _, _, saved, _, used, _, one, view, listed, _, left = results(kvloom("chat", "--json", stdin=script))
    assert saved["slots"] == ["which"]
    assert [chunk["name"] for chunk in used["chunks"]] == ["a.py", "b.py"]
    assert [chunk["name"] for chunk in one["chunks"]] == ["b.py"]
    assert [row["name"] for row in view["rows"] if row["kind"] == "chunk"] == ["b.py"]
    assert {profile["name"] for profile in listed["profiles"]} == {"both", "one"}
    assert [profile["name"] for profile in left["profiles"]] == ["one"]


def test_fidelity_and_system_are_shown_and_set(kvloom: Kvloom) -> None:
    script = "/system\n/fidelity\n/fidelity exact\n/system Be brief, please.\n/system\n"
    default, shown, exact, _, system = results(kvloom("chat", "--json", stdin=script))
    assert (shown["fidelity"], exact["fidelity"]) == ("splice", "exact")
    assert default["system"] == "You are a helpful assistant."
    assert system["system"] == "Be brief, please."
    assert "did you mean exact" in kvloom("chat", stdin="/fidelity exakt\n").err


def test_another_model_opens_a_new_session_and_says_where_the_old_one_is(
    kvloom: Kvloom, files: list[Path], tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_model.read_bytes())
    script = f"/session rename old\n/load a.py\nhello\n/model\n/model {other}\n/context\n"
    *_, shown, switched, view = results(kvloom("chat", "--json", stdin=script))
    assert shown["path"] == str(tiny_model)
    assert switched["chunks"] == [digest(files[0])]
    assert [row["kind"] for row in view["rows"]] == ["head", "chunk"]
    assert view["session"]["id"] == switched["session"] != switched["left_session"]


def test_a_model_that_cannot_be_opened_leaves_the_chat_as_it_was(kvloom: Kvloom, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    ran = kvloom("chat", "--session", "s", "--json", stdin=f"hello\n/model {broken}\n")
    assert ran.code == 1
    assert ran.lines[-1]["error"]["type"] == "ModelFormatError"
    [view] = results(kvloom("chat", "--session", "s", "--json", stdin="/context\n"))
    assert [row["kind"] for row in view["rows"]] == ["head", "turn"]


def test_help_lists_every_command_and_tells_about_one(kvloom: Kvloom) -> None:
    out = kvloom("chat", stdin="/help\n").out
    assert all(f"/{name}" in out for name in COMMANDS)
    [one] = results(kvloom("chat", "--json", stdin="/help move\n"))
    assert one["usage"] == "/move ID N"


def test_quit_ends_a_script_early_and_well(kvloom: Kvloom) -> None:
    ran = kvloom("chat", stdin="/quit\n/nosuch\n")
    assert ran.code == 0
    assert "nosuch" not in ran.out


@pytest.mark.parametrize(
    "line", ["/nosuch", "/load", "/activate nosuch", "/pin", "/move a.py", '/load "a.py', '"""\nopen']
)
def test_a_script_ends_with_1_at_its_first_failing_line(line: str, kvloom: Kvloom) -> None:
    ran = kvloom("chat", stdin=f"{line}\n" + ("" if line.startswith('"""') else "/help\n"))
    assert ran.code == 1
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert "/quit" not in ran.out


def test_a_failing_line_with_json_is_a_line_of_its_own(kvloom: Kvloom) -> None:
    ran = kvloom("chat", "--json", stdin="/fidelity\n/nosuch\n")
    assert ran.code == 1
    good, bad = ran.lines
    assert good["ok"] is True
    assert bad == {"line": "/nosuch", "ok": False, "error": bad["error"]}
    assert bad["error"]["type"] == "UsageError"


def test_many_lines_are_one_question(kvloom: Kvloom) -> None:
    kvloom("chat", "--session", "s", stdin='"""\nfirst\n/second\n"""\n')
    [turn] = kvloom("sessions", "show", "s", "--json").document["turns"]
    assert turn["user"] == "first\n/second"


def test_continue_resumes_the_latest_session_and_computes_nothing_again(kvloom: Kvloom, files: list[Path]) -> None:
    kvloom("chat", stdin="/load a.py b.py\nhello\n")
    view, reply = results(kvloom("chat", "--continue", "--json", stdin="/context\nagain\n"))
    assert [row["kind"] for row in view["rows"]] == ["head", "chunk", "chunk", "turn"]
    assert {row["tier"] for row in view["rows"]} == {"disk"}
    assert reply["usage"]["loaded_tokens"] == view["usage"]["used"]
    assert reply["usage"]["computed_tokens"] == reply["usage"]["prompt_tokens"] - view["usage"]["used"]


def test_continue_without_a_session_is_an_error(kvloom: Kvloom) -> None:
    ran = kvloom("chat", "--continue", stdin="")
    assert ran.code == 1
    assert "no session to continue" in ran.err
    both = kvloom("chat", "--continue", "--session", "x", stdin="")
    assert both.code == 1
    assert "give one of them" in both.err


def test_an_id_that_is_no_session_starts_none(kvloom: Kvloom) -> None:
    assert kvloom("chat", "--session", "0123456789abcdef", stdin="").code == 1
    assert json.loads(kvloom("sessions", "list", "--json").out)["sessions"] == []


def test_settings_of_the_options_reach_a_resumed_session(kvloom: Kvloom) -> None:
    kvloom("chat", "--session", "s", stdin="hello\n")
    words = ("chat", "--session", "s", "--system", "New.", "--fidelity", "exact", "--json")
    system, mode = results(kvloom(*words, stdin="/system\n/fidelity\n"))
    assert system["system"] == "New."
    assert mode["fidelity"] == "exact"
