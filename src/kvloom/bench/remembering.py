"""What a conversation that outgrew its window still knows: planted facts, against the same facts in plain sight.

Knows the façade and its log only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvloom.bench.facts import MAX_FACTS, MAX_SMALL_TALK, Fact, facts, small_talk
from kvloom.bench.paired import kept, wilson_low
from kvloom.bench.report import Row
from kvloom.bench.setting import Request, open_loom, settings_for
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from kvloom.session.loom import Loom
    from kvloom.session.session import Session
    from kvloom.session.values import Reply

RECALL_TARGET = 0.9
POLICIES = ("adaptive", "fifo", "sliding_window", "keep_first", "clear")
COMPRESSED = ("adaptive",)
"""Policies that are measured with compression; the others without, as what they are on their own."""
SYSTEM = "You are a helpful assistant. Answer briefly."
REPLY_TOKENS = 32
RESERVE_TOKENS = 128
TOLD_SHARE = 10
"""An endless conversation says how far it is this often."""


@contextmanager
def facts_loom(request: Request, home: Path, window: int, *, is_compressing: bool) -> Iterator[Loom]:
    """A loom in whose window the facts are planted."""
    settings = settings_for(
        request,
        context=window,
        reserve_tokens=RESERVE_TOKENS,
        compression={"enabled": is_compressing},
        guard={"enabled": False},
    )
    with open_loom(settings, home) as loom:
        yield loom


def say(session: Session, text: str) -> Reply:
    return session.generate(text, max_tokens=REPLY_TOKENS, temperature=0.0)


def plant(session: Session, fact: Fact) -> Reply:
    return say(session, f"Please remember: {fact.text}")


def plain_answers(loom: Loom, planted: Sequence[Fact]) -> list[bool]:
    """Which facts the model answers with the one fact in plain sight: no policy can do better."""
    right = []
    for fact in planted:
        with loom.session(system=SYSTEM) as session:
            plant(session, fact)
            right.append(fact.is_in(say(session, fact.question).text))
    return right


def ask_all(session: Session, planted: Sequence[Fact]) -> list[Reply]:
    """The replies to the facts' questions, each taken back before the next."""
    head, replies = session.snapshot("planted"), []
    for fact in planted:
        replies.append(say(session, fact.question))
        session.restore(head.id)
    return replies


def num_compressions(loom: Loom, session: Session) -> int:
    return sum(record.op.startswith("compress") for record in loom.log.manifests(session.id))


# -- by policy --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recall:
    """How many of the planted facts were answered right."""

    num_right: int
    num_compressions: int
    seconds: float


def recall_of(loom: Loom, policy: str, planted: Sequence[Fact]) -> Recall:
    """Plant every fact in a turn of its own, then ask for each."""
    began = time.perf_counter()
    with loom.session(system=SYSTEM) as session:
        session.policy = policy
        for fact in planted:
            plant(session, fact)
            session.wait_for_compression()
        compressions = num_compressions(loom, session)
        replies = ask_all(session, planted)
    right = sum(fact.is_in(reply.text) for fact, reply in zip(planted, replies, strict=True))
    return Recall(right, compressions, time.perf_counter() - began)


def facts_rows(
    request: Request, home: Path, sizes: tuple[int, int], policies: Sequence[str], tell: Teller
) -> list[Row]:
    """A row for each policy; `sizes`: the number of facts and the window."""
    num_facts, window = sizes
    planted, rows = facts(num_facts), []
    with facts_loom(request, home, window, is_compressing=False) as loom:
        plain = sum(plain_answers(loom, planted))
        tell.step(f"in plain sight: {plain} of {len(planted)}")
    for policy in policies:
        with facts_loom(request, home, window, is_compressing=policy in COMPRESSED) as loom:
            found = recall_of(loom, policy, planted)
        tell.step(
            f"{policy}: {found.num_right} of {len(planted)} facts ({plain} in plain sight), "
            f"{found.num_compressions} compressions"
        )
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


