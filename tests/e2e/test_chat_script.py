"""A scripted chat as a user runs it: a real subprocess, a real model, real files, over a restart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

WAIT_S = 280
"""For a whole script on a busy machine."""

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def files_of_python() -> list[Path]:
    import asyncio

    library = Path(asyncio.__file__).parent.parent
    return [library / "keyword.py", library / "asyncio" / "mixins.py", library / "asyncio" / "threads.py"]


@pytest.fixture
def kvloom(smollm2_path: Path, tmp_path: Path) -> Run:
    """Runs `kvloom …` with SmolLM2 in a folder with three real files and a home beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    for path in files_of_python():
        shutil.copy(path, folder)

    def run(*words: str, stdin: str = "", model: Path = smollm2_path) -> Done:
        command = [sys.executable, "-m", "kvloom.cli.main", *words, "--model", str(model)]
        return subprocess.run(
            [*command, "--home", str(tmp_path / "home"), "--context", "4096"],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
            cwd=folder,
            env={**os.environ, "KVLOOM_SAMPLING__MAX_TOKENS": "8", "KVLOOM_SAMPLING__TEMPERATURE": "0"},
        )

    return run


def results(done: Done) -> list[Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line)["result"] for line in done.stdout.splitlines()]


def counts(reply: Any) -> Sequence[int]:
    usage = reply["usage"]
    return [usage[f"{name}_tokens"] for name in ("prompt", "reused", "loaded", "computed", "rotated")]


def test_chunks_switch_off_and_on_and_move_without_being_computed_again_over_a_restart(kvloom: Run) -> None:
    script = (
        "/load keyword.py mixins.py threads.py\nWhat is in keyword.py?\n/deactivate mixins.py\nAnd now?\n"
        "/activate mixins.py\n/move threads.py 0\nAnd now?\n/context\n"
    )
    loaded, first, _, off, _, _, moved, view = results(kvloom("chat", "--session", "work", "--json", stdin=script))
    num_tokens = [row["num_tokens"] for row in loaded["loaded"]]
    assert loaded["loaded"][0]["id"] == hashlib.sha256(files_of_python()[0].read_bytes()).hexdigest()
    for reply in (first, off, moved):
        prompt, reused, placed, computed, rotated = counts(reply)
        assert prompt == reused + placed + computed
        assert rotated <= placed
        assert computed < min(num_tokens), "no chunk was computed again for a reply"
    assert counts(off)[0] < counts(first)[0]
    assert counts(moved)[4] > 0
    used = view["usage"]["used"]
    assert used == sum(row["num_tokens"] for row in view["rows"] if row["is_active"])

    again, prompt = results(kvloom("chat", "--session", "work", "--json", stdin="Once more?\n/context prompt\n"))
    total, reused, placed, computed, _ = counts(again)
    assert reused == 0
    assert placed == used
    assert computed == total - used
    assert len(prompt["tokens"]) == total + again["usage"]["completion_tokens"]
    assert prompt["text"].index("to_thread") < prompt["text"].index("kwlist")


TURNS = "".join(f"My pet number {number} is a {pet}.\n" for number, pet in enumerate(("cat", "dog", "owl", "fox")))


def test_snapshots_sizes_and_the_ledger_over_a_restart(kvloom: Run) -> None:
    script = (
        f"{TURNS}/context snapshot four pets\n/context prompt\n/context size 6k\n/clear 1 2\n/ledger\nAnd now?\n"
        "/context stats\n/context\n"
    )
    *_, taken, there, resized, _, ledger, _, stats, view = results(
        kvloom("chat", "--session", "pets", "--json", stdin=script)
    )
    assert (resized["window_before"], resized["window"]) == (4096, 6144)
    assert [line["text"] for line in ledger["lines"]] == TURNS.splitlines()[:2]
    assert stats["stats"]["num_ledger_tokens"] == ledger["num_tokens"]
    standing = view["standing"]
    assert standing["memory"][0]["total_bytes"] > standing["memory"][0]["used_bytes"] > 0
    assert standing["num_snapshots"] >= 2

    script = f"/recall {ledger['lines'][0]['ref']}\n/context restore 'four pets'\n/context prompt\nWhich pets?\n"
    recalled, restored, again, reply = results(kvloom("chat", "--session", "pets", "--json", stdin=script))
    assert recalled["used"] > 0
    assert restored["restored"]["id"] == taken["id"]
    assert again["tokens"] == there["tokens"]
    total, _, _, computed, _ = counts(reply)
    assert computed == total - len(there["tokens"]), "what the snapshot holds is not computed again"


