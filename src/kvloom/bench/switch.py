"""`bench switch`: documents switched off and on, reordered, inserted; time to first token beside llama.cpp's server.

Both sides answer the same token ids, one after the other, in one run. Knows the façade and the peer only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from kvloom.bench.compositions import CASES, FULL_PREFILL, Chain, Compositions, Step, keep_cases
from kvloom.bench.documents import Document, Questions, documents
from kvloom.bench.peer import Peer, PeerAnswer, require_peer
from kvloom.bench.report import Report, Row, compare
from kvloom.bench.setting import SYSTEM, Request, open_loom, own_home, peer_settings, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.errors import UsageError
from kvloom.types import Fidelity, Usage

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

QUESTION_TOKENS = 32
BLEND_BUDGET = 0.05
PLAIN, MOVING = 0, 256
"""The peer's `--cache-reuse`: the shortest run of tokens that it moves instead of computing it; 0 moves none."""
PEER = "llama.cpp server"
WHOLE_SLOT, STEP_SLOT = "whole.bin", "step.bin"
"""Files of the peers' slots: all documents, and the step that was asked last."""
FIDELITIES = (Fidelity.SPLICE, Fidelity.BLEND, Fidelity.EXACT)
"""Splice first: its phase is the one in which the peers are asked, so ours and theirs alternate."""

TARGETS = {
    Fidelity.SPLICE: {
        FULL_PREFILL: 1.0,
        "off": 1.0,
        "on-seen": 1.0,
        "subset-in-order": 1.0,
        "insert-front": 50.0,
        "reorder": 50.0,
        "subset-unseen": 30.0,
    },
    Fidelity.BLEND: {FULL_PREFILL: 1.0, "insert-front": 10.0, "reorder": 10.0, "subset-unseen": 10.0},
    Fidelity.EXACT: {case: 0.95 for case in CASES if case != "subset-in-order"} | {FULL_PREFILL: 1.0},
}
"""Least speedup wanted of each case."""


@dataclass(frozen=True)
class Only:
    """What is measured: everything, or some of it. Always in the order of a whole run."""

    cases: tuple[str, ...] = CASES
    fidelities: tuple[Fidelity, ...] = FIDELITIES

    @staticmethod
    def of(cases: str | None, fidelities: str | None) -> Only:
        """Names between commas; None: all. Raises UsageError, which lists the names that there are."""
        names = _chosen("case", cases, CASES)
        modes = _chosen("fidelity", fidelities, tuple(mode.value for mode in FIDELITIES))
        return Only(names, tuple(Fidelity(mode) for mode in modes))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The cases and fidelities that a whole run has besides."""
        cases = (case for case in CASES if case not in self.cases)
        return (*cases, *(mode.value for mode in FIDELITIES if mode not in self.fidelities))

    def num_measurements(self, repeats: int) -> int:
        """The peers' are counted with the ones of the first fidelity."""
        each = len(self.cases) * repeats
        if FULL_PREFILL in self.cases:
            each -= repeats - 1
        return each * (len(self.fidelities) + 1)


