"""`bench fidelity`: how far splice and blend are from a full prefill, as a curve over the share recomputed.

KL, top-1 and the answer's NLL over paired draws of real files and questions. Knows the façade and its probe only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from kvloom.bench.asking import CONTEXT, DOCUMENT_TOKENS, NUM_DOCUMENTS, Asked, asked_in, chunks_of, session_with
from kvloom.bench.distance import Distance, distance, summary
from kvloom.bench.draws import Draw, draw
from kvloom.bench.report import Report, Row
from kvloom.bench.setting import Request, open_loom, own_home, settings_for, setup_of
from kvloom.bench.teller import Teller
from kvloom.session.probe import NOTHING, Probe, Recompute
from kvloom.types import F32Array, Fidelity

if TYPE_CHECKING:
    from kvloom.session.loom import Loom
    from kvloom.session.session import Session

NUM_DRAWS, QUICK_NUM_DRAWS = 50, 2
NUM_FLOOR_DRAWS = 4
"""The floor takes a slow prefill of many small batches: not on every draw."""
SMALL_BATCH = 7
"""Rows of the floor's batches: too few for the kernels' tiles, so that they round differently."""

VARIANTS: tuple[tuple[str, Recompute], ...] = (
    ("splice", NOTHING),
    ("blend-5", Recompute(blend_share=0.05)),
    ("blend-10", Recompute(blend_share=0.10)),
    ("blend-15", Recompute(blend_share=0.15)),
    ("blend-25", Recompute(blend_share=0.25)),
    ("first-k-5", Recompute(first_share=0.05)),
    ("first-k-15", Recompute(first_share=0.15)),
)
EXACT, FLOOR = "exact", "re-batching floor"

SPLICE_MEDIAN, SPLICE_MEAN, SPLICE_TOP1 = 0.002, 0.12, 0.94
BLEND_OF_SPLICE, BLEND_TOP1, GAP_CLOSED, EXACT_OF_FLOOR = 0.6, 0.95, 0.8, 2.0


@dataclass
class Found:
    """Distances by variant, one per draw; seconds of the full prefills; whether restores were identical."""

    by_variant: dict[str, list[Distance]]
    full_s: list[float]
    num_restores: int = 0
    num_identical: int = 0


class Bench:
    """One run over all draws. Every variant of a draw sees the same token ids as the full prefill."""

    def __init__(self, loom: Loom, tell: Teller, num_floor_draws: int) -> None:
        self._loom = loom
        self._tell = tell
        self._num_floor_draws = num_floor_draws
        self.found = Found({}, [])

    def take(self, number: int) -> None:
        """One draw: the reference, the exact checks on some, then every variant."""
        chosen = draw(number, NUM_DOCUMENTS, DOCUMENT_TOKENS, self._loom.count)
        with chunks_of(self._loom, chosen) as chunks:
            with session_with(self._loom, chunks, Fidelity.EXACT) as session:
                began = time.perf_counter()
                session.warm()
                asked = asked_in(session, chosen)
                reference, _ = Probe(session).log_probs(asked.tokens, asked.num_rows)
                self.found.full_s.append(time.perf_counter() - began)
                ids = session.tokens()
                if number < self._num_floor_draws:
                    self._exact(session, ids, asked, reference)
            with session_with(self._loom, chunks, Fidelity.SPLICE) as session:
                if session.tokens() != ids:
                    raise AssertionError("splice and exact must hold the same token ids")
                session.warm()
                for name, recompute in VARIANTS:
                    self._note(name, *self._variant(session, chosen, asked, recompute), reference, asked.answer)
        last = {name: found[-1].kl.mean() for name, found in self.found.by_variant.items()}
        shown = ", ".join(f"{name} {last[name]:.4f}" for name in ("splice", "blend-5", "blend-15", "first-k-15"))
        self._tell.step(f"draw {number} ({chosen.kind.value}): mean KL {shown}")

    def _variant(
        self, session: Session, chosen: Draw, asked: Asked, recompute: Recompute
    ) -> tuple[F32Array, float, float]:
        """(log-probabilities, seconds, share of the chunks' tokens recomputed)."""
        began = time.perf_counter()
        found, num_recomputed = Probe(session).log_probs(asked.tokens, asked.num_rows, recompute, chosen.question)
        num_chunk_tokens = sum(s.num_tokens for s in session.usage().segments if s.kind == "chunk")
        return found, time.perf_counter() - began, num_recomputed / num_chunk_tokens

    def _exact(self, session: Session, ids: list[int], asked: Asked, reference: F32Array) -> None:
        """Exact against one plain prefill of the same ids, beside the same in small batches; then a restore."""
        probe, whole = Probe(session), [*ids, *asked.tokens]
        began = time.perf_counter()
        plain = probe.cold_log_probs(whole, asked.num_rows)
        plain_s = time.perf_counter() - began
        floor = probe.cold_log_probs(whole, asked.num_rows, SMALL_BATCH)
        self._note(EXACT, reference, plain_s, 0.0, plain, asked.answer)
        self._note(FLOOR, floor, time.perf_counter() - began - plain_s, 0.0, plain, asked.answer)
        for chunk in session.manifest.chunk_ids:
            self._loom.offload(chunk)
        session.warm()
        restored, _ = probe.log_probs(asked.tokens, asked.num_rows)
        self.found.num_restores += 1
        self.found.num_identical += int(np.array_equal(restored, reference))

    def _note(
        self, name: str, other: F32Array, seconds: float, share: float, reference: F32Array, answer: Sequence[int]
    ) -> None:
        self.found.by_variant.setdefault(name, []).append(distance(reference, other, answer, seconds, share))


def rows_of(found: Found) -> list[Row]:
    """A row for every variant: its distance to the full prefill, what it should be, and its time beside it."""
    full = median(found.full_s)
    numbers = {name: summary(draws) for name, draws in found.by_variant.items()}
    rows = []
    for name in (*(name for name, _ in VARIANTS), EXACT, FLOOR):
        if name not in numbers:
            continue
        seconds = median(draw.seconds for draw in found.by_variant[name])
        extra: dict[str, object] = {**numbers[name], **checks(name, numbers, found)}
        fidelity = name.partition("-")[0] if name != FLOOR else ""
        fidelity = "" if fidelity == "first" else fidelity
        is_timed = name not in (EXACT, FLOOR)
        rows.append(
            Row(name, fidelity, seconds, "full prefill", full, full / seconds if is_timed else None, None, extra)
        )
    return rows


def checks(name: str, numbers: dict[str, dict[str, float]], found: Found) -> dict[str, object]:
    """What a variant should reach, each with whether it does."""
    mine, splice = numbers[name], numbers["splice"]
    if name == "splice":
        return {
            "checks": {
                f"median KL ≤ {SPLICE_MEDIAN}": mine["kl_median"] <= SPLICE_MEDIAN,
                f"mean KL ≤ {SPLICE_MEAN}": mine["kl_mean"] <= SPLICE_MEAN,
                f"top-1 ≥ {SPLICE_TOP1}": mine["top1"] >= SPLICE_TOP1,
            }
        }
    if name == EXACT:
        floor = numbers[FLOOR]["kl_mean"]
        return {
            "checks": {
                f"mean KL ≤ {EXACT_OF_FLOOR:g} × the floor's": mine["kl_mean"] <= EXACT_OF_FLOOR * floor,
                "a restore is identical to the bit": found.num_identical == found.num_restores,
            },
            "restores": found.num_restores,
            "identical_restores": found.num_identical,
        }
    if name == FLOOR:
        return {}
    gap = splice["nll"] - splice["nll_full_prefill"]
    closed = (splice["nll"] - mine["nll"]) / gap if gap > 0 else float("nan")
    of_splice = mine["kl_mean"] / splice["kl_mean"] if splice["kl_mean"] else float("nan")
    result: dict[str, object] = {"kl_of_splice": of_splice, "nll_gap_closed": closed}
    if name == "blend-15":
        result["checks"] = {
            f"mean KL ≤ {BLEND_OF_SPLICE} × splice's": of_splice <= BLEND_OF_SPLICE,
            f"top-1 ≥ {BLEND_TOP1}": mine["top1"] >= BLEND_TOP1,
            "mean KL below first k": mine["kl_mean"] < numbers["first-k-15"]["kl_mean"],
            f"NLL gap closed ≥ {GAP_CLOSED:.0%}": closed >= GAP_CLOSED,
        }
    return result


def run(request: Request) -> Report:
    """Run the benchmark over `repeats` draws. About half a minute a draw on 2 cores with the default model."""
    number = request.repeats or (QUICK_NUM_DRAWS if request.quick else NUM_DRAWS)
    num_floor_draws = min(number, 1 if request.quick else NUM_FLOOR_DRAWS)
    tell = request.teller("fidelity", number)
    with own_home() as home:
        found, setup = measure(request, home, tell, (number, num_floor_draws))
    setup |= request.closing("fidelity")
    rows = rows_of(found)
    told = [
        f"{row.case}: {what}: {'yes' if is_met else 'NO'}"
        for row in rows
        for what, is_met in dict(row.extra.get("checks", {})).items()
    ]
    columns = (
        "share",
        "kl_mean",
        "kl_mean_low",
        "kl_mean_high",
        "kl_median",
        "kl_p90",
        "top1",
        "nll",
        "nll_gap_closed",
    )
    return Report("fidelity", setup, tuple(rows), columns=columns, notes=(*told, *NOTES))


def measure(request: Request, home: Path, tell: Teller, numbers: tuple[int, int]) -> tuple[Found, dict[str, object]]:
    """All draws; `numbers` of draws and of those on which the floor is measured too."""
    with open_loom(settings_for(request, context=CONTEXT), home, tell) as loom:
        setup = setup_of(
            loom,
            {
                "num_documents": NUM_DOCUMENTS,
                "document_tokens": DOCUMENT_TOKENS,
                "draws": numbers[0],
                "floor_draws": numbers[1],
            },
        )
        bench = Bench(loom, tell, numbers[1])
        for number in range(numbers[0]):
            bench.take(number)
        return bench.found, setup


NOTES = (
    "KL in nats from a full prefill of the same token ids, over the last 8 positions of the question and the answer; "
    "low and high bound 95 % (draws resampled). nll: the answer's, per token.",
    "seconds: question and answer, with what is recomputed; the full prefill's with the prefill.",
)
