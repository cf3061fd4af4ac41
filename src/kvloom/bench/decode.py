"""`bench decode`: tokens per second of a long reply beside llama.cpp's server and beside the bare native loop.

Also what bookkeeping costs (`upkeep`). Knows the façade, its probe and the peer only.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from kvloom.bench.peer import Peer, require_peer
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import Request, open_loom, own_home, peer_settings, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.bench.upkeep import activation_rows, bookkeeping_rows
from kvloom.errors import EngineError
from kvloom.session.probe import Probe

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

CONTEXT = 2048
REPLY_TOKENS, QUICK_REPLY_TOKENS = 256, 64
REPEATS, QUICK_REPEATS = 5, 1
LEAST_REPLY_TOKENS = 32
"""A reply that ends before has no speed worth telling."""

PROMPT = (
    "Write a complete Python module for a small library: books, members, loans, fines, a search by author and title, "
    "saving to JSON and loading from it, each class and method with a docstring, and tests for all of them."
)

PEER_TARGET = 1.15
OVERHEAD_TARGET = 0.97
"""Our whole loop may cost 3 % more than native calls and an argmax."""


@dataclass
class Speeds:
    """Tokens per second, by who."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)


def reply_speed(session: Session, num_tokens: int) -> tuple[float, int, list[int]]:
    """(tokens per second behind the first delta, tokens, the prompt's ids) of one greedy reply, taken back again."""
    first = last = 0.0
    with session.stream(PROMPT, max_tokens=num_tokens, temperature=0.0) as stream:
        for _ in stream:
            last = time.perf_counter()
            first = first or last
        usage = stream.reply.usage
    if usage.completion_tokens < LEAST_REPLY_TOKENS:
        raise EngineError(
            f"the model ended its reply after {usage.completion_tokens} tokens; decoding speed needs at least "
            f"{LEAST_REPLY_TOKENS}, try another model"
        )
    prompt = session.tokens()[: usage.prompt_tokens]
    session.undo()
    return (usage.completion_tokens - 1) / (last - first), usage.completion_tokens, prompt


def measure(loom: Loom, peer: Peer, tell: Teller, repeats: int, num_tokens: int) -> Speeds:
    """Ours, the peer and the bare loop in turn, `repeats` times, after a round that warms all up."""
    speeds = Speeds()
    with loom.session(system="You are a careful programmer.") as session:
        probe = Probe(session)
        for number in range(repeats + 1):
            ours, count, prompt = reply_speed(session, num_tokens)
            theirs = peer.complete(prompt, num_tokens).tokens_per_s
            bare = probe.bare_tokens_per_s(PROMPT, num_tokens)
            if number == 0:
                continue
            speeds.ours.append(ours)
            speeds.peer.append(theirs)
            speeds.bare.append(bare)
            speeds.num_tokens.append(count)
            tell.step(f"kvloom {ours:.1f} tokens/s, llama.cpp server {theirs:.1f}, bare native loop {bare:.1f}")
    return speeds


def rows_of(speeds: Speeds) -> list[Row]:
    """Seconds per token, by medians. The overhead's ratio is the median of the rounds' ratios."""
    ours = [1 / speed for speed in speeds.ours]
    extra = {"ours_tokens_per_s": median(speeds.ours), "num_tokens": median(speeds.num_tokens)}
    peer = compare(
        "decode", "", ours, ("llama.cpp server", [1 / speed for speed in speeds.peer]), PEER_TARGET,
        {**extra, "peer_tokens_per_s": median(speeds.peer)},
    )  # fmt: skip
    paired = median(mine / theirs for mine, theirs in zip(speeds.ours, speeds.bare, strict=True))
    bare = compare(
        "decode-overhead", "", ours, ("bare native loop of the same build", [1 / speed for speed in speeds.bare]),
        OVERHEAD_TARGET,
        {**extra, "peer_tokens_per_s": median(speeds.bare), "paired_speedup": paired, "overhead": 1 / paired - 1},
    )  # fmt: skip
    return [peer, bare]


def run(request: Request) -> Report:
    """Run the benchmark. About 6 minutes on 2 cores with the default model; `quick` takes one."""
    require_peer()
    times = request.repeats or (QUICK_REPEATS if request.quick else REPEATS)
    num_tokens = QUICK_REPLY_TOKENS if request.quick else REPLY_TOKENS
    tell = request.teller("decode", times + 3)
    with own_home() as home:
        with ExitStack() as stack:
            loom = stack.enter_context(open_loom(settings_for(request, context=CONTEXT), home, tell))
            setup = setup_of(loom, {"reply_tokens": num_tokens, "repeats": times})
            peer = stack.enter_context(Peer(peer_settings(loom, CONTEXT)))
            rows = rows_of(measure(loom, peer, tell, times, num_tokens))
        rows += activation_rows(request, home, tell)
        rows += bookkeeping_rows(request, home, tell)
    setup |= request.closing("decode")
    columns = ("ours_tokens_per_s", "peer_tokens_per_s", "num_tokens")
    return Report("decode", setup, tuple(rows), columns=columns, notes=NOTES)


NOTES = (
    "decode: seconds per token of a greedy reply, the first token not counted; the same prompt ids on both sides.",
    "activation: seconds for placing one known chunk; the peer is the same at 4,096 allocated cells.",
    "plan, usage, status: with 10,000 chunks in the catalog (--quick: 500); the peer's column is the limit of 5 ms.",
)
