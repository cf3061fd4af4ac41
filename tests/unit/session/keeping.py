"""Kills a working process at a random instant, and looks at what it had acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.unit.session.fakes import fake_loom

ROOT = Path(__file__).resolve().parents[3]


def kill_once(home: Path, seed: int) -> tuple[set[str], set[str]]:
    """(questions, snapshots) that were acknowledged before the kill."""
    command = [sys.executable, "-m", "tests.unit.session.keeping_child", str(home), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # Every other one is killed with something acknowledged, however slow the machine is.
    first = [process.stdout.readline()] if seed % 2 else []
    # Waiting for an instant is the point here: nothing is synchronised by it.
    time.sleep(random.Random(seed).uniform(0.0, 0.4))
    process.send_signal(signal.SIGKILL)
    lines = [line for line in (*first, *process.stdout.readlines()) if line.endswith("\n")]
    process.wait(30)
    process.stdout.close()
    words = [line.rstrip("\n").split(" ", 1) for line in lines]
    return {rest for kind, rest in words if kind == "turn"}, {rest for kind, rest in words if kind == "snapshot"}


def check(home: Path, questions: set[str], snapshots: set[str]) -> None:
    """The home opens, everything acknowledged is there, the conversation goes on."""
    with fake_loom(home, context=512, reserve_tokens=48, compression={"enabled": False}) as loom:
        chat = loom.session(name="kept")
        given = {turn.user for turn in chat.history()} | {line.text for line in chat.ledger() if line.kind == "turn"}
        assert questions <= given, sorted(questions - given)[:5]
        known = {snapshot.id for snapshot in chat.snapshots()}
        assert snapshots <= known, snapshots - known
        for snapshot in sorted(snapshots)[:2]:  # of the automatic ones a restore may clean some up
            chat.restore(snapshot)
        chat.generate("and on it goes", max_tokens=2, temperature=0.0)
        for found in loom.verify():
            assert not found.fault, found
