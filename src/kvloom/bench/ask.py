"""`bench ask`: questions over texts far longer than the window, with the passages that a library's index finds.

The same passages, in the same prompt, four ways: pasted into llama.cpp's server, spliced and blended from stored KV,
and left out. Knows the façade, the index and the peer only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import mean, median
from typing import TYPE_CHECKING

import numpy as np

from kvloom.bench.corpus import corpus, num_tokens_of
from kvloom.bench.paired import kept, ratio, ratio_low, wilson_low
from kvloom.bench.peer import Peer, require_peer
from kvloom.bench.questions import Kind, Question, questions
from kvloom.bench.reader import MAX_ANSWER_TOKENS, PROBED_ROWS, Answer, Given, Reader
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.retrieval import answerable, holds, indexed
from kvloom.bench.setting import Request, open_loom, own_home, peer_settings, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.config import DiskCompression, RecallSettings
from kvloom.types import ChunkId, F32Array, Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

PEER = "llama.cpp server"
BLEND_BUDGET = 0.04
CONTEXT = 4096
DEPTH = RecallSettings().depth
"""Passages with each question, as many as a library gives by itself."""

FIRST_TOKEN_TARGET = 10.0
KEPT_TARGETS = {Fidelity.BLEND: 0.97, Fidelity.SPLICE: 0.93}
LOW_TARGET = 0.90
DISK_TARGET = 1 / 0.3
KL_LIMIT = 0.015


@dataclass(frozen=True)
class Size:
    """How much is measured. `depth`: passages given with each question; `num_probed`: questions whose distributions
    are compared before and after the disk."""

    num_questions: int
    depth: int
    corpus_tokens: int
    num_probed: int


FULL = Size(num_questions=210, depth=DEPTH, corpus_tokens=900_000, num_probed=24)
QUICK = Size(num_questions=6, depth=DEPTH, corpus_tokens=60_000, num_probed=2)


@dataclass(frozen=True)
class Theirs:
    """The peer's answer to the same token ids."""

    text: str
    is_right: bool
    ttft_s: float
    total_s: float
    computed_tokens: int


@dataclass
class Stored:
    """What the library's entries take, and the distributions that they gave before they were on disk."""

    rows_bytes: int = 0
    file_bytes: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0
    chunks: dict[ChunkId, None] = field(default_factory=dict)
    probed: list[F32Array] = field(default_factory=list)


@dataclass
class Samples:
    """Everything that was measured, in the order of the questions."""

    given: list[Given]
    corpus_tokens: int = 0
    num_passages: int = 0
    ours: dict[Fidelity, list[Answer]] = field(default_factory=dict)
    theirs: list[Theirs] = field(default_factory=list)
    without: list[Answer] = field(default_factory=list)
    stored: Stored = field(default_factory=Stored)
    kl: list[float] = field(default_factory=list)


def choose(size: Size, loom: Loom, tell: Teller) -> Samples:
    """The questions, each with the passages that the index finds for its text."""
    texts = corpus(loom.count, size.corpus_tokens)
    with indexed(texts) as index:
        asked: Sequence[Question] = questions(texts, size.num_questions, fits=lambda found: answerable(found, index))
        given = [Given(q, tuple(reversed(index.search(q.text, size.depth)))) for q in asked]
        samples = Samples(given, num_tokens_of(texts, loom.count), index.num_passages)
    tell.say(
        f"{len(texts)} texts of {samples.corpus_tokens:,} tokens, {samples.num_passages} passages; "
        f"{sum(is_in_sight(one) for one in given)} of {len(given)} questions have the answer in sight"
    )
    return samples


def is_in_sight(given: Given) -> bool:
    """Whether one of the passages holds the whole place of the answer."""
    return any(holds(passage, given.question) for passage in given.passages)


