"""The main job on real files, measured: load, chat, switch off and on, reorder, restart, each against a full prefill.

Uses the façade as any caller would. Every number comes from the run itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvloom.session.values import ProgressCallback, Reply, Warmed
from kvloom.types import F32Array, Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

SYSTEM = "You are a helpful assistant. Answer in one short sentence."

MAX_REPLY_TOKENS = 32
"""Long enough to be read, short enough that a reply takes a second or two on two cores."""

PROBES = (
    "Which exceptions do these files define?",
    "What does the first file do?",
    "Which functions take more than two arguments?",
    "Name one class and what it is for.",
)
"""Questions whose next-token distributions are compared: one distribution says little, KL is heavy-tailed."""

SAMPLE_FILES = ("asyncio/exceptions.py", "urllib/error.py", "unittest/signals.py", "keyword.py")
"""Of the Python standard library, so that they are on every machine: 300 to 600 tokens each."""


@dataclass(frozen=True)
class DemoRow:
    """One step. None where a number does not apply.

    `prefill_s`: the exact way to the same first token, measured in the same run; it computed
    `prefill_computed_tokens` of `prompt_tokens`, for what it had seen before is reused there, too. `kl` is the mean
    over the probes, in nats; `top1` the share of probes whose likeliest token is the same.
    """

    step: str
    prompt_tokens: int
    reused_tokens: int
    loaded_tokens: int
    rotated_tokens: int
    computed_tokens: int
    ttft_s: float | None = None
    prefill_computed_tokens: int | None = None
    prefill_s: float | None = None
    speedup: float | None = None
    kl: float | None = None
    top1: float | None = None
    text: str = ""


@dataclass(frozen=True)
class DemoReport:
    """Everything that was run. `load_s`: computing the KV of all files, once.

    `restart_kl` is that of the next token after the restart against before it. Where it is not identical to the bit,
    what the demo did before lies in other cells than after a restart (docs/concepts.md).
    """

    model: str
    fidelity: Fidelity
    files: tuple[str, ...]
    num_file_tokens: int
    rows: tuple[DemoRow, ...]
    load_s: float
    restart_kl: float
    is_restart_identical: bool
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """A composition the exact way against ours."""

    prefill: Warmed
    prefill_s: float
    kl: float
    top1: float


def sample_files() -> list[Path]:
    """Real files that any Python brings along."""
    import asyncio

    library = Path(asyncio.__file__).parent.parent
    return [library / name for name in SAMPLE_FILES]


OpenLoom = Callable[[], "Loom"]
Tell = Callable[[str], None]


class Demo:
    """Runs the steps in order and collects a row for each. `open_loom` is called twice: at the start and to restart."""

    def __init__(self, open_loom: OpenLoom, files: Sequence[Path], tell: Tell, progress: ProgressCallback) -> None:
        self._open = open_loom
        self._files = files
        self._tell = tell
        self._progress = progress
        self._rows: list[DemoRow] = []
        self._num_file_tokens = 0
        self._load_s = 0.0

    def run(self) -> DemoReport:
        began = time.perf_counter()
        with self._open() as loom:
            session, ids = self._load(loom)
            with session:
                self._ask(loom, session, "ask", "What do these files have in common?")
                session.deactivate(ids[1])
                self._ask(loom, session, f"{self._name(1)} off", "Which exceptions can be raised?")
                session.activate(ids[1])
                session.move(ids[-1], 0)
                session.move(ids[0], len(ids) - 1)
                self._ask(loom, session, "on again, reordered", "Which class is about time?")
                before = session.next_logits(PROBES[0])
                kept = session.id
            status = loom.status()
        self._tell("closed; opening it again and resuming the session")
        with self._open() as loom, loom.session(id=kept) as session:
            reply = self._reply(session, "What is an incomplete read?")
            self._rows.append(self._against_last_prefill(self._row("after a restart", reply)))
            session.undo()
            after = session.next_logits(PROBES[0])
        return DemoReport(
            model=status.model,
            fidelity=status.fidelity,
            files=tuple(str(path) for path in self._files),
            num_file_tokens=self._num_file_tokens,
            rows=tuple(self._rows),
            load_s=self._load_s,
            restart_kl=kl_divergence(before, after),
            is_restart_identical=bool(np.array_equal(before, after)),
            seconds=time.perf_counter() - began,
        )

    def _name(self, index: int) -> str:
        return self._files[index].name

    def _load(self, loom: Loom) -> tuple[Session, list[str]]:
        session = loom.session(system=SYSTEM)
        chunks = [session.load(path) for path in self._files]
        for chunk in chunks:
            self._tell(f"loaded {chunk.id[:12]} {chunk.name}: {chunk.num_tokens} tokens")
        self._num_file_tokens = sum(chunk.num_tokens for chunk in chunks)
        with self._timed(f"computing the KV of {len(chunks)} files, once"):
            warmed = session.warm(self._progress)
        self._load_s = warmed.seconds
        total = warmed.reused_tokens + warmed.loaded_tokens + warmed.computed_tokens
        self._rows.append(
            DemoRow(
                f"load {len(chunks)} files",
                total,
                warmed.reused_tokens,
                warmed.loaded_tokens,
                warmed.rotated_tokens,
                warmed.computed_tokens,
            )
        )
        return session, [str(chunk.id) for chunk in chunks]

    def _ask(self, loom: Loom, session: Session, step: str, question: str) -> None:
        """A turn in the chat, then the same composition the exact way."""
        reply = self._reply(session, question)
        refs = [s.ref for s in session.usage().segments if s.kind == "chunk" and s.is_active]
        compared = self._compare(loom, list(dict.fromkeys(refs)), step)
        row = self._row(step, reply)
        self._rows.append(
            replace(
                row,
                prefill_computed_tokens=compared.prefill.computed_tokens,
                prefill_s=compared.prefill_s,
                speedup=compared.prefill_s / reply.usage.ttft_s,
                kl=compared.kl,
                top1=compared.top1,
            )
        )

    def _reply(self, session: Session, question: str) -> Reply:
        self._tell(f"> {question}")
        reply = session.generate(
            question, max_tokens=MAX_REPLY_TOKENS, temperature=0.0, seed=1, progress=self._progress
        )
        self._tell(f"  {reply.text.strip()}")
        return reply

    @staticmethod
    def _row(step: str, reply: Reply) -> DemoRow:
        usage = reply.usage
        return DemoRow(
            step, usage.prompt_tokens, usage.reused_tokens, usage.loaded_tokens, usage.rotated_tokens,
            usage.computed_tokens, usage.ttft_s, text=reply.text,
        )  # fmt: skip

    def _against_last_prefill(self, row: DemoRow) -> DemoRow:
        """A restart holds what the step before it held, so that step's full prefill is what it is spared."""
        last = self._rows[-1]
        if last.prefill_s is None or row.ttft_s is None:
            return row
        return replace(
            row,
            prefill_computed_tokens=last.prefill_computed_tokens,
            prefill_s=last.prefill_s,
            speedup=last.prefill_s / row.ttft_s,
        )

    def _compare(self, loom: Loom, refs: Sequence[str], step: str) -> Comparison:
        """Two sessions with these chunks and no turns: one exact, one as the chat is. Both are deleted again."""
        with self._timed(f"the same {len(refs)} files the exact way ({step})"):
            with self._scratch(loom, Fidelity.EXACT) as full:
                full.activate(*refs)
                warmed = full.warm(self._progress)
                began = time.perf_counter()
                exact = [full.next_logits(PROBES[0])]
                prefill_s = warmed.seconds + time.perf_counter() - began
                exact += [full.next_logits(probe) for probe in PROBES[1:]]
            with self._scratch(loom, None) as ours:
                ours.activate(*refs)
                moved = [ours.next_logits(probe) for probe in PROBES]
        pairs = list(zip(exact, moved, strict=True))
        return Comparison(
            prefill=warmed,
            prefill_s=prefill_s,
            kl=float(np.mean([kl_divergence(p, q) for p, q in pairs])),
            top1=float(np.mean([int(p.argmax()) == int(q.argmax()) for p, q in pairs])),
        )

    @contextmanager
    def _scratch(self, loom: Loom, fidelity: Fidelity | None) -> Iterator[Session]:
        session = loom.session(system=SYSTEM, fidelity=fidelity)
        try:
            with session:
                yield session
        finally:
            loom.delete_session(session.id)

    @contextmanager
    def _timed(self, task: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._tell(f"{task}: {time.perf_counter() - began:.1f} s")


def kl_divergence(exact: F32Array, other: F32Array) -> float:
    """KL(exact ‖ other) in nats, of the distributions that two rows of logits (n_vocab,) stand for."""
    p, q = _log_softmax(exact), _log_softmax(other)
    return float(max(0.0, np.sum(np.exp(p) * (p - q))))


def _log_softmax(logits: F32Array) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = logits.astype(np.float64)
    values -= values.max()
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = values - np.log(np.sum(np.exp(values)))
    return result
