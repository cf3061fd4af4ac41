"""`bench restart`: a stored context in a new process, time to the first token once the model is loaded.

Beside it llama.cpp's server, cold and with its own slot restore. Knows the façade and the peer only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from kvloom.bench.peer import Peer, PeerSettings, child_environment, require_peer
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import Request, own_home, settings_for
from kvloom.bench.teller import Teller
from kvloom.errors import EngineError
from kvloom.types import Fidelity

TAIL_TOKENS = 5
QUESTION_TOKENS = 30
COLD, RESTORE = "llama.cpp server, cold prefill", "llama.cpp server, slot restore"
SLOT_FILE = "slot.bin"
FIDELITIES = (Fidelity.SPLICE, Fidelity.EXACT)

TARGETS = {("tail-5", COLD): 80.0, ("question-30", COLD): 40.0, ("tail-5", RESTORE): 0.9, ("question-30", RESTORE): 0.9}
"""Least speedup wanted, by case and by what stands beside ours."""


@dataclass(frozen=True)
class Size:
    """How much is stored and how often it is asked for."""

    num_documents: int
    document_tokens: int
    context: int
    repeats: int


FULL = Size(num_documents=10, document_tokens=795, context=9216, repeats=3)
QUICK = Size(num_documents=3, document_tokens=256, context=2048, repeats=1)


@dataclass(frozen=True)
class Stored:
    """A session that a process has stored before it ended."""

    session: str
    tokens: tuple[int, ...]
    question: tuple[int, ...]
    setup: Mapping[str, Any]
    peer: PeerSettings

    @property
    def tail(self) -> tuple[int, ...]:
        return self.question[:TAIL_TOKENS]

    def prompt(self, case: str) -> tuple[int, ...]:
        return self.tokens + (self.tail if case == "tail-5" else self.question)


def run_child(job: Mapping[str, object]) -> dict[str, Any]:
    """One process of ours from start to end; what it measured. Raises EngineError with its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "kvloom.bench.restart_child", json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise EngineError(f"the benchmark's process ended with code {done.returncode}: {done.stderr[-600:].strip()}")
    found = json.loads(lines[-1])
    assert isinstance(found, dict), "the child prints an object"
    return found


class Restart:
    """One run: contexts stored, then asked for again and again, each time by processes that know nothing."""

    def __init__(self, base: Mapping[str, object], size: Size, slots: Path, tell: Teller) -> None:
        self._base = base
        self._size = size
        self._slots = slots
        self._tell = tell
        self.ours: dict[tuple[str, Fidelity], list[dict[str, Any]]] = {}
        self.peers: dict[tuple[str, str], list[float]] = {}
        self.setup: Mapping[str, Any] = {}

    def run(self) -> None:
        stored = {fidelity: self._store(fidelity) for fidelity in FIDELITIES}
        first = stored[FIDELITIES[0]]
        assert all(other.tokens == first.tokens for other in stored.values()), "one context, whatever the fidelity"
        self.setup = {**first.setup, "stored_tokens": len(first.tokens), "question_prompt_tokens": len(first.question)}
        self._cold(first)
        for _ in range(self._size.repeats):
            for case in ("tail-5", "question-30"):
                for fidelity in FIDELITIES:
                    self._ask(case, fidelity, stored[fidelity])
                self._restore(case, first)

    def rows(self) -> list[Row]:
        rows = []
        for fidelity in FIDELITIES:
            for case in ("tail-5", "question-30"):
                ours = self.ours[case, fidelity]
                extra = {name: median(found[name] for found in ours) for name in ("load_s", "weave_s", "question_s")}
                extra |= {name: ours[0][name] for name in ("loaded_tokens", "rotated_tokens", "computed_tokens")}
                for peer in (COLD, RESTORE):
                    sample = (peer, self.peers[case, peer])
                    seconds = [found["ttft_s"] for found in ours]
                    rows.append(compare(case, fidelity.value, seconds, sample, TARGETS[case, peer], extra))
        return rows

    def _store(self, fidelity: Fidelity) -> Stored:
        job = {**self._base, "job": "store", "fidelity": fidelity.value, "size": vars(self._size)}
        found = run_child({**job, "question_tokens": QUESTION_TOKENS, "slots": str(self._slots)})
        self._tell.step(f"stored {len(found['tokens'])} tokens, {fidelity.value}: computed in {found['seconds']:.1f} s")
        return Stored(
            found["session"],
            tuple(found["tokens"]),
            tuple(found["question"]),
            found["setup"],
            PeerSettings(**found["peer"]),
        )

    def _ask(self, case: str, fidelity: Fidelity, stored: Stored) -> None:
        job = {**self._base, "job": "ask", "fidelity": fidelity.value, "size": vars(self._size), "case": case}
        found = run_child(
            {**job, "session": stored.session, "question": list(stored.prompt(case)[len(stored.tokens) :])}
        )
        self.ours.setdefault((case, fidelity), []).append(found)
        self._tell.step(
            f"{case}: kvloom {fidelity.value} {found['ttft_s']:.3f} s (resume {found['resume_s']:.3f}, weave "
            f"{found['weave_s']:.3f}, loaded {found['loaded_tokens']}, rotated {found['rotated_tokens']}, computed "
            f"{found['computed_tokens']}; the model took {found['load_s']:.1f} s before)"
        )

    def _cold(self, stored: Stored) -> None:
        """Cold prefills, each by a fresh server; the first one's slot is saved for the restores."""
        with Peer(stored.peer) as peer:
            answer = peer.complete(stored.tokens)
            peer.save_slot(SLOT_FILE)
        self._note("tail-5", COLD, answer.ttft_s)
        with Peer(stored.peer) as peer:
            self._note("question-30", COLD, peer.complete(stored.prompt("question-30")).ttft_s)

    def _restore(self, case: str, stored: Stored) -> None:
        with Peer(stored.peer) as peer:
            restored = peer.restore_slot(SLOT_FILE)
            self._note(case, RESTORE, restored + peer.complete(stored.prompt(case)).ttft_s)

    def _note(self, case: str, peer: str, seconds: float) -> None:
        self.peers.setdefault((case, peer), []).append(seconds)
        self._tell.step(f"{case}: {peer} {seconds:.3f} s")


def run(request: Request) -> Report:
    """Run the benchmark. About 6 minutes on 2 cores with the default model; `quick` takes one."""
    require_peer()
    size = QUICK if request.quick else FULL
    size = replace(size, repeats=request.repeats or size.repeats)
    settings_for(request, context=size.context)  # a wrong setting is said here, not by a child
    tell = request.teller("restart", len(FIDELITIES) + 2 + size.repeats * 2 * (len(FIDELITIES) + 1))
    with own_home() as home, tempfile.TemporaryDirectory(prefix="kvloom-slots-") as slots:
        base = {"model": request.model, "threads": request.threads, "home": str(home)}
        restart = Restart(base, size, Path(slots), tell)
        restart.run()
    setup = {**restart.setup, "repeats": size.repeats, **request.closing("restart")}
    return Report("restart", setup, tuple(restart.rows()), columns=("load_s", "weave_s", "question_s"), notes=NOTES)


NOTES = (
    "ours: a new process, from the model loaded to the first token: the session resumed, its entries read from disk "
    "and checked, woven, the tail computed.",
    "cold prefill: a fresh server's time to first token for the same token ids (tail-5: for the stored ones alone).",
    "slot restore: a fresh server's restore call and then its time to first token.",
    "The files are in the system's page cache on both sides.",
)
