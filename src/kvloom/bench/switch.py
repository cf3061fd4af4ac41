"""`bench switch`: documents switched off and on, reordered, inserted; time to first token beside llama.cpp's server.

Both sides answer the same token ids, one after the other, in one run. Knows the façade and the peer only.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Protocol

from kvloom.bench.documents import Document, Questions, documents
from kvloom.bench.peer import Peer, PeerAnswer, require_peer
from kvloom.bench.report import Report, Row, Teller, command, compare, load_average
from kvloom.bench.setting import SYSTEM, Request, open_loom, own_home, peer_settings, settings_for, setup_of
from kvloom.session.values import ProgressCallback
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
SUBSET_SIZE = 5
"""Documents of the eight that `subset-unseen` keeps."""

FIDELITIES = (Fidelity.SPLICE, Fidelity.BLEND, Fidelity.EXACT)
"""Splice first: its phase is the one in which the peers are asked, so ours and theirs alternate."""

CASES = ("full-prefill", "off", "on-seen", "insert-front", "reorder", "subset-unseen")

TARGETS = {
    Fidelity.SPLICE: {
        "full-prefill": 1.0,
        "off": 1.0,
        "on-seen": 1.0,
        "insert-front": 50.0,
        "reorder": 50.0,
        "subset-unseen": 30.0,
    },
    Fidelity.BLEND: {"full-prefill": 1.0, "insert-front": 10.0, "reorder": 10.0, "subset-unseen": 10.0},
    Fidelity.EXACT: dict.fromkeys(CASES, 0.95) | {"full-prefill": 1.0},
}
"""Least speedup wanted of each case."""


class Asker(Protocol):
    """Gives a new question each time."""

    def next(self) -> str: ...


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    num_documents: int
    document_tokens: int
    context: int
    repeats: int
    subset: int


FULL = Size(num_documents=8, document_tokens=768, context=8192, repeats=2, subset=SUBSET_SIZE)
QUICK = Size(num_documents=4, document_tokens=256, context=2048, repeats=1, subset=2)


@dataclass(frozen=True)
class Step:
    """One thing to do: bring the context to `target` (documents in order) and ask. Unmeasured steps set a case up."""

    case: str
    target: tuple[int, ...]
    question: str
    is_measured: bool = True


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


def steps_of(size: Size, repeat: int, questions: Asker) -> list[Step]:
    """The cases of one repeat, each from the composition that the one before left. Seeded by `repeat`."""
    draw = random.Random(f"kvloom-switch:{repeat}")
    whole = tuple(range(size.num_documents))
    out = whole[(repeat * 3) % len(whole)]
    late = whole[-1 - repeat % (len(whole) - 1)]  # never the first: that would be the whole as it was
    subset = tuple(sorted(draw.sample(whole, size.subset)))
    without_late = tuple(index for index in whole if index != late)
    shuffled = whole
    while shuffled in (whole, (late, *without_late)):
        shuffled = tuple(draw.sample(whole, len(whole)))
    return [
        Step("off", tuple(index for index in whole if index != out), questions.next()),
        Step("on-seen", whole, questions.next()),
        Step("insert-front", without_late, questions.next(), is_measured=False),
        Step("insert-front", (late, *without_late), questions.next()),
        Step("reorder", shuffled, questions.next()),
        Step("subset-unseen", subset, questions.next()),
    ]


class Switch:
    """One run: a loom, two peers, and the steps."""

    def __init__(self, loom: Loom, size: Size, tell: Teller, peers: tuple[Peer, Peer]) -> None:
        self._loom = loom
        self._size = size
        self._tell = tell
        self._plain, self._moving = peers
        self._questions = Questions(loom.count, QUESTION_TOKENS, seed=1)
        self._docs = documents(loom.count, size.num_documents, size.document_tokens)
        self.samples = Samples()

    @property
    def document_tokens(self) -> list[int]:
        return [doc.num_tokens for doc in self._docs]

    def run(self) -> None:
        whole = tuple(range(len(self._docs)))
        self._full_prefill(whole)
        for repeat in range(self._size.repeats):
            steps = steps_of(self._size, repeat, self._questions)
            for peer in (self._plain, self._moving):
                peer.restore_slot(WHOLE_SLOT)
            prompts = self._phase(FIDELITIES[0], steps, with_peers=True)
            for fidelity in FIDELITIES[1:]:
                again = self._phase(fidelity, steps, with_peers=False)
                assert again == prompts, "all fidelities and the peers must see the same token ids"

    def _full_prefill(self, whole: tuple[int, ...]) -> None:
        """Nothing is known on either side. Ours is purged in between; the peers are asked once each."""
        question = self._questions.next()
        for fidelity in FIDELITIES:
            for chunk in self._loom.chunks():
                self._loom.purge(chunk.id)
            desk = Desk(self._loom, fidelity, self._docs)
            ours = self._ask(desk, Step("full-prefill", whole, question), fidelity)
            desk.close()
            if fidelity is FIDELITIES[0]:
                answer = self._plain.complete(ours.prompt)
                self._plain.save_slot(WHOLE_SLOT)
                self._note_peers("full-prefill", Theirs(answer, None))

    def _phase(self, fidelity: Fidelity, steps: Sequence[Step], *, with_peers: bool) -> list[tuple[int, ...]]:
        """All steps in one session of its own; the prompts that it asked."""
        desk = Desk(self._loom, fidelity, self._docs)
        prompts = []
        try:
            desk.session.warm()
            for step in steps:
                ours = self._ask(desk, step, fidelity)
                prompts.append(ours.prompt)
                if with_peers:
                    self._ask_peers(step, ours.prompt)
        finally:
            desk.close()
        return prompts

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


def run(
    model: str | None = None,
    quick: bool = False,
    progress: ProgressCallback | None = None,
    *,
    threads: int | None = None,
    repeats: int | None = None,
) -> Report:
    """Run the benchmark. About 15 minutes on 2 cores with the default model; `quick` takes one or two."""
    require_peer()
    request = Request(model, quick, threads, repeats, progress)
    size = QUICK if quick else FULL
    size = replace(size, repeats=repeats or size.repeats)
    settings = settings_for(request, context=size.context, blend_budget=BLEND_BUDGET)
    sides = len(FIDELITIES) + 1
    tell = Teller("switch", sides * (1 + size.repeats * (len(CASES) - 1)), progress)
    with own_home() as home, ExitStack() as stack:
        tell.say("loading the model")
        loom = stack.enter_context(open_loom(settings, home, progress))
        setup = setup_of(
            loom,
            {
                "num_documents": size.num_documents,
                "question_tokens": QUESTION_TOKENS,
                "blend_budget": BLEND_BUDGET,
                "repeats": size.repeats,
                "is_quick": quick,
                "command": command("switch", request.options()),
            },
        )
        slots = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvloom-slots-"))

        def peer(cache_reuse: int) -> Peer:
            chosen = peer_settings(loom, size.context, cache_reuse=cache_reuse, slot_save_path=slots)
            return stack.enter_context(Peer(chosen))

        switch = Switch(loom, size, tell, (peer(PLAIN), peer(MOVING)))
        switch.run()
    setup |= {"document_tokens": switch.document_tokens, "load_average_at_end": load_average()}
    return Report(
        "switch", setup, tuple(rows_of(switch.samples)), columns=("edit_s", "weave_s", "question_s"), notes=NOTES
    )


NOTES = (
    "ours: from before the edits to the first delta of session.stream(question); peer: from the request to the first "
    "streamed token, the same token ids, the better of cache-reuse 0 and 256 (exact: 0), RAM prompt cache on.",
    "off: one document out. on-seen: back to the whole right after it. insert-front: a known document in front of the "
    "seven others. reorder: all in a random order. subset-unseen: five of the eight, from the reordered context.",
)
