"""`bench room`: what going back, compressing and resizing cost, and which planted facts each policy still knows.

Everything is measured against ourselves: a full prefill of the same ids, or the fact in plain sight. Knows the façade
and its probe only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvloom.bench.documents import documents
from kvloom.bench.facts import facts as planted_facts
from kvloom.bench.remembering import (
    ENDLESS,
    ENDLESS_QUICK,
    POLICIES,
    EndlessSize,
    endless_row,
    facts_loom,
    facts_rows,
)
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import SYSTEM, Request, open_loom, own_home, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError
from kvloom.session.probe import Probe

if TYPE_CHECKING:
    from pathlib import Path

    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

RESTORE_TARGET, QUESTION_TARGET = 80.0, 40.0
COMPRESSION_TARGET = 1 / 0.15
"""The first token after a compression takes at most 15 % of a full prefill of the new prompt."""
RESIZE_LIMIT_S = 0.5
TAIL_TOKENS = 5
ENDLESS_CASE = "endless"
DEFAULT_CASES = ("restore", "compression", "resize", "facts")
CASES = (*DEFAULT_CASES, ENDLESS_CASE)


@dataclass(frozen=True)
class Size:
    """How much is measured. `facts_window`: the window in which the facts are planted, small enough to overflow."""

    context: int
    num_documents: int
    document_tokens: int
    num_facts: int
    facts_window: int
    repeats: int
    policies: tuple[str, ...]
    endless: EndlessSize

    def num_steps(self, case: str) -> int:
        """What a case tells of."""
        return {"restore": 3, "facts": 1 + len(self.policies), ENDLESS_CASE: 3}.get(case, 1)

    def document(self) -> dict[str, object]:
        """As the report's set-up shows it."""
        return {"repeats": self.repeats, "facts": self.num_facts, "facts_window": self.facts_window}


FULL = Size(10240, 10, 768, 40, 1024, 3, POLICIES, ENDLESS)
QUICK = Size(2048, 4, 256, 6, 512, 1, ("adaptive",), ENDLESS_QUICK)


def cold_s(session: Session, ids: list[int], question: list[int]) -> float:
    """Seconds of a full prefill of `ids` and the question, to the logits behind it."""
    began = time.perf_counter()
    Probe(session).cold_log_probs([*ids, *question], 1)
    return time.perf_counter() - began


def restore_rows(loom: Loom, size: Size, repeats: int, tell: Teller) -> list[Row]:
    """A snapshot restored from RAM and disk, and the next token: against a full prefill of the same ids."""
    with loom.session(system=SYSTEM) as session:
        for document in documents(loom.count, size.num_documents, size.document_tokens):
            session.activate(loom.load_text(document.text, name=document.name).id)
        session.warm()
        probe = Probe(session)
        question = probe.question_tokens("Which of these files defines a class, and what is it for? Name one method.")
        ids = session.tokens()
        taken = session.snapshot("all")
        peer = cold_s(session, ids, question)
        tell.step(f"a full prefill of {len(ids)} tokens and a question took {peer:.1f} s")
        rows = []
        for case, tail, target in (
            ("restore-tail-5", question[:TAIL_TOKENS], RESTORE_TARGET),
            ("restore-question", question, QUESTION_TARGET),
        ):
            seconds = []
            for _ in range(repeats):
                session.clear()
                session.warm()
                began = time.perf_counter()
                session.restore(taken.id)
                session.warm()
                probe.logits_behind(tail)
                seconds.append(time.perf_counter() - began)
            rows.append(compare(case, session.fidelity.value, seconds, ("full prefill", [peer]), target))
            tell.step(f"{case}: {min(seconds):.2f} s")
        return rows


def compression_row(loom: Loom, tell: Teller) -> Row:
    """The first token behind a compression, against a full prefill of the compressed prompt."""
    with loom.session(system=SYSTEM) as session:
        number = 0
        while session.usage().used < session.window // 2:
            fact = planted_facts(number + 1)[number]
            session.generate(f"Please remember: {fact.text}", max_tokens=48, temperature=0.0)
            number += 1
        done = session.compress("hybrid")
        question = Probe(session).question_tokens("What did I ask you to remember first?")
        began = time.perf_counter()
        session.next_logits("What did I ask you to remember first?")
        ours = time.perf_counter() - began
        peer = cold_s(session, session.tokens(), question)
        tell.step(
            f"{number} turns compressed; the first token behind it took {ours:.2f} s, a full prefill {peer:.2f} s"
        )
        extra = {
            "tokens_before": done.num_tokens_before,
            "tokens_after": done.num_tokens_after,
            "compression_s": done.seconds,
        }
        fidelity = session.fidelity.value
        return compare("after-compression", fidelity, [ours], ("full prefill", [peer]), COMPRESSION_TARGET, extra)