# -- without end ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EndlessSize:
    """Facts among the turns of one conversation, at equal distances, and the window that it outgrows."""

    num_facts: int
    num_turns: int
    window: int

    def but(self, num_facts: int | None, num_turns: int | None, window: int | None) -> EndlessSize:
        """With what was chosen. Raises UsageError for what cannot be."""
        found = replace(
            self,
            num_facts=num_facts or self.num_facts,
            num_turns=num_turns or self.num_turns,
            window=window or self.window,
        )
        if not 0 < found.num_facts <= min(MAX_FACTS, found.num_turns):
            raise UsageError(
                f"{found.num_facts} facts in {found.num_turns} turns: each takes a turn, and {MAX_FACTS} are the most"
            )
        if found.num_turns - found.num_facts > MAX_SMALL_TALK:
            raise UsageError(
                f"{found.num_turns} turns with {found.num_facts} facts: there is small talk for {MAX_SMALL_TALK} "
                "turns besides the facts"
            )
        return found

    def fact_at(self, turn: int) -> int | None:
        """Which fact is planted in this turn, both counted from 0."""
        fact = -(-turn * self.num_facts // self.num_turns)
        return fact if fact < self.num_facts and fact * self.num_turns // self.num_facts == turn else None


ENDLESS = EndlessSize(60, 300, 4096)
ENDLESS_QUICK = EndlessSize(6, 30, 512)


@dataclass(frozen=True)
class Chatted:
    """A conversation that was held: the turn of each fact, and what was said in all."""

    refs: tuple[str, ...]
    num_tokens: int
    num_came_back: int
    seconds: float


@dataclass(frozen=True)
class Asked:
    """One fact's question. `is_out`: its turn was not in the window any more; `is_back`: it came back for it."""

    is_right: bool
    is_plain: bool
    is_out: bool
    is_back: bool


def chat(session: Session, planted: Sequence[Fact], size: EndlessSize, tell: Teller) -> Chatted:
    """Facts and small talk by turns, until all was said."""
    began, refs, tokens, back, talked = time.perf_counter(), [], 0, 0, 0
    for turn in range(size.num_turns):
        fact = size.fact_at(turn)
        reply = plant(session, planted[fact]) if fact is not None else say(session, small_talk(talked))
        talked += fact is None
        newest = session.manifest.turns[-1]
        if fact is not None:
            refs.append(newest.ref)
        tokens += newest.num_tokens
        back += len(reply.came_back)
        session.wait_for_compression()
        if (turn + 1) % max(1, size.num_turns // TOLD_SHARE) == 0:
            tell.say(f"endless: {turn + 1} of {size.num_turns} turns, {tokens} tokens said")
    return Chatted(tuple(refs), tokens, back, time.perf_counter() - began)


def endless_row(loom: Loom, size: EndlessSize, tell: Teller) -> Row:
    """A conversation of many windows, then the question for each fact that was said in it."""
    planted = facts(size.num_facts)
    plain = plain_answers(loom, planted)
    tell.step(f"endless: in plain sight {sum(plain)} of {len(planted)}")
    with loom.session(system=SYSTEM) as session:
        session.policy = "adaptive"
        chatted = chat(session, planted, size, tell)
        tell.step(f"endless: {size.num_turns} turns of {chatted.num_tokens} tokens in {chatted.seconds:.0f} s")
        standing = {slot.ref for slot in session.manifest.turns if slot.active and not slot.is_summary}
        compressions = num_compressions(loom, session)
        began = time.perf_counter()
        replies = ask_all(session, planted)
        seconds = time.perf_counter() - began
    asked = [
        Asked(fact.is_in(reply.text), is_plain, ref not in standing, ref in reply.came_back)
        for fact, reply, is_plain, ref in zip(planted, replies, plain, chatted.refs, strict=True)
    ]
    extra = {
        "planted": len(planted),
        "turns": size.num_turns,
        "window": size.window,
        **scores(asked),
        "left": size.num_turns - len(standing),
        "came_back": chatted.num_came_back + sum(len(reply.came_back) for reply in replies),
        "compressions": compressions,
        "said_tokens": chatted.num_tokens,
        "prompt_tokens": sum(reply.usage.prompt_tokens for reply in replies),
        "computed_tokens": sum(reply.usage.computed_tokens for reply in replies),
        "loaded_tokens": sum(reply.usage.loaded_tokens for reply in replies),
        "chat_s": chatted.seconds,
    }
    tell.step(
        f"endless: {extra['right']} of {len(planted)} facts, {extra['kept']} of the {extra['plain']} in plain sight; "
        f"{extra['out']} had left the window, {extra['out_kept']} of {extra['out_plain']} of these"
    )
    share = float(extra["recall"])
    return Row("endless", session.fidelity.value, seconds, "plain sight", None, share, RECALL_TARGET, extra)


def scores(asked: Sequence[Asked]) -> dict[str, int | float]:
    """What was answered, and of what the model answers in plain sight: how much was, with Wilson's 95 % interval.

    `out…`: the same of the facts whose turns had left the window.
    """
    both, plain = kept([one.is_right for one in asked], [one.is_plain for one in asked])
    out = [one for one in asked if one.is_out]
    out_both, out_plain = kept([one.is_right for one in out], [one.is_plain for one in out])
    return {
        "right": sum(one.is_right for one in asked),
        "plain": plain,
        "kept": both,
        "recall": both / plain if plain else 0.0,
        "recall_low": wilson_low(both, plain),
        # The interval of the missed ones, seen from the other side.
        "recall_high": 1.0 - wilson_low(plain - both, plain),
        "out": len(out),
        "out_plain": out_plain,
        "out_kept": out_both,
        "out_back": sum(one.is_back for one in out),
    }
