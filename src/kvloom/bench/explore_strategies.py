"""`bench explore`, strategies: what is still answered of a conversation that its window does not hold.

The policies see it as turns, the cuts as one text of the same questions. Knows the façade only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from kvloom.bench.explore_values import Size, Stage
from kvloom.bench.facts import Fact, facts, small_talk
from kvloom.bench.report import Row
from kvloom.bench.setting import open_loom, settings_for
from kvloom.errors import ContextOverflowError
from kvloom.reduce.truncate import truncate

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

POLICIES = ("stop", "fifo", "sliding_window", "keep_first", "adaptive")
COMPRESSING = ("adaptive",)
"""Measured with compression; the others as what they are on their own."""
CUTS = ("head", "tail", "both")
NAMES = {"both": "middle"}
"""A cut is named by what leaves in the last case, by what stays in the others."""
SYSTEM = "You are a helpful assistant. Answer briefly."
SAID_TOKENS, ANSWER_TOKENS = 16, 24
RESERVE_TOKENS, QUESTION_TOKENS = 96, 48
"""Kept for a reply, and left for a question with its template and for what stands around a cut text."""
COLUMNS = ("right", "facts", "refused", "left_out", "context_tokens", "computed_tokens")


@dataclass
class Outcome:
    """One strategy. `refused`: turns and questions that the window did not take; `left_out`: turns or tokens gone."""

    right: int = 0
    refused: int = 0
    left_out: int = 0
    context_tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0


def num_steps(_size: Size, _train_context: int) -> int:
    return len(POLICIES) + len(CUTS)


def rows(stage: Stage) -> list[Row]:
    wanted = facts(stage.size.num_facts)
    with _opened(stage, is_compressing=False) as loom:
        plain = [_policy_row(stage, loom, policy, wanted) for policy in POLICIES if policy not in COMPRESSING]
        cuts = [_cut_row(stage, loom, cut, wanted) for cut in CUTS]
    with _opened(stage, is_compressing=True) as loom:
        return [*plain, *(_policy_row(stage, loom, policy, wanted) for policy in COMPRESSING), *cuts]


def _policy_row(stage: Stage, loom: Loom, policy: str, wanted: Sequence[Fact]) -> Row:
    return _row(stage, policy, [_by_policy(loom, policy, wanted) for _ in range(stage.size.repeats)])


def _cut_row(stage: Stage, loom: Loom, cut: str, wanted: Sequence[Fact]) -> Row:
    name = f"truncate-{NAMES.get(cut, cut)}"
    return _row(stage, name, [_by_cut(loom, cut, wanted) for _ in range(stage.size.repeats)])


def _opened(stage: Stage, *, is_compressing: bool) -> Loom:
    settings = settings_for(
        stage.request, context=stage.size.facts_window, reserve_tokens=RESERVE_TOKENS, guard={"enabled": False},
        compression={"enabled": is_compressing}, overflow={"window_tokens": stage.size.facts_window // 2},
    )  # fmt: skip
    return open_loom(settings, stage.home)


def _row(stage: Stage, name: str, outcomes: Sequence[Outcome]) -> Row:
    one, seconds = outcomes[-1], median(outcome.seconds for outcome in outcomes)
    extra = {
        "part": "strategies",
        "strategy": name,
        "right": one.right,
        "facts": stage.size.num_facts,
        "refused": one.refused,
        "left_out": one.left_out,
        "context_tokens": one.context_tokens,
        "computed_tokens": one.computed_tokens,
    }
    stage.tell.step(f"{name}: {one.right} of {stage.size.num_facts} facts, {seconds:.1f} s")
    return Row(f"strategy-{name}", "", seconds, extra=extra)


def _said(wanted: Sequence[Fact]) -> list[str]:
    """Each fact in a turn, and one of small talk behind it: what fills a window in a conversation is not facts."""
    pairs = ((f"Please remember: {fact.text}", small_talk(place)) for place, fact in enumerate(wanted))
    return [text for pair in pairs for text in pair]


def _by_policy(loom: Loom, policy: str, wanted: Sequence[Fact]) -> Outcome:
    """All that is said, then the question for each fact; every question is taken back."""
    outcome, began, said = Outcome(), time.perf_counter(), _said(wanted)
    with loom.session(system=SYSTEM) as session:
        session.policy = policy
        for text in said:
            try:
                outcome.computed_tokens += session.generate(
                    text, max_tokens=SAID_TOKENS, temperature=0.0
                ).usage.computed_tokens
            except ContextOverflowError:
                outcome.refused += 1
            session.wait_for_compression()
        in_sight = sum(not turn.replaces for turn in session.history())  # a summary stands for turns that left
        outcome.left_out = len(said) - outcome.refused - in_sight
        _ask(session, wanted, outcome)
    loom.delete_session(session.id)
    outcome.seconds = time.perf_counter() - began
    return outcome


def _by_cut(loom: Loom, keep: str, wanted: Sequence[Fact]) -> Outcome:
    """What was said as one text, without the replies, cut to what the window holds beside a question."""
    outcome, began = Outcome(), time.perf_counter()
    with loom.session(system=SYSTEM) as session:
        text = "\n".join(_said(wanted))
        usage = session.usage()
        room = max(0, usage.free - usage.reserve - QUESTION_TOKENS)
        cut = truncate(text, room, loom.count, keep)
        outcome.left_out = cut.num_removed_tokens
        session.activate(loom.load_text(cut.text, name=f"conversation-{keep}.txt").id)
        outcome.computed_tokens += session.warm().computed_tokens
        _ask(session, wanted, outcome)
    loom.delete_session(session.id)
    outcome.seconds = time.perf_counter() - began
    return outcome


def _ask(session: Session, wanted: Sequence[Fact], outcome: Outcome) -> None:
    outcome.context_tokens = session.usage().used
    head = session.snapshot("planted")
    for fact in wanted:
        try:
            reply = session.generate(fact.question, max_tokens=ANSWER_TOKENS, temperature=0.0)
        except ContextOverflowError:
            outcome.refused += 1
            continue
        outcome.right += fact.is_in(reply.text)
        outcome.computed_tokens += reply.usage.computed_tokens
        session.restore(head.id)
