"""Every command on a real tiny model: exit codes, one JSON document, messages that say what to do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Kvloom

HEAVY = ("llama_cpp", "rich.console", "prompt_toolkit", "pydantic", "gguf", "yaml", "psutil")
"""What `--help` must not wait for."""


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kvloom.cli.main import run; code = run(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"
    assert "chat" in done.stdout


def test_no_command_shows_the_help_and_is_wrong_usage(kvloom: Kvloom) -> None:
    ran = kvloom(loom=False)
    assert ran.code == 2
    assert "Commands:" in ran.out + ran.err


def test_an_unknown_option_is_wrong_usage_with_the_nearest_name(kvloom: Kvloom) -> None:
    ran = kvloom("chat", "--sesion", "x", loom=False)
    assert ran.code == 2
    assert "--session" in ran.err
    assert "Traceback" not in ran.err


def test_wrong_usage_with_json_is_a_json_error(kvloom: Kvloom) -> None:
    ran = kvloom("count", "--json", loom=False)
    assert ran.code == 2
    assert ran.out == ""
    assert json.loads(ran.err)["error"]["type"] == "UsageError"


def test_version_is_the_package_version(kvloom: Kvloom) -> None:
    version = kvloom("version", "--json", loom=False).document["version"]
    assert kvloom("--version", loom=False).out == f"kvloom {version}\n"


def test_paths_follow_the_home(kvloom: Kvloom, tmp_path: Path) -> None:
    found = kvloom("paths", "--home", tmp_path / "h", "--json", loom=False).document
    assert found["home"] == str(tmp_path / "h")
    assert {"config_file", "cache_dir", "models_dir"} <= set(found)


def test_models_lists_the_default_one_and_how_to_get_it(
    kvloom: Kvloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_MODELS", str(tmp_path / "none"))
    found = kvloom("models", "--json", loom=False).document["models"]
    [default] = [model for model in found if model["is_default"]]
    assert default["path"] is None
    assert f"kvloom pull {default['name']}" in kvloom("models", loom=False).out


def test_pull_of_a_file_that_is_here_does_nothing(kvloom: Kvloom, tiny_model: Path) -> None:
    ran = kvloom("pull", tiny_model, "--json", loom=False)
    assert ran.code == 0
    assert ran.document["path"] == str(tiny_model)


def test_an_unknown_model_is_an_error_that_names_known_ones(kvloom: Kvloom) -> None:
    ran = kvloom("count", __file__, "--model", "nosuch", "--json", loom=False)
    assert ran.code == 1
    error = json.loads(ran.err)["error"]
    assert error["type"] == "ModelNotFoundError"
    assert "qwen2.5-coder-0.5b" in error["message"]


def test_fit_adds_up_and_grows_with_the_window(kvloom: Kvloom, tiny_model: Path) -> None:
    small = kvloom("fit", tiny_model, "--context", "1024", "--json", loom=False).document
    large = kvloom("fit", tiny_model, "--context", "4096", "--json", "--max", loom=False).document
    parts = ("weights_bytes", "kv_bytes", "compute_bytes", "output_bytes")
    assert small["total_bytes"] == sum(small[part] for part in parts)
    assert large["kv_bytes"] > small["kv_bytes"]
    assert large["max_context"] == large["trained_context"] == 4096
    assert "it fits" in kvloom("fit", tiny_model, loom=False).out


def test_fit_reads_a_config_json(kvloom: Kvloom, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 300, "max_position_embeddings": 2048,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = kvloom("fit", tmp_path / "config.json", "--context", "1024", "--json", loom=False).document
    assert found["kv_token_bytes"] == 2 * 2 * 2 * 16 * 2


def test_doctor_tells_what_is_here(kvloom: Kvloom, tmp_path: Path) -> None:
    ran = kvloom("doctor", "--home", tmp_path / "h", "--json", loom=False)
    names = {check["name"]: check for check in ran.document["checks"]}
    assert {"Python", "llama.cpp", "CPU", "Home", "Disk", "Catalog", "Models here"} <= set(names)
    assert names["Home"]["state"] == "ok"
    assert ran.document["ok"] is (ran.code == 0)


def test_doctor_says_what_to_do_about_a_damaged_catalog(kvloom: Kvloom, files: list[Path], tmp_path: Path) -> None:
    assert kvloom("chunks", "add", files[0]).code == 0
    catalog = tmp_path / "home" / "catalog.sqlite3"
    for side in tmp_path.glob("home/catalog.sqlite3-*"):
        side.unlink()
    catalog.write_bytes(b"not a database" * 1000)
    ran = kvloom("doctor", "--home", tmp_path / "home", "--json", loom=False)
    [check] = [check for check in ran.document["checks"] if check["name"] == "Catalog"]
    assert ran.code == 1
    assert check["state"] == "fail"
    assert "damaged" in check["found"]
    assert check["advice"]


def test_count_is_exact_and_adds_up(kvloom: Kvloom, files: list[Path]) -> None:
    found = kvloom("count", *files[:2], "--json").document
    assert [row["num_characters"] for row in found["files"]] == [len(path.read_text()) for path in files[:2]]
    assert found["num_tokens"] == sum(row["num_tokens"] for row in found["files"]) > 0
    assert "total" in kvloom("count", *files[:2]).out


def test_count_takes_empty_files_folders_and_standard_input_once(kvloom: Kvloom, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("the cat", encoding="utf-8")
    (tmp_path / "empty").touch()
    found = kvloom("count", tmp_path / "empty", "-", folder, "--json", stdin="the cat").document
    assert [row["file"] for row in found["files"]] == [str(tmp_path / "empty"), "-", "folder/a.txt"]
    assert found["files"][0]["num_tokens"] == 0
    assert found["files"][1]["num_tokens"] == found["files"][2]["num_tokens"] > 0
    for command in ("count", "summarize"):
        ran = kvloom(command, "-", "-", stdin="the cat")
        assert ran.code == 1
        assert "named more than once" in ran.err


def test_count_of_a_binary_or_missing_file_is_an_error_with_its_reason(kvloom: Kvloom, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"abc\x00")
    assert "x.bin is binary (a NUL byte at 3)" in kvloom("count", tmp_path / "x.bin").err
    ran = kvloom("count", tmp_path / "none.txt")
    assert ran.code == 1
    assert "no such file" in ran.err


def test_chunks_can_be_added_listed_shown_and_removed(kvloom: Kvloom, files: list[Path]) -> None:
    added = kvloom("chunks", "add", files[0], files[1], "--warm", "--json").document["chunks"]
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert added[0]["id"] == digest
    listed = kvloom("chunks", "ls", "--json").document["chunks"]
    assert [chunk["name"] for chunk in listed] == ["a.py", "b.py"]
    assert {chunk["tier"] for chunk in listed} == {"disk"}
    shown = kvloom("chunks", "show", digest[:8], "--set", "topic=one", "--json").document
    assert shown["chunk"]["id"] == digest
    assert shown["metadata"] == {"topic": "one"}
    assert sum(len(part["token_ids"]) for part in shown["parts"]) == shown["chunk"]["num_tokens"]
    assert "topic = one" in kvloom("chunks", "show", "a.py").out
    assert kvloom("chunks", "rm", "a.py", "--json").document["ids"] == [digest]
    assert [chunk["name"] for chunk in kvloom("chunks", "ls", "--json").document["chunks"]] == ["b.py"]
    assert kvloom("chunks", "rm", "b.py", "--purge", "--json").document["bytes"] > 0
    assert kvloom("chunks", "ls").out.startswith("no chunks yet")


def test_a_purge_of_several_goes_on_beside_a_library_that_cannot_be_read(
    kvloom: Kvloom, files: list[Path], tmp_path: Path
) -> None:
    kvloom("chunks", "add", *files)
    folder = tmp_path / "home" / "libraries"
    folder.mkdir(exist_ok=True)
    (folder / "broken.sqlite3").write_bytes(b"no database at all, and longer than a header" * 50)
    ran = kvloom("chunks", "rm", *(file.name for file in files[:2]), "--purge")
    assert ran.code == 1
    assert "is purged, but its text may still stand" in ran.err
    names = {chunk["name"] for chunk in kvloom("chunks", "ls", "--json").document["chunks"]}
    assert not names & {file.name for file in files[:2]}


def test_verify_finds_a_damaged_entry_and_gc_needs_no_help(kvloom: Kvloom, files: list[Path], tmp_path: Path) -> None:
    kvloom("chunks", "add", files[0], "--warm")
    assert kvloom("chunks", "verify", "--json").document["damaged"] == []
    for entry in (tmp_path / "home").rglob("*.kve"):
        data = bytearray(entry.read_bytes())
        data[-1] ^= 1
        entry.write_bytes(bytes(data))
    ran = kvloom("chunks", "verify", "--json")
    assert ran.code == 1
    assert len(ran.document["damaged"]) == ran.document["num_entries"] > 0
    assert kvloom("chunks", "gc", "--json").code == 0


def test_an_unknown_chunk_removes_nothing(kvloom: Kvloom, files: list[Path]) -> None:
    kvloom("chunks", "add", files[0])
    ran = kvloom("chunks", "rm", "a.py", "nosuch", "--json")
    assert ran.code == 1
    assert json.loads(ran.err)["error"]["type"] == "UnknownChunkError"
    assert len(kvloom("chunks", "ls", "--json").document["chunks"]) == 1


def test_ask_answers_about_files_and_reports_its_usage(kvloom: Kvloom, files: list[Path]) -> None:
    ran = kvloom("ask", "-f", files[0], "-f", files[1], "--max-tokens", "4", "--temperature", "0", "what?", "--json")
    assert ran.code == 0, ran.err
    usage = ran.document["usage"]
    parts = ("reused_tokens", "loaded_tokens", "computed_tokens")
    assert usage["prompt_tokens"] == sum(usage[part] for part in parts)
    assert usage["completion_tokens"] <= 4
    assert len(ran.document["chunks"]) == 2


def test_the_next_question_about_the_same_files_computes_only_itself(kvloom: Kvloom, files: list[Path]) -> None:
    words = ("ask", "-f", files[0], "--max-tokens", "2", "--temperature", "0", "what?", "--json")
    first, second = kvloom(*words).document["usage"], kvloom(*words).document["usage"]
    assert second["loaded_tokens"] > 0
    assert second["computed_tokens"] < first["computed_tokens"]


def test_a_question_may_come_on_standard_input_and_may_not_be_empty(kvloom: Kvloom) -> None:
    assert kvloom("ask", "-", "--max-tokens", "2", stdin="why?\n").code == 0
    ran = kvloom("ask", "-", stdin="\n")
    assert ran.code == 1
    assert "empty" in ran.err


def test_a_question_that_does_not_fit_is_refused_with_the_numbers(kvloom: Kvloom) -> None:
    ran = kvloom("ask", "x y z " * 1000, "--json")
    assert ran.code == 1
    error = json.loads(ran.err)["error"]
    assert error["type"] == "ContextOverflowError"
    assert error["num_needed_tokens"] > error["num_window_tokens"] == 1024


def test_sessions_are_listed_shown_and_deleted(kvloom: Kvloom) -> None:
    assert kvloom("chat", "--session", "work", stdin="hello\n").code == 0
    [info] = kvloom("sessions", "list", "--json").document["sessions"]
    assert (info["name"], info["num_turns"]) == ("work", 1)
    shown = kvloom("sessions", "show", "work", "--json").document
    assert [turn["user"] for turn in shown["turns"]] == ["hello"]
    assert sum(row["num_tokens"] for row in shown["rows"] if row["is_active"]) == shown["usage"]["used"]
    assert "> hello" in kvloom("sessions", "show", info["id"][:6]).out
    assert kvloom("sessions", "delete", "work", "--json").document["deleted"] == [info["id"]]
    assert "no sessions yet" in kvloom("sessions", "list").out


def test_an_unknown_session_names_the_nearest(kvloom: Kvloom) -> None:
    kvloom("chat", "--session", "worklog", stdin="/quit\n")
    ran = kvloom("sessions", "show", "worklgo")
    assert ran.code == 1
    assert "did you mean worklog" in ran.err


def test_a_wrong_setting_is_an_error_and_not_a_traceback(kvloom: Kvloom) -> None:
    ran = kvloom("chunks", "ls", "--kv-type", "f17")
    assert ran.code == 1
    assert "kv_type" in ran.err
    assert "Traceback" not in ran.err


def test_a_home_that_cannot_be_made_is_an_error_with_a_way_out(
    kvloom: Kvloom, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    ran = kvloom("chunks", "ls", "--model", tiny_model, "--home", tmp_path / "file" / "home", loom=False)
    assert ran.code == 1
    assert "KVLOOM_HOME" in ran.err


@pytest.mark.parametrize("name", ["switch", "restart", "fidelity", "decode", "codecs", "room"])
def test_every_benchmark_has_a_command(name: str, kvloom: Kvloom) -> None:
    ran = kvloom("bench", name, "--help", loom=False)
    assert ran.code == 0
    assert "--quick" in ran.out


def test_the_command_reference_is_what_the_program_says() -> None:
    tool = Path(__file__).resolve().parents[3] / "tools" / "cli_docs.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
