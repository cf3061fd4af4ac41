"""`bench room`: what going back, compressing and resizing cost, and which planted facts each policy still knows.

Everything is measured against ourselves: a full prefill of the same ids, or the fact in plain sight. Knows the façade
and its probe only.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvloom.bench.documents import documents
from kvloom.bench.facts import Fact, facts
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import SYSTEM, Request, open_loom, own_home, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.session.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

RESTORE_TARGET, QUESTION_TARGET = 80.0, 40.0
COMPRESSION_TARGET = 1 / 0.15
"""The first token after a compression takes at most 15 % of a full prefill of the new prompt."""
RESIZE_LIMIT_S = 0.5
RECALL_TARGET = 0.9
TAIL_TOKENS = 5
POLICIES = ("adaptive", "fifo", "sliding_window", "keep_first", "clear")
COMPRESSED = ("adaptive",)
"""Policies that are measured with compression; the others without, as what they are on their own."""


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


FULL = Size(10240, 10, 768, 40, 1024, 3, POLICIES)
QUICK = Size(2048, 4, 256, 6, 512, 1, ("adaptive",))


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
            fact = facts(number + 1)[number]
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


@dataclass(frozen=True)
class Recall:
    """How many of the planted facts were answered right."""

    policy: str
    num_right: int
    num_plain: int
    num_compressions: int
    seconds: float


def recall_of(loom: Loom, policy: str, planted: list[Fact], num_plain: int, tell: Teller) -> Recall:
    """Plant every fact in a turn of its own, then ask for each; every question is taken back."""
    began = time.perf_counter()
    with loom.session(system="You are a helpful assistant. Answer briefly.") as session:
        session.policy = policy
        for fact in planted:
            session.generate(f"Please remember: {fact.text}", max_tokens=32, temperature=0.0)
            session.wait_for_compression()
        head = session.snapshot("planted")
        compressions = sum(record.op.startswith("compress") for record in loom.log.manifests(session.id))
        right = 0
        for fact in planted:
            right += fact.is_in(session.generate(fact.question, max_tokens=32, temperature=0.0).text)
            session.restore(head.id)
        found = Recall(policy, right, num_plain, compressions, time.perf_counter() - began)
        tell.step(
            f"{policy}: {right} of {len(planted)} facts ({num_plain} in plain sight), {compressions} compressions"
        )
        return found


def plain_recall(loom: Loom, planted: list[Fact]) -> int:
    """What the model answers with the one fact in plain sight: no policy can do better."""
    right = 0
    for fact in planted:
        with loom.session(system="You are a helpful assistant. Answer briefly.") as session:
            session.generate(f"Please remember: {fact.text}", max_tokens=32, temperature=0.0)
            right += fact.is_in(session.generate(fact.question, max_tokens=32, temperature=0.0).text)
    return right


def facts_rows(request: Request, home: Path, size: Size, tell: Teller) -> list[Row]:
    planted, rows = facts(size.num_facts), []
    with _facts_loom(request, home, size, is_compressing=False) as loom:
        plain = plain_recall(loom, planted)
        tell.step(f"in plain sight: {plain} of {len(planted)}")
    for policy in size.policies:
        with _facts_loom(request, home, size, is_compressing=policy in COMPRESSED) as loom:
            found = recall_of(loom, policy, planted, plain, tell)
        share = found.num_right / max(1, plain)
        extra = {
            "right": found.num_right,
            "plain": plain,
            "planted": len(planted),
            "compressions": found.num_compressions,
            "recall": share,
        }
        target = RECALL_TARGET if policy == "adaptive" else None
        rows.append(Row(f"facts-{policy}", "splice", found.seconds, "plain sight", None, share, target, extra))
    return rows


@contextmanager
def _facts_loom(request: Request, home: Path, size: Size, *, is_compressing: bool) -> Iterator[Loom]:
    compression = {"enabled": is_compressing}
    settings = settings_for(
        request, context=size.facts_window, reserve_tokens=128, compression=compression, guard={"enabled": False}
    )
    with open_loom(settings, home) as loom:
        yield loom


def run(request: Request) -> Report:
    """Run the benchmark. About 20 minutes on 2 cores with the default model, most of it the facts."""
    size = QUICK if request.quick else FULL
    repeats = request.repeats or size.repeats
    size = replace(size, repeats=repeats)
    tell = request.teller("room", 6 + len(size.policies))
    with own_home() as home:
        with open_loom(settings_for(request, context=size.context), home, tell) as loom:
            setup = setup_of(loom, {"repeats": repeats, "facts": size.num_facts, "facts_window": size.facts_window})
            rows = restore_rows(loom, size, repeats, tell)
        with open_loom(settings_for(request, context=size.context // 2), home, tell) as loom:
            rows += [compression_row(loom, tell), resize_row(loom, repeats, tell)]
        rows += facts_rows(request, home, size, tell)
    setup |= request.closing("room")
    return Report("room", setup, tuple(rows), columns=("right", "plain", "compressions", "recall"), notes=NOTES)


NOTES = (
    "restore: from before restore() to the logits behind the tail; the context was cleared before, the KV is in RAM.",
    "after-compression: the first token behind compress(); the peer is a full prefill of the compressed prompt.",
    "resize: up fourfold, woven, down, woven; the peer's column is the limit of 0.5 s.",
    "facts: each in a turn of its own, then asked for one by one; speedup is the share of what the model answers with "
    "the fact in plain sight. adaptive compresses, the others are measured without compression.",
)
