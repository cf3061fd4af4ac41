"""Restarts, kills and two processes on one home, with real processes and a real model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import kvloom
from kvloom.types import EntryId

pytestmark = pytest.mark.e2e

CHILD = Path(__file__).parent / "restart_child.py"
PATIENCE_S = 120


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other are slower than one where other tests share the cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOOM_THREADS", "1")
        yield


@contextmanager
def started(job: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(CHILD), job, *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ran(job: str, *args: object) -> dict[str, str]:
    """What the child said, by first word."""
    with started(job, *args) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert "Traceback" not in err and "Exception" not in err
        return {line.partition(" ")[0]: line.partition(" ")[2] for line in out.splitlines()}


def read_until(process: subprocess.Popen[str], word: str, count: int = 1) -> list[str]:
    """The lines up to the `count`-th that begins with `word`."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        count -= line.startswith(word)
        if not count:
            return lines
    raise AssertionError(f"the child ended early: {lines[-5:]} {process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize("mode", ["exact", "splice"])
def test_a_new_process_has_the_same_logits_to_the_bit_and_computes_nothing(
    smollm2_path: Path, tmp_path: Path, mode: str
) -> None:
    made = ran("make", smollm2_path, tmp_path, mode)
    resumed = ran("resume", smollm2_path, tmp_path, made["session"])
    assert resumed["computed"].startswith("0 loaded ")
    assert int(resumed["computed"].split()[-1]) > 60
    assert resumed["reply"] == made["reply"]
    assert resumed["logits"] == made["logits"]


@pytest.mark.parametrize("extra_deltas", [0, 2])
def test_a_kill_during_a_reply_loses_no_acknowledged_turn(
    smollm2_path: Path, tmp_path: Path, extra_deltas: int
) -> None:
    with started("talk_for_ever", smollm2_path, tmp_path) as process:
        lines = read_until(process, "turn", 2)
        if extra_deltas:
            lines += read_until(process, "delta", extra_deltas)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        lines += process.stdout.read().split("\n")
    acknowledged = [line.split()[2] for line in lines if line.startswith("turn") and len(line.split()) == 3]
    session = next(line.split()[1] for line in lines if line.startswith("session"))
    with kvloom.open(smollm2_path, context=512, home=tmp_path) as loom:
        chat = loom.session(id=session)
        found = [turn.id for turn in chat.history()]
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) <= len(acknowledged) + 1
        assert all(not result.fault for result in loom.verify())
        chat.generate("Are you well?", max_tokens=2)


def test_a_kill_while_storing_loses_nothing_that_was_acknowledged(smollm2_path: Path, tmp_path: Path) -> None:
    with started("store_for_ever", smollm2_path, tmp_path) as process:
        lines = read_until(process, "stored", 2)
        lines += read_until(process, "chunk")
        time.sleep(0.05)  # into the middle of computing and writing; any moment is a good one
        process.send_signal(signal.SIGKILL)
        process.wait()
    with kvloom.open(smollm2_path, context=512, home=tmp_path) as loom:
        known = {status.id for status in loom.chunks()}
        assert {line.split()[1] for line in lines if line.startswith("chunk")} <= known
        for line in lines:
            if line.startswith("stored"):
                assert loom.store.get(EntryId(line.split()[1])) is not None
        assert all(not result.fault for result in loom.verify())


def test_two_processes_on_one_home_share_chunks_but_no_session(smollm2_path: Path, tmp_path: Path) -> None:
    made = ran("make", smollm2_path, tmp_path, "splice")
    with started("hold", smollm2_path, tmp_path, made["session"]) as process:
        read_until(process, "holding")
        with kvloom.open(smollm2_path, context=512, home=tmp_path) as loom:
            with pytest.raises(kvloom.SessionBusyError, match=str(process.pid)):
                loom.session(id=made["session"])
            assert [info.is_open for info in loom.sessions()] == [True]
            with pytest.raises(kvloom.SessionBusyError):
                loom.purge("notes.txt")
            assert loom.resolve("notes.txt")
            with pytest.raises(kvloom.SessionBusyError):
                loom.delete_session(made["session"])
            mine = loom.session(fidelity="splice")
            mine.activate("notes.txt")
            assert mine.warm().loaded_tokens > 0, "the other process's KV"
            mine.generate("How many?", max_tokens=2, temperature=0.0)
            out, err = process.communicate("go on\n", timeout=PATIENCE_S)
            assert process.returncode == 0, err
            assert out.startswith("reply")
            chat = loom.session(id=made["session"])
            assert len(chat.history()) == 2


def test_a_process_that_just_ends_neither_hangs_nor_loses_its_turns(smollm2_path: Path, tmp_path: Path) -> None:
    said = ran("just_end", smollm2_path, tmp_path, "splice")
    assert "ending" in said
    with kvloom.open(smollm2_path, context=512, home=tmp_path) as loom:
        chat = loom.session(id=said["session"])
        assert len(chat.history()) == 1
        assert chat.warm().computed_tokens == 0


def test_ctrl_c_in_the_middle_leaves_the_context_as_before(smollm2_path: Path, tmp_path: Path) -> None:
    with started("interrupted", smollm2_path, tmp_path, "splice") as process:
        read_until(process, "delta", 4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "as-before True" in out
    assert "cells 0 KeyboardInterrupt" in out