def test_a_compression_is_estimated_done_and_undone_and_a_fork_goes_its_own_way(kvloom: Run) -> None:
    script = (
        f"{TURNS}/context snapshot whole\n/context compress --dry-run --strategy summarize\n"
        "/context compress --strategy summarize\n/undo\n/context fork whole other\n/context policy fifo\n/pin 1\n"
        "/context\n"
    )
    *_, taken, estimate, done, _, forked, _, pinned, view = results(
        kvloom("chat", "--session", "pets", "--json", stdin=script)
    )
    assert estimate["num_turns"] == done["num_turns"] == 3
    assert done["num_tokens_before"] == taken["num_tokens"] == forked["used"]
    assert done["num_tokens_after"] < done["num_tokens_before"]
    assert done["summary"]
    assert view["session"]["name"] == "other"
    assert view["usage"]["policy"] == "fifo"
    assert [row["ref"] for row in view["rows"] if row["is_pinned"]] == [pinned["id"]]

    found = json.loads(kvloom("context", "show", "--session", "pets", "--json").stdout)
    assert found["usage"]["policy"] == "adaptive"
    assert found["usage"]["used"] == taken["num_tokens"]
    listed = json.loads(kvloom("context", "list", "--session", "pets", "--json").stdout)
    assert taken["id"] in [one["id"] for one in listed["snapshots"]]


def test_plain_output_echoes_the_script_and_reports_each_reply(kvloom: Run) -> None:
    done = kvloom("chat", stdin='/load keyword.py\n"""\nWhat is\nkwlist?\n"""\n/quit\n')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("> /load keyword.py\nloaded ")
    assert '> """\nWhat is\nkwlist?\n"""\n' in done.stdout
    assert "splice: chunks are placed from KV computed on their own" in done.stdout
    assert "prompt " in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_the_first_failing_line_ends_the_script_with_1(kvloom: Run) -> None:
    done = kvloom("chat", stdin="/load keyword.py\n/activate 0000000\n/quit\n")
    assert done.returncode == 1
    assert "> /quit" not in done.stdout
    assert "\nerror: no chunk is called" in f"\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_script_stops_the_reply_and_exits_with_130(smollm2_path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "KVLOOM_SAMPLING__MAX_TOKENS": "2000", "KVLOOM_SAMPLING__TEMPERATURE": "0"}
    kvloom_ = [sys.executable, "-m", "kvloom.cli.main"]
    options = ["--model", str(smollm2_path), "--home", str(tmp_path / "home"), "--context", "4096"]
    with subprocess.Popen(
        [*kvloom_, "chat", "--session", "story", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"Write a long story about a lighthouse, the sea and a storm.\n/quit\n")
        child.stdin.close()
        # The echo, then some of a reply of several hundred tokens.
        assert child.stdout.readline().startswith(b"> Write a long story")
        assert child.stdout.read(20)
        child.send_signal(signal.SIGINT)
        assert child.wait(WAIT_S) == 130
        assert b"/quit" not in child.stdout.read()
    shown = [*kvloom_, "sessions", "show", "story", *options, "--json"]
    done = subprocess.run(shown, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["turns"] == []


def test_output_that_nobody_reads_any_more_is_no_traceback(kvloom: Run, tmp_path: Path) -> None:
    command = f"{sys.executable} -m kvloom.cli.main models | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
