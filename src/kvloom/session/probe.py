"""Measures inside one session's context, in scratch sequences: for the benchmarks. Changes nothing of the session.

Knows token ids and rows; what is asked and how it is compared is the benchmark's business.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvloom.context.manifest import SlotKind
from kvloom.context.variants import Span, composition
from kvloom.engine.base import Logits, Run
from kvloom.errors import EngineUnsupportedError
from kvloom.session.composer import Composed
from kvloom.session.turn import TurnRunner
from kvloom.types import F32Array

if TYPE_CHECKING:
    from kvloom.context.device import Holding
    from kvloom.session.session import Session

ROWS_AT_A_TIME = 64
"""Logits of so many positions are held at once: a vocabulary of 150,000 takes 600 kB a row."""


@dataclass(frozen=True)
class Recompute:
    """What to compute again in place: as blend chooses, or plainly the first tokens of every chunk. Shares of all."""

    blend_share: float = 0.0
    first_share: float = 0.0


NOTHING = Recompute()


class Probe:
    """Looks into a session. The caller sees to it that no reply runs meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loom = session.loom

    def question_tokens(self, text: str) -> list[int]:
        """The token ids that asking `text` would append to the context."""
        return list(self._session._asking.question(text, self._session.manifest).tokens)

    def logits_behind(self, tokens: Sequence[int]) -> F32Array:
        """Logits (vocab,) behind the context and these token ids."""
        with self._scratch() as (_, scratch):
            logits = self._loom.composer.weaver.extend(scratch, tokens, self._span(scratch), lambda: False)
            return np.array(logits, dtype=np.float32)

    def log_probs(
        self, tokens: Sequence[int], num_rows: int, recompute: Recompute = NOTHING, question: str = ""
    ) -> tuple[F32Array, int]:
        """Log-probabilities (num_rows, vocab) behind the last `num_rows` of `tokens`, asked behind the context.

        And how many tokens `recompute` computed again in place before; blend follows the text `question`.
        """
        with self._scratch() as (composed, scratch):
            number = self._recompute(composed, scratch, recompute, question)
            return self._last_rows(scratch, tokens, self._span(scratch), num_rows), number

    def cold_log_probs(self, tokens: Sequence[int], num_rows: int, batch: int = 0) -> F32Array:
        """Log-probabilities behind the last `num_rows` of `tokens`, prefilled from nothing, `batch` at a time (0: all).

        The last `num_rows` are one batch in either case.
        """
        device = self._loom.device
        with device.lock:
            scratch = device.holding("")
            try:
                device.make_room(len(tokens), [scratch])
                before = len(tokens) - num_rows
                for first in range(0, before, batch or before):
                    part = tokens[first : min(before, first + (batch or before))]
                    device.decode([Run(scratch.sequence, part, first)], scratch)
                return self._last_rows(scratch, tokens[before:], before, num_rows)
            finally:
                device.release(scratch)

    def bare_tokens_per_s(self, text: str, num_tokens: int) -> float:
        """Decoding speed of the barest native loop behind the context and the question `text`.

        Raises EngineUnsupportedError for an engine that has no such loop.
        """
        from kvloom.engine.llamacpp import LlamaCppEngine
        from kvloom.engine.llamacpp.bare import bare_greedy

        engine = self._loom.engine
        if not isinstance(engine, LlamaCppEngine):
            raise EngineUnsupportedError(f"{type(engine).__name__} has no bare loop to compare with")
        tokens = self.question_tokens(text)
        with self._scratch() as (_, scratch):
            logits = self._loom.composer.weaver.extend(scratch, tokens, self._span(scratch), lambda: False)
            self._loom.device.make_room(num_tokens, [scratch])
            token, sequence, batcher = int(logits.argmax()), scratch.sequence, self._loom.device.batcher
            chosen, seconds = batcher.run(lambda: bare_greedy(engine, sequence, token, num_tokens))
            return len(chosen) / seconds

    def plan_s(self) -> float:
        """Seconds for planning the session's manifest on what is resident now."""
        with self._loom.device.lock:
            holding = self._loom.device.holding(self._session.id)
            began = time.perf_counter()
            wanted = self._loom.composer.wanted(self._session.manifest)
            self._loom.composer.weaver.plan(holding, wanted)
            return time.perf_counter() - began

    # -- inside -------------------------------------------------------------------------------------------------

    @contextmanager
    def _scratch(self) -> Iterator[tuple[Composed, Holding]]:
        """The session's context, woven, and a copy of it that shares its cells."""
        device = self._loom.device
        with device.lock:
            runner = self._session._asking.runner
            if not isinstance(runner, TurnRunner):
                raise EngineUnsupportedError("only a model that is loaded here can be probed")
            composed = runner.compose(self._session.manifest, None)
            holding = device.holding(self._session.id)
            holding.is_busy = True  # or it could be evicted for the scratch sequence
            try:
                scratch = device.holding("")
            finally:
                holding.is_busy = False
            try:
                self._loom.engine.copy(holding.sequence, scratch.sequence, 0, composed.manifest.span)
                scratch.residents.update(holding.residents)
                yield composed, scratch
            finally:
                device.release(scratch)

    def _span(self, scratch: Holding) -> int:
        last = self._loom.engine.last_position(scratch.sequence)
        return 0 if last is None else last + 1

    def _last_rows(self, scratch: Holding, tokens: Sequence[int], start: int, num_rows: int) -> F32Array:
        device = self._loom.device
        device.make_room(len(tokens), [scratch])
        found = device.decode([Run(scratch.sequence, tokens, start, Logits.ALL)], scratch)[0]
        assert found is not None, "all logits were asked for"
        return _log_softmax(found[-num_rows:])

    def _recompute(self, composed: Composed, scratch: Holding, recompute: Recompute, question: str) -> int:
        composer, wanted = self._loom.composer, composed.wanted
        if recompute.blend_share:
            return composer.blend(scratch, composed, question, recompute.blend_share)
        if not recompute.first_share:
            return 0
        chunks = [slot for slot in composed.manifest.active if slot.kind is SlotKind.CHUNK]
        spans = [Span(s.position, s.position + round(s.num_tokens * recompute.first_share)) for s in chunks]
        return composer.weaver.blend(
            scratch, wanted, spans, lambda position: composition(w for w in wanted if w.position < position)
        )


def _log_softmax(logits: F32Array) -> F32Array:
    """Row-wise, in place over a copy, a few rows at a time."""
    out = np.array(logits, dtype=np.float32)
    for first in range(0, len(out), ROWS_AT_A_TIME):
        part = out[first : first + ROWS_AT_A_TIME]
        part -= part.max(axis=1, keepdims=True)
        part -= np.log(np.exp(part).sum(axis=1, keepdims=True))
    return out
