"""`bench snapshots`: what saving a conversation takes and what going back to it takes, by its length.

Here and in a fresh loom over the same home, to the next token. Knows the façade and its probe only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import psutil

from kvloom.bench.documents import documents
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import SYSTEM, Request, open_loom, own_home, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.config import Settings
from kvloom.errors import UsageError
from kvloom.reduce.truncate import truncate
from kvloom.session.probe import Probe
from kvloom.types import F32Array, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

SIZES = (1_000, 8_000, 32_000)
"""Tokens of the conversations. The last leaves room in a window of 32,768 for a question and its reply."""
QUICK_SIZES = (500,)
TURN_TOKENS, REPLY_TOKENS, AROUND_TOKENS = 500, 4, 48
"""Of a turn: its question, its reply, and the most that a template puts around both."""
ROOM_TOKENS = 512
"""Of a window, beside the conversation: the question that is asked behind it, and the reserve."""
QUESTION = "What was the first thing that I showed you? Name one function of it."
REPEATS = 3


@dataclass
class Times:
    """What was measured of one conversation, in seconds; the lists hold one number for each repeat."""

    num_tokens: int
    num_turns: int
    compute_s: float
    kv_bytes: int
    fidelity: str
    save_s: list[float] = field(default_factory=list)
    saved_bytes: list[int] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    back_call_s: list[float] = field(default_factory=list)
    fresh_s: list[float] = field(default_factory=list)
    fresh_call_s: list[float] = field(default_factory=list)
    open_s: list[float] = field(default_factory=list)
    num_identical: int = 0


@dataclass(frozen=True)
class Kept:
    """A conversation that was saved: where it is, and the logits behind it and the question."""

    session: SessionId
    snapshot: str
    question: tuple[int, ...]
    logits: F32Array


def texts(loom: Loom, size: int) -> Iterator[str]:
    """Texts of real files for the turns of a conversation of `size` tokens."""
    for document in documents(loom.count, size // TURN_TOKENS + 1, TURN_TOKENS):
        yield document.text


def fill(loom: Loom, session: Session, size: int, tell: Teller) -> None:
    """Turns that are really computed, until nearly `size` tokens are used."""
    told = 0
    for text in texts(loom, size):
        left = size - session.usage().used - REPLY_TOKENS - AROUND_TOKENS
        if left <= AROUND_TOKENS:
            return
        asked = truncate(text, min(left, TURN_TOKENS), loom.count).text
        session.generate(asked, max_tokens=REPLY_TOKENS, temperature=0.0)
        if session.usage().used // 4000 > told:
            told = session.usage().used // 4000
            tell.say(f"{session.usage().used} of {size} tokens computed")


def written_bytes() -> int | None:
    """Bytes that this process has written so far; None where the system does not count them."""
    try:
        counters = psutil.Process().io_counters()
    except (AttributeError, NotImplementedError, psutil.Error):
        return None
    written: int | None = getattr(counters, "write_chars", None)
    return written


def save(session: Session, times: Times) -> str:
    """One snapshot, durable when this returns; its id. The KV is stored already and is named, not written again."""
    before = written_bytes()
    began = time.perf_counter()
    taken = session.snapshot(f"saved {len(times.save_s)}")
    times.save_s.append(time.perf_counter() - began)
    after = written_bytes()
    if before is not None and after is not None:
        times.saved_bytes.append(after - before)
    return taken.id


def load(session: Session, kept: Kept) -> tuple[float, F32Array]:
    """Back to the snapshot and on to the logits behind the question; seconds of the restore alone."""
    began = time.perf_counter()
    session.restore(kept.snapshot)
    spent = time.perf_counter() - began
    session.warm()
    return spent, Probe(session).logits_behind(kept.question)


def measure_here(loom: Loom, size: int, repeats: int, tell: Teller) -> tuple[Kept, Times]:
    """The conversation computed, saved, cleared and restored in one process."""
    with loom.session(system=SYSTEM) as session:
        began = time.perf_counter()
        fill(loom, session, size, tell)
        spent = time.perf_counter() - began
        loom.flush()
        used, turns = session.usage().used, len(session.history())
        tell.step(f"{used} tokens in {turns} turns, computed in {spent:.1f} s")
        times = Times(used, turns, spent, used * loom.engine.layout.token_bytes, session.fidelity.value)
        probe = Probe(session)
        question = tuple(probe.question_tokens(QUESTION))
        logits = probe.logits_behind(question)
        saved = [save(session, times) for _ in range(repeats)]
        kept = Kept(session.id, saved[-1], question, logits)
        tell.step(f"saved in {median(times.save_s):.4f} s, {_median_bytes(times)} bytes written")
        for _ in range(repeats):
            session.clear()
            session.warm()
            began = time.perf_counter()
            spent, behind = load(session, kept)
            times.back_s.append(time.perf_counter() - began)
            times.back_call_s.append(spent)
            times.num_identical += bool(np.array_equal(behind, logits))
        tell.step(f"restored here to the next token in {median(times.back_s):.3f} s")
        session.clear()
        return kept, times


def measure_fresh(settings: Settings, home: Path, kept: Kept, times: Times) -> None:
    """The conversation restored in a loom that knows nothing of it but its home; the model's loading counted apart."""
    began = time.perf_counter()
    with open_loom(settings, home) as loom:
        opened = time.perf_counter()
        with loom.session(id=kept.session) as session:
            spent, behind = load(session, kept)
            times.fresh_s.append(time.perf_counter() - opened)
            times.fresh_call_s.append(spent)
            times.open_s.append(opened - began)
            times.num_identical += bool(np.array_equal(behind, kept.logits))
            session.clear()