def precompute(loom: Loom, given: Sequence[Given], num_probed: int, tell: Teller) -> Stored:
    """Every passage that will be asked for, computed alone and written to disk."""
    stored = Stored()
    with Reader(loom, Fidelity.SPLICE) as reader:
        for number, one in enumerate(given):
            reader.arrange(one.passages)
            warmed = reader.session.warm()
            stored.computed_tokens += warmed.computed_tokens
            stored.seconds += warmed.seconds if warmed.computed_tokens else 0.0
            if number < num_probed:
                stored.probed.append(reader.distributions(one))
            for passage in one.passages:
                stored.rows_bytes += _rows_bytes(loom, passage.id) if passage.id not in stored.chunks else 0
                stored.chunks[passage.id] = None
            tell.step(f"computed {warmed.computed_tokens} tokens in {warmed.seconds:.1f} s")
    loom.flush()
    return stored


def _rows_bytes(loom: Loom, chunk: ChunkId) -> int:
    entries = (loom.store.get(entry) for _, entry in loom.shelf.entries(chunk))
    return sum(entry.rows.nbytes for entry in entries if entry is not None)


class Ask:
    """One run over a library that was computed before the loom was opened."""

    def __init__(self, loom: Loom, peer: Peer, samples: Samples, tell: Teller) -> None:
        self._loom = loom
        self._peer = peer
        self._samples = samples
        self._tell = tell

    def run(self) -> None:
        stored = self._samples.stored
        entries = [entry for chunk in stored.chunks for _, entry in self._loom.shelf.entries(chunk)]
        stored.file_bytes = sum(self._loom.store.size_of(entry) for entry in entries)
        fidelities = (Fidelity.SPLICE, Fidelity.BLEND)
        self._samples.ours = {fidelity: [] for fidelity in fidelities}
        # All of them answer one question after the other: whatever else the machine does slows all of them down.
        with ExitStack() as readers:
            ours = [readers.enter_context(Reader(self._loom, fidelity)) for fidelity in fidelities]
            for one in self._samples.given:
                answers = [self._ask(reader, one) for reader in ours]
                if any(answer.prompt != answers[0].prompt for answer in answers):
                    raise AssertionError("all fidelities and the peer must see the same token ids")
                self._samples.theirs.append(self._peer_answer(one, answers[0].prompt))
        with Reader(self._loom, Fidelity.SPLICE) as reader:
            for one in self._samples.given:
                answer = reader.ask(Given(one.question, ()))
                self._samples.without.append(answer)
                self._tell.step(f"no context: {answer.ttft_s:.2f} s, {_verdict(answer)}")
        with Reader(self._loom, Fidelity.SPLICE) as reader:
            for one, before in zip(self._samples.given, stored.probed, strict=False):
                after = reader.distributions(one)
                self._samples.kl += (np.exp(before) * (before - after)).sum(axis=1, dtype=np.float64).tolist()

    def _ask(self, reader: Reader, one: Given) -> Answer:
        answer, fidelity = reader.ask(one), reader.session.fidelity
        reader.leave()
        self._samples.ours[fidelity].append(answer)
        usage = answer.usage
        self._tell.step(
            f"{fidelity.value}: {answer.ttft_s:.2f} s (edits {answer.edit_s:.3f}, weave {usage.weave_s:.3f}; reused "
            f"{usage.reused_tokens}, loaded {usage.loaded_tokens}, computed {usage.computed_tokens}, recomputed "
            f"{usage.recomputed_tokens}), {_verdict(answer)}"
        )
        return answer

    def _peer_answer(self, one: Given, prompt: Sequence[int]) -> Theirs:
        answer = self._peer.complete(prompt, MAX_ANSWER_TOKENS)
        vocabulary = self._loom.engine.vocabulary
        said = [token for token in answer.tokens if not vocabulary.is_end(token)]
        text = b"".join(vocabulary.token_bytes(token, special=False) for token in said).decode("utf-8", "replace")
        right = one.question.is_right(text)
        theirs = Theirs(text.strip(), right, answer.ttft_s, answer.total_s, answer.computed_tokens)
        self._tell.step(f"{PEER}: {theirs.ttft_s:.2f} s (computed {theirs.computed_tokens}), {_verdict(theirs)}")
        return theirs


def _verdict(answer: Answer | Theirs) -> str:
    return f"{'right' if answer.is_right else 'wrong'}: {answer.text[:60]!r}"


# -- the report ---------------------------------------------------------------------------------------------------


