"""A loom over the deterministic engine, and what a test wants to know of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvloom.config import Settings, load_settings
from kvloom.engine.base import Logits, Run
from kvloom.engine.fake import VOCABULARY_SIZE, FakeEngine, U64Array
from kvloom.errors import EngineUnsupportedError
from kvloom.session.loom import Loom
from kvloom.session.rooms import join
from kvloom.session.session import Session
from kvloom.types import F32Array, SequenceId

FIRST = SequenceId(0)


class Endless(FakeEngine):
    """Replies never end by themselves."""

    def _logits(self, states: U64Array) -> F32Array:
        logits = super()._logits(states)
        logits[:, 256:] = -100.0
        return logits


class RecurrentEngine(FakeEngine):
    """Holds a state that cannot be taken apart: a sequence is copied or removed as a whole."""

    def __init__(self, num_cells: int = 4096, max_sequences: int = 32) -> None:
        super().__init__(num_cells, max_sequences, can_move_kv=False, can_rotate=False)

    def remove(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> None:
        held = self._cells[sequence]
        part = [p for p in held if start <= p and (stop is None or p < stop)]
        if part and len(part) != len(held):
            raise EngineUnsupportedError(f"{len(part)} of {len(held)} tokens cannot be taken apart")
        super().remove(sequence, start, stop)

    def copy(self, source: SequenceId, target: SequenceId, start: int, stop: int) -> None:
        held = self._cells[source]
        if any(not start <= p < stop for p in held):
            raise EngineUnsupportedError("a part of a state cannot be copied")
        super().copy(source, target, start, stop)


def fake_settings(context: int = 2048, **values: object) -> Settings:
    off = {"enabled": False}  # what else runs on this machine must not decide
    return load_settings({"context": context, "system": "Answer.", "reserve_tokens": 128, "guard": off, **values})


def fake_loom(home: Path, engine: FakeEngine | None = None, **values: object) -> Loom:
    settings = fake_settings(**values)  # type: ignore[arg-type]
    engine = engine or FakeEngine(num_cells=(settings.context or 0) + 1024)
    return join(engine, settings, home, ("fake", Path("fake.gguf")))


def engine_of(loom: Loom) -> FakeEngine:
    assert isinstance(loom.engine, FakeEngine)
    return loom.engine


def token_table(engine: FakeEngine) -> dict[bytes, int]:
    """The V row of layer 0 of each token: it comes from the token alone."""
    probe = FakeEngine(num_cells=VOCABULARY_SIZE + 8, seed=_seed(engine))
    probe.decode([Run(FIRST, range(VOCABULARY_SIZE), 0)])
    _, rows = probe.read(FIRST)
    return {rows.v(0)[token].tobytes(): token for token in range(VOCABULARY_SIZE)}


def held_tokens(loom: Loom, session: Session) -> list[int]:
    """The token ids whose rows the session's sequence really holds, by position."""
    engine = engine_of(loom)
    with loom.device.lock:
        sequence = loom.device.holding(session.id).sequence
        cells = engine._cells[sequence]
        rows = engine._rows[[cells[p] for p in sorted(cells)]]
    start, size = 2 * engine.layout.k_row_bytes(0), engine.layout.v_row_bytes(0)
    table = token_table(engine)
    return [table[row[start : start + size].tobytes()] for row in rows]


def fresh_logits(engine: FakeEngine, tokens: Sequence[int]) -> F32Array:
    """Logits behind these tokens, prefilled by an engine that has never held anything."""
    fresh = FakeEngine(num_cells=len(tokens) + 8, seed=_seed(engine))
    found = fresh.decode([Run(FIRST, tokens, 0, Logits.LAST)])[0]
    assert found is not None
    return np.array(found)


def _seed(engine: FakeEngine) -> int:
    return int(engine.fingerprint, 16)