def rows_of(name: str, times: Times) -> list[Row]:
    """Saving by itself; going back, here and fresh, beside computing the conversation."""
    common = {"tokens": times.num_tokens, "turns": times.num_turns, "kv_bytes": times.kv_bytes}
    saving = {
        "n": len(times.save_s),
        "ours_min_s": min(times.save_s),
        "ours_max_s": max(times.save_s),
        "written_bytes": _median_bytes(times),
        **common,
    }
    loads = len(times.back_s) + len(times.fresh_s)
    same = {"num_identical": times.num_identical, "num_loads": loads, **common}
    computing = ("computing it once", [times.compute_s])
    here = {"restore_s": median(times.back_call_s), **same}
    fresh = {"restore_s": median(times.fresh_call_s), "open_s": median(times.open_s), **same}
    return [
        Row(f"save-{name}", times.fidelity, median(times.save_s), extra=saving),
        compare(f"load-{name}", times.fidelity, times.back_s, computing, None, here),
        compare(f"load-fresh-{name}", times.fidelity, times.fresh_s, computing, None, fresh),
    ]


def _median_bytes(times: Times) -> int | None:
    return int(median(times.saved_bytes)) if times.saved_bytes else None


def label(size: int) -> str:
    return f"{size // 1000}k" if size >= 1000 else str(size)


def chosen(cases: str | None, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of these labels ("1k,8k"); all of them where none is named. Raises UsageError with what there is."""
    known = {label(size): size for size in sizes}
    names = [name.strip() for name in cases.split(",")] if cases else list(known)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no case {unknown[0]!r}; choose of {', '.join(known)}")
    return tuple(size for name, size in known.items() if name in names)


def fitting(request: Request, home: Path, sizes: Sequence[int]) -> tuple[tuple[int, ...], dict[str, object]]:
    """The sizes that the model was trained for, and the report's set-up. Raises UsageError where it is none."""
    with open_loom(_settings(request, sizes[0]), home) as loom:
        trained = loom.engine.train_context
        found = tuple(size for size in sizes if size + ROOM_TOKENS <= trained)
        if not found:
            raise UsageError(
                f"{loom.model_name} was trained for {trained} tokens: too few for a conversation of {sizes[0]} and a "
                "question; take another model"
            )
        return found, setup_of(loom, {"sizes": list(found)})


def _settings(request: Request, size: int) -> Settings:
    # Nothing may leave or be compressed, and nothing else of this machine may decide.
    off = {"enabled": False}
    context = size + ROOM_TOKENS
    return settings_for(request, context=context, reserve_tokens=64, compression=off, guard=off)


def run(request: Request, cases: str | None = None) -> Report:
    """Run the benchmark. About 15 minutes on 2 cores with the default model, most of it to compute 32,000 tokens.

    `cases`: measure only conversations of these lengths ("1k,8k").
    """
    all_sizes = QUICK_SIZES if request.quick else SIZES
    wanted = chosen(cases, all_sizes)
    repeats = request.repeats or (1 if request.quick else REPEATS)
    rows: list[Row] = []
    with own_home() as home:
        sizes, setup = fitting(request, home, wanted)
        tell = request.teller("snapshots", len(sizes) * 4)
        for size in sizes:
            settings = _settings(request, size)
            with open_loom(settings, home, tell) as loom:
                kept, times = measure_here(loom, size, repeats, tell)
            for _ in range(repeats):
                measure_fresh(settings, home, kept, times)
            tell.step(f"restored in a fresh loom to the next token in {median(times.fresh_s):.3f} s")
            rows += rows_of(label(size), times)
    left_out = [label(size) for size in all_sizes if size not in sizes]
    setup |= {"repeats": repeats, "left_out": left_out, **request.closing("snapshots", cases=cases)}
    missing = (f"left out of this run: {', '.join(left_out)}.",) if left_out else ()
    return Report("snapshots", setup, tuple(rows), columns=COLUMNS, notes=(*missing, *NOTES))


COLUMNS = ("tokens", "turns", "written_bytes", "kv_bytes", "restore_s", "open_s", "num_identical", "num_loads")
NOTES = (
    "save: snapshot(), durable on return. written: all that the process wrote meanwhile (metadata and messages). The "
    "KV was stored when it was computed and is only named by a snapshot: kv bytes is what it names.",
    "load: from before restore() of a cleared session to the logits behind a question, the KV in RAM; restore s is the "
    "call alone.",
    "load-fresh: the same in a loom opened over the same home, from the loom open: the session is taken up, its KV "
    "read from disk (from the system's page cache). open s: loading the model, no part of it.",
    "The peer is computing the conversation once, turn by turn, replies of a few tokens included. num identical: how "
    "many loads gave the same logits, to the bit.",
)