def resize_row(loom: Loom, repeats: int, tell: Teller) -> Row:
    """Up fourfold and down again with more than half of the window used, the context woven again both times."""
    with loom.session(system=SYSTEM) as session:
        window, seconds = session.window, []
        for document in documents(loom.count, 4, window // 7):
            session.activate(loom.load_text(document.text, name=document.name).id)
        session.warm()
        want = session.next_logits("What is this?")
        for _ in range(repeats):
            began = time.perf_counter()
            session.resize(min(4 * window, loom.engine.train_context))
            session.warm()
            session.resize(window)
            session.warm()
            seconds.append(time.perf_counter() - began)
        is_same = bool((session.next_logits("What is this?") == want).all())
        tell.step(f"{window} → {4 * window} → {window}: {min(seconds):.2f} s")
        extra = {"used_tokens": session.usage().used, "is_identical": is_same}
        return compare("resize-up-and-down", session.fidelity.value, seconds, ("limit", [RESIZE_LIMIT_S]), 1.0, extra)


def chosen(cases: str | None) -> tuple[str, ...]:
    """These cases (with commas between them), the default run's where none is named. Raises UsageError with what there
    is."""
    names = [name.strip() for name in cases.split(",")] if cases is not None else list(DEFAULT_CASES)
    if unknown := [name for name in names if name not in CASES]:
        raise UsageError(f"there is no case {unknown[0]!r}; choose of {', '.join(CASES)}")
    return tuple(name for name in CASES if name in names)


def run(
    request: Request,
    cases: str | None = None,
    facts: int | None = None,
    turns: int | None = None,
    window: int | None = None,
) -> Report:
    """Run the benchmark, or of it only the `cases` named. About 20 minutes on 2 cores with the default model, most of
    it the facts.

    `facts`, `turns`, `window`: the size of the case `endless`, which takes as long again and is only run where it is
    named.
    """
    wanted = chosen(cases)
    asked_sizes = {"facts": facts, "turns": turns, "window": window}
    if ENDLESS_CASE not in wanted and any(value is not None for value in asked_sizes.values()):
        raise UsageError("--facts, --turns and --window are the size of the case endless: add --cases endless")
    size = QUICK if request.quick else FULL
    size = replace(size, repeats=request.repeats or size.repeats, endless=size.endless.but(facts, turns, window))
    tell = request.teller("room", sum(size.num_steps(case) for case in wanted))
    with own_home() as home:
        setup, rows = _measured(request, home, size, wanted, tell)
    left_out = [case for case in CASES if case not in wanted]
    setup |= {"left_out": left_out, **request.closing("room", cases=cases, **asked_sizes)}
    missing = (f"left out of this run: {', '.join(left_out)}.",) if left_out else ()
    return Report("room", setup, tuple(rows), columns=COLUMNS, notes=(*missing, *NOTES))


def _measured(
    request: Request, home: Path, size: Size, wanted: Sequence[str], tell: Teller
) -> tuple[dict[str, object], list[Row]]:
    """The report's set-up and the rows of these cases."""
    setup: dict[str, object] = {}
    rows: list[Row] = []
    on_a_loom: tuple[tuple[int, dict[str, Callable[[Loom], list[Row]]]], ...] = (
        (size.context, {"restore": lambda loom: restore_rows(loom, size, size.repeats, tell)}),
        (
            size.context // 2,
            {
                "compression": lambda loom: [compression_row(loom, tell)],
                "resize": lambda loom: [resize_row(loom, size.repeats, tell)],
            },
        ),
    )
    for context, measures in on_a_loom:
        measured = [measure for case, measure in measures.items() if case in wanted]
        if not measured:
            continue
        with open_loom(settings_for(request, context=context), home, tell) as loom:
            setup = setup or setup_of(loom, size.document())
            for measure in measured:
                rows += measure(loom)
    if not setup:
        with facts_loom(request, home, size.facts_window, is_compressing=False) as loom:
            setup = setup_of(loom, size.document())
    if "facts" in wanted:
        rows += facts_rows(request, home, (size.num_facts, size.facts_window), size.policies, tell)
    if ENDLESS_CASE in wanted:
        with facts_loom(request, home, size.endless.window, is_compressing=True) as loom:
            rows.append(endless_row(loom, size.endless, tell))
    return setup, rows


COLUMNS = ("right", "plain", "recall", "recall_low", "recall_high", "out", "left", "came_back", "compressions")
NOTES = (
    "restore: from before restore() to the logits behind the tail; the context was cleared before, the KV is in RAM.",
    "after-compression: the first token behind compress(); the peer is a full prefill of the compressed prompt.",
    "resize: up fourfold, woven, down, woven; the peer's column is the limit of 0.5 s.",
    "facts: each in a turn of its own, then asked for one by one; speedup is the share of what the model answers with "
    "the fact in plain sight. adaptive compresses, the others are measured without compression.",
    "endless: facts and small talk by turns in a conversation of many windows, then the facts asked for one by one. "
    "speedup (recall) is the share of the facts answered in plain sight that is answered here too, with Wilson's 95 % "
    "interval; out: facts whose turns had left the window by then; came back: turns, while talking and for the "
    "questions.",
)