def _chosen(what: str, given: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return known
    names = {name.strip() for name in given.split(",")}
    if not names <= set(known):
        wrong = ", ".join(repr(name) for name in sorted(names - set(known)))
        raise UsageError(f"there is no {what} {wrong}; choose among {', '.join(known)}, with commas between them")
    return tuple(name for name in known if name in names)


@dataclass(frozen=True)
class Size:
    """How much is measured. `subset`: documents that the subsets keep."""

    num_documents: int
    document_tokens: int
    context: int
    repeats: int
    subset: int


FULL = Size(num_documents=8, document_tokens=768, context=8192, repeats=2, subset=5)
QUICK = Size(num_documents=5, document_tokens=200, context=2048, repeats=1, subset=3)


@dataclass(frozen=True)
class Ours:
    """One measurement of ours. `ttft_s` counts from before the edits to the first delta."""

    ttft_s: float
    edit_s: float
    usage: Usage
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Theirs:
    """One step of the peers. `moving` is None where that setting would have computed as much as `plain` did."""

    plain: PeerAnswer
    moving: PeerAnswer | None

    @property
    def better(self) -> tuple[int, PeerAnswer]:
        if self.moving is not None and self.moving.ttft_s < self.plain.ttft_s:
            return MOVING, self.moving
        return PLAIN, self.plain


@dataclass
class Samples:
    """Everything that was measured, by case and, of ours, by fidelity."""

    ours: dict[tuple[str, Fidelity], list[Ours]] = field(default_factory=dict)
    theirs: dict[str, list[Theirs]] = field(default_factory=dict)

    def add_ours(self, case: str, fidelity: Fidelity, sample: Ours) -> None:
        self.ours.setdefault((case, fidelity), []).append(sample)

    def add_theirs(self, case: str, sample: Theirs) -> None:
        self.theirs.setdefault(case, []).append(sample)


class Desk:
    """One session of ours with the documents as chunks, brought from composition to composition as a caller would."""

    def __init__(self, loom: Loom, fidelity: Fidelity, docs: Sequence[Document]) -> None:
        self.session: Session = loom.session(system=SYSTEM, fidelity=fidelity)
        self._chunks = [loom.load_text(doc.text, name=doc.name).id for doc in docs]
        self.session.activate(*self._chunks)
        self._order = list(range(len(docs)))
        self._active = set(self._order)

    def arrange(self, target: Sequence[int]) -> None:
        """The documents of `target` on, in that order; the others off."""
        off = sorted(self._active - set(target))
        on = [index for index in target if index not in self._active]
        if off:
            self.session.deactivate(*(self._chunks[index] for index in off))
        if on:
            self.session.activate(*(self._chunks[index] for index in on))
        self._active = set(target)
        # The others stay where they are; among the active ones the order of `target` decides.
        slots = [place for place, index in enumerate(self._order) if index in self._active]
        for place, index in zip(slots, target, strict=True):
            if self._order[place] != index:
                self.session.move(self._chunks[index], place)
                self._order.remove(index)
                self._order.insert(place, index)

    def ask(self, target: Sequence[int], question: str) -> Ours:
        """Edits, then the first token; the turn is taken back afterwards."""
        began = time.perf_counter()
        self.arrange(target)
        edited = time.perf_counter()
        first = 0.0
        with self.session.stream(question, max_tokens=1, temperature=0.0) as stream:
            for _ in stream:
                first = first or time.perf_counter()
            usage = stream.reply.usage
        # A first token that ends the reply gives no delta: then the reply's own clock counts.
        ttft = first - began if first else edited - began + usage.ttft_s
        prompt = tuple(self.session.tokens()[: usage.prompt_tokens])
        self.session.undo()
        return Ours(ttft, edited - began, usage, prompt)

    def close(self) -> None:
        self.session.close()


class Switch:
    """One run: a loom, two peers, and what is to be measured."""

    def __init__(self, loom: Loom, size: Size, only: Only, tell: Teller, peers: tuple[Peer, Peer]) -> None:
        self._loom = loom
        self._size = size
        self._only = only
        self._tell = tell
        self._plain, self._moving = peers
        self._questions = Questions(loom.count, QUESTION_TOKENS, seed=1)
        self._docs = documents(loom.count, size.num_documents, size.document_tokens)
        self._compositions = Compositions(size.num_documents, size.subset)
        self.samples = Samples()

    @property
    def document_tokens(self) -> list[int]:
        return [doc.num_tokens for doc in self._docs]

    def run(self) -> None:
        # All cases are drawn, whatever is measured: one measured alone has the compositions that a whole run gives it.
        repeats = [self._compositions.repeat(number, self._questions) for number in range(self._size.repeats)]
        self._full_prefill()
        for repeat in repeats:
            chains = keep_cases(repeat, self._only.cases)
            first, *others = self._only.fidelities
            prompts = self._phase(first, chains, with_peers=True)
            for fidelity in others:
                if self._phase(fidelity, chains, with_peers=False) != prompts:
                    raise AssertionError("all fidelities and the peers must see the same token ids")

    def _full_prefill(self) -> None:
        """Nothing is known on either side. Ours is purged in between; the peers are asked once each.

        Where it is not to be measured, it still makes the slot from which the peers begin every case.
        """
        is_measured = FULL_PREFILL in self._only.cases
        step = Step(FULL_PREFILL, self._compositions.whole, self._questions.next(), is_measured)
        for fidelity in self._only.fidelities if is_measured else self._only.fidelities[:1]:
            for chunk in self._loom.chunks():
                self._loom.purge(chunk.id)
            desk = Desk(self._loom, fidelity, self._docs)
            ours = self._ask(desk, step, fidelity)
            desk.close()
            if fidelity is self._only.fidelities[0]:
                answer = self._plain.complete(ours.prompt)
                self._plain.save_slot(WHOLE_SLOT)
                if is_measured:
                    self._note_peers(FULL_PREFILL, Theirs(answer, None))

    def _phase(self, fidelity: Fidelity, chains: Sequence[Chain], *, with_peers: bool) -> list[tuple[int, ...]]:
        """All chains in one session of its own, each from the whole; the prompts that it asked."""
        desk = Desk(self._loom, fidelity, self._docs)
        prompts = []
        try:
            for chain in chains:
                self._start_over(desk, with_peers=with_peers)
                for step in chain:
                    ours = self._ask(desk, step, fidelity)
                    prompts.append(ours.prompt)
                    if with_peers:
                        self._ask_peers(step, ours.prompt)
        finally:
            desk.close()
        return prompts

    def _start_over(self, desk: Desk, *, with_peers: bool) -> None:
        """All documents in their first order, on both sides: no case depends on which ones were measured before."""
        desk.arrange(self._compositions.whole)
        desk.session.warm()
        if with_peers:
            for peer in (self._plain, self._moving):
                peer.restore_slot(WHOLE_SLOT)

    def _ask(self, desk: Desk, step: Step, fidelity: Fidelity) -> Ours:
        ours = desk.ask(step.target, step.question)
        if step.is_measured:
            self.samples.add_ours(step.case, fidelity, ours)
            usage = ours.usage
            self._tell.step(
                f"{step.case}: kvloom {fidelity.value} {ours.ttft_s:.2f} s (edits {ours.edit_s:.3f}, weave "
                f"{usage.weave_s:.3f}; reused {usage.reused_tokens}, loaded {usage.loaded_tokens}, rotated "
                f"{usage.rotated_tokens}, computed {usage.computed_tokens}, recomputed {usage.recomputed_tokens})"
            )
        return ours

    def _ask_peers(self, step: Step, prompt: Sequence[int]) -> None:
        """Both settings. The moving one is not waited for where it has nothing to gain: it takes the other's slot."""
        plain = self._plain.complete(prompt)
        self._plain.save_slot(STEP_SLOT)
        moving = self._moving.complete_below(prompt, plain.computed_tokens)
        if moving is None:
            self._moving.restore_slot(STEP_SLOT)
        if step.is_measured:
            self._note_peers(step.case, Theirs(plain, moving))

    def _note_peers(self, case: str, theirs: Theirs) -> None:
        self.samples.add_theirs(case, theirs)
        for cache_reuse, answer in ((PLAIN, theirs.plain), (MOVING, theirs.moving)):
            if answer is not None:
                self._tell.say(
                    f"{case}: {peer_name(cache_reuse)} {answer.ttft_s:.2f} s (computed {answer.computed_tokens}, "
                    f"cached {answer.cached_tokens})"
                )
        self._tell.step(f"{case}: better is cache-reuse {theirs.better[0]}")


def peer_name(cache_reuse: int) -> str:
    return f"{PEER}, cache-reuse {cache_reuse}"


def rows_of(samples: Samples) -> list[Row]:
    """Medians, ours beside the better of the peer's settings (exact: beside cache-reuse 0, which is exact too)."""
    rows = []
    for fidelity in FIDELITIES:
        for case in CASES:
            ours, theirs = samples.ours.get((case, fidelity), []), samples.theirs.get(case, [])
            if not ours or not theirs:
                continue
            chosen = [(PLAIN, t.plain) if fidelity is Fidelity.EXACT else t.better for t in theirs]
            names = " or ".join(str(reuse) for reuse in sorted({reuse for reuse, _ in chosen}))
            rows.append(
                compare(
                    case,
                    fidelity.value,
                    [sample.ttft_s for sample in ours],
                    (f"{PEER}, cache-reuse {names}", [answer.ttft_s for _, answer in chosen]),
                    TARGETS[fidelity].get(case),
                    _details(ours, theirs),
                )
            )
    return rows


def _details(ours: Sequence[Ours], theirs: Sequence[Theirs]) -> dict[str, object]:
    """Where our time went and what was reused, and what the peers computed, by medians."""
    usages = [sample.usage for sample in ours]
    details: dict[str, object] = {
        "edit_s": median(sample.edit_s for sample in ours),
        "weave_s": median(usage.weave_s for usage in usages),
        "question_s": median(s.ttft_s - s.edit_s - s.usage.weave_s for s in ours),
    }
    for name in ("prompt", "reused", "loaded", "rotated", "computed", "recomputed"):
        details[f"{name}_tokens"] = int(median(getattr(usage, f"{name}_tokens") for usage in usages))
    details["peer_reuse_0_s"] = median(t.plain.ttft_s for t in theirs)
    details["peer_reuse_0_computed_tokens"] = int(median(t.plain.computed_tokens for t in theirs))
    moving = [t.moving for t in theirs if t.moving is not None]
    if moving:
        details["peer_reuse_256_s"] = median(answer.ttft_s for answer in moving)
        details["peer_reuse_256_computed_tokens"] = int(median(answer.computed_tokens for answer in moving))
    return details


def run(request: Request, cases: str | None = None, fidelity: str | None = None) -> Report:
    """Run the benchmark, or of it only the `cases` and the fidelities named (with commas between them).

    About 15 minutes on 2 cores with the default model and two repeats; `quick` takes one or two.
    """
    require_peer()
    only = Only.of(cases, fidelity)
    size = QUICK if request.quick else FULL
    size = replace(size, repeats=request.repeats or size.repeats)
    settings = settings_for(request, context=size.context, blend_budget=BLEND_BUDGET)
    tell = request.teller("switch", only.num_measurements(size.repeats))
    with own_home() as home, ExitStack() as stack:
        loom = stack.enter_context(open_loom(settings, home, tell))
        setup = setup_of(
            loom,
            {
                "num_documents": size.num_documents,
                "question_tokens": QUESTION_TOKENS,
                "blend_budget": BLEND_BUDGET,
                "repeats": size.repeats,
                "left_out": list(only.left_out),
            },
        )
        slots = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvloom-slots-"))

        def peer(cache_reuse: int) -> Peer:
            chosen = peer_settings(loom, size.context, cache_reuse=cache_reuse, slot_save_path=slots)
            return stack.enter_context(Peer(chosen))

        switch = Switch(loom, size, only, tell, (peer(PLAIN), peer(MOVING)))
        switch.run()
    setup |= {"document_tokens": switch.document_tokens, **request.closing("switch", cases=cases, fidelity=fidelity)}
    left_out = (f"left out of this run: {', '.join(only.left_out)}.",) if only.left_out else ()
    return Report(
        "switch",
        setup,
        tuple(rows_of(switch.samples)),
        columns=("edit_s", "weave_s", "question_s"),
        notes=(*left_out, *NOTES),
    )


NOTES = (
    "ours: from before the edits to the first delta of session.stream(question); peer: from the request to the first "
    "streamed token, the same token ids, the better of cache-reuse 0 and 256 (exact: 0), RAM prompt cache on.",
    "Every case begins with all documents in their first order on both sides, and asks a composition that was not "
    "asked before in the run (on-seen: the whole, right after off).",
    "off: one document out. subset-in-order: five of the eight in the first order. insert-front: a known document in "
    "front of the seven others. reorder: all in a random order. subset-unseen: five in a random order, no part of any "
    "order asked before.",
)