def rows_of(samples: Samples) -> list[Row]:
    rows: list[Row] = []
    for fidelity in samples.ours:
        rows += [_first_token(samples, fidelity), *_answers(samples, fidelity)]
    return [*rows, _without(samples), _cold_start(samples), _disk(samples)]


def _first_token(samples: Samples, fidelity: Fidelity) -> Row:
    ours, theirs = samples.ours[fidelity], samples.theirs
    pairs = [b.ttft_s / a.ttft_s for a, b in zip(ours, theirs, strict=True)]
    extra: dict[str, object] = {
        "paired_speedup": median(pairs),
        "paired_speedup_p10": float(np.percentile(pairs, 10)),
        "edit_s": median(a.edit_s for a in ours),
        "weave_s": median(a.usage.weave_s for a in ours),
        "total_s": median(a.total_s for a in ours),
        "peer_total_s": median(b.total_s for b in theirs),
        "peer_computed_tokens": int(median(b.computed_tokens for b in theirs)),
        "prefilled_chunk_tokens": sum(a.prefilled_tokens for a in ours),
        "pairs_s": [[a.ttft_s, b.ttft_s] for a, b in zip(ours, theirs, strict=True)],
    }
    for name in ("prompt", "reused", "loaded", "rotated", "computed", "recomputed"):
        extra[f"{name}_tokens"] = int(median(getattr(a.usage, f"{name}_tokens") for a in ours))
    peer = (PEER, [b.ttft_s for b in theirs])
    return compare("first-token", fidelity.value, [a.ttft_s for a in ours], peer, FIRST_TOKEN_TARGET, extra)


def _answers(samples: Samples, fidelity: Fidelity) -> list[Row]:
    """Right answers beside the peer's: of those that it has right, and all to all; each with its lower bound."""
    ours = [a.is_right for a in samples.ours[fidelity]]
    theirs = [b.is_right for b in samples.theirs]
    both, num_theirs = kept(ours, theirs)
    target = KEPT_TARGETS[fidelity]
    extra: dict[str, object] = {
        "n": len(ours),
        "right": sum(ours),
        "peer_right": num_theirs,
        "kept": both,
        "gained": sum(ours) - both,
        "in_sight": sum(is_in_sight(one) for one in samples.given),
        "pairs": [[a, b] for a, b in zip(ours, theirs, strict=True)],
        "same_text": sum(a.text.strip() == b.text for a, b in zip(samples.ours[fidelity], samples.theirs, strict=True)),
        **_by_kind(samples, fidelity),
    }
    seconds, peer_s = median(a.total_s for a in samples.ours[fidelity]), median(b.total_s for b in samples.theirs)

    def row(case: str, share: float, wanted: float) -> Row:
        return Row(case, fidelity.value, seconds, PEER, peer_s, share, wanted, extra)

    return [
        row("right-to-peer", ratio(ours, theirs), target),
        row("right-to-peer-low", ratio_low(ours, theirs), LOW_TARGET),
        row("kept-of-peer", both / num_theirs if num_theirs else 0.0, target),
        row("kept-of-peer-low", wilson_low(both, num_theirs), LOW_TARGET),
    ]


def _by_kind(samples: Samples, fidelity: Fidelity) -> dict[str, object]:
    """Right answers of ours, of the peer and without context, of the questions of each kind."""
    found: dict[str, object] = {}
    four = zip(samples.given, samples.ours[fidelity], samples.theirs, samples.without, strict=True)
    answers = [(one.question.kind, ours, theirs, none) for one, ours, theirs, none in four]
    for kind in Kind:
        of_kind = [(a.is_right, b.is_right, c.is_right) for k, a, b, c in answers if k is kind]
        if of_kind:
            found[f"right_{kind.value}"] = [len(of_kind), *(sum(column) for column in zip(*of_kind, strict=True))]
    return found


def _without(samples: Samples) -> Row:
    num_right, number = sum(a.is_right for a in samples.without), len(samples.without)
    num_theirs = sum(b.is_right for b in samples.theirs)
    extra = {"n": number, "right": num_right, "peer_right": num_theirs, "share_right": num_right / number}
    return Row("no-context", "", median(a.ttft_s for a in samples.without), extra=extra)


