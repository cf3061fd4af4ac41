# ruff: noqa: ARG002 - what cannot be done needs none of its arguments
"""An engine without cells: it holds nothing and computes nothing. What is asked of it is refused with a reason.

For models that run elsewhere, and for looking at what a home holds of a model that is not loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from kvloom.engine.base import Engine, PlacedRows, RowLayer, Run, Sampler
from kvloom.types import F32Array, I32Array, KVRows, SamplingParams, SequenceId


class AbsentEngine(Engine):
    """Every sequence is empty, and stays so."""

    def refuse(self, what: str) -> NoReturn:
        """Raises EngineUnsupportedError, or a subclass of it."""
        raise NotImplementedError

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        self.refuse("logits")

    def copy(self, source: SequenceId, target: SequenceId, start: int, stop: int) -> None:
        self.refuse("a copy of KV")

    def remove(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> None:
        """There is nothing to remove."""

    def last_position(self, sequence: SequenceId) -> int | None:
        return None

    def num_tokens(self, sequence: SequenceId) -> int:
        return 0

    def read(self, sequence: SequenceId, start: int = 0, stop: int | None = None) -> tuple[I32Array, KVRows]:
        self.refuse("KV")

    def write(self, sequence: SequenceId, parts: Sequence[PlacedRows], lay: RowLayer | None = None) -> None:
        self.refuse("KV of one's own")

    def sampler(self, params: SamplingParams) -> Sampler:
        self.refuse("sampling step by step")

    def used_cells(self) -> int:
        return 0

    def resize(self, num_cells: int) -> None:
        """There are no cells: only the number is kept."""
        self.num_cells = num_cells

    def close(self) -> None:
        """There is nothing to give back."""