def _cold_start(samples: Samples) -> Row:
    """The first answer of the loom that was opened over the stored library."""
    first, theirs = samples.ours[Fidelity.SPLICE][0], samples.theirs[0]
    prefilled = sum(a.prefilled_tokens for answers in samples.ours.values() for a in answers)
    extra = {
        "prefilled_chunk_tokens": first.prefilled_tokens,
        "prefilled_in_all": prefilled,
        "num_chunks": len(samples.stored.chunks),
        "loaded_tokens": first.usage.loaded_tokens,
        "computed_tokens": first.usage.computed_tokens,
    }
    return compare("cold-start", Fidelity.SPLICE.value, [first.ttft_s], (PEER, [theirs.ttft_s]), None, extra)


def _disk(samples: Samples) -> Row:
    """How many times smaller the entries are on disk than in f16, and what the coding moved."""
    stored = samples.stored
    size = stored.file_bytes / stored.rows_bytes
    extra = {
        "num_chunks": len(stored.chunks),
        "rows_bytes": stored.rows_bytes,
        "file_bytes": stored.file_bytes,
        "size_share": size,
        "kl_mean": mean(samples.kl) if samples.kl else None,
        "kl_median": median(samples.kl) if samples.kl else None,
        "kl_positions": len(samples.kl),
        "kl_limit": KL_LIMIT,
        "computed_tokens": stored.computed_tokens,
    }
    return Row(
        "disk-times-smaller", DiskCompression.LOW4.value, stored.seconds, "f16", None, 1 / size, DISK_TARGET, extra
    )


def run(request: Request, depth: int | None = None) -> Report:
    """Run the benchmark with `repeats` questions. About an hour on 2 cores with the default model; `quick` asks six."""
    require_peer()
    plain = QUICK if request.quick else FULL
    size = Size(request.repeats or plain.num_questions, depth or plain.depth, plain.corpus_tokens, plain.num_probed)
    tell = request.teller("ask", size.num_questions * 5)
    settings = settings_for(
        request, context=CONTEXT, fidelity="splice", blend_budget=BLEND_BUDGET, disk_compression=DiskCompression.LOW4
    )
    with own_home() as home:
        with open_loom(settings, home, tell) as loom:
            samples = choose(size, loom, tell)
            samples.stored = precompute(loom, samples.given, size.num_probed, tell)
        # Opened again: what it knows of the library is what is on disk.
        with open_loom(settings, home, tell) as loom, Peer(peer_settings(loom, CONTEXT)) as peer:
            more = {"blend_budget": BLEND_BUDGET, "depth": size.depth, "num_questions": size.num_questions}
            setup = setup_of(loom, {**more, "context": CONTEXT})
            setup |= {
                "corpus_tokens": samples.corpus_tokens,
                "corpus_windows": samples.corpus_tokens / CONTEXT,
                "num_passages": samples.num_passages,
            }
            Ask(loom, peer, samples, tell).run()
    setup |= request.closing("ask", depth=depth)
    columns = (
        "right", "peer_right", "kept", "in_sight", "paired_speedup", "prefilled_chunk_tokens", "size_share", "kl_mean",
    )  # fmt: skip
    return Report("ask", setup, tuple(rows_of(samples)), columns=columns, notes=NOTES)


NOTES = (
    "Every question is made and checked by rule; its passages are what the library's index finds for its text, the "
    "best one last. All of them are asked in the same prompt, greedy, on both sides.",
    "The entries were computed alone, packed to disk by disk_compression low4, and the loom was closed and opened "
    "again: all that it has of the library comes from disk (cold-start: its first answer).",
    "first-token: ours from before the first edit of the context to the first delta; paired_speedup: the median of the "
    "questions' own ratios. Splice, blend and the peer (prompt cache on) answer each question one after the other, so "
    "blend finds in RAM what splice has read.",
    "right-to-peer: right answers of ours for each of the peer's; kept-of-peer: the share that we have right of those "
    "that it has right; low: the lower end of 95 % (questions drawn again as pairs; Wilson). speedup is that share.",
    f"kl_mean: nats from the rows as they were computed to those from disk, over the last {PROBED_ROWS} positions of "
    "questions; disk-times-smaller: f16's bytes by the files', headers and token ids included; ours: precomputing.",
)
