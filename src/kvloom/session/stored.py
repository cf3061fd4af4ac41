"""Opens a home over a model that is not loaded: what is stored is told by the same code, from what the engine said of
itself when it was loaded last. Knows no weights.

Where something needs the model after all, ModelNeededError is raised before anything was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvloom.chunk.database import DATABASE_NAME
from kvloom.config import Settings, paths
from kvloom.context.manifest import Manifest, Tokens
from kvloom.engine.recorded import ModelNeededError, RecordedEngine
from kvloom.engine.remote.address import parse_address
from kvloom.errors import EngineMemoryError, ModelError
from kvloom.kv.rotate import Rotator
from kvloom.kv.store import TieredStore
from kvloom.memory.probe import read_memory
from kvloom.model.header import read_header
from kvloom.model.registry import find_model
from kvloom.session.history import TurnRecord
from kvloom.session.loom import Loom
from kvloom.session.pool import num_cells
from kvloom.session.prompts import Prompts
from kvloom.session.recording import forget, recorded
from kvloom.session.rooms import fingerprint_of, join
from kvloom.session.session import Session
from kvloom.session.sizing import demand_of, opening_window, reading_for
from kvloom.session.values import LoomStatus
from kvloom.types import Fidelity, SessionId

__all__ = ["ModelNeededError", "StoredLoom", "open_stored"]


class _StoredPrompts(Prompts):
    """No token ids: a manifest of this model is taken as it is, everything else needs the model."""

    def head(self, system: str) -> Tokens:
        """Nothing: it is only asked for in case that a session is new, and none is made here."""
        del system
        return Tokens(())

    def adopted(self, manifest: Manifest, records: Sequence[TurnRecord]) -> Manifest:
        del records
        if manifest.model != self._model:
            raise ModelNeededError("this session was held with another model: its tokens are counted anew")
        return manifest


class StoredLoom(Loom):
    """A loom over a recorded engine: stored sessions and chunks can be looked at, and edited where that computes
    nothing."""

    def __init__(
        self,
        engine: RecordedEngine,
        store: TieredStore,
        rotator: Rotator,
        settings: Settings,
        home: Path,
        model: tuple[str, Path],
    ) -> None:
        super().__init__(engine, store, rotator, settings, home, model)
        self._engine_name = engine.record.name
        self.prompts = _StoredPrompts(self.builder, self.shelf, engine.fingerprint)

    def session(
        self,
        system: str | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the name that callers know
        name: str | None = None,
        fidelity: Fidelity | str | None = None,
    ) -> Session:
        """A stored session by its id. Raises ModelNeededError for a new one, and for a change of this one."""
        if id is None or system is not None or name is not None or fidelity is not None:
            raise ModelNeededError("a session is begun with its model")
        if not self.log.get(self.log.resolve(id)).head:
            raise ModelNeededError("this session is empty: it begins with its model")
        return super().session(id=id)

    def _note_window(self, session: SessionId, asked: int) -> None:
        """Nothing: to look at a session is not to open it with another window."""

    def status(self) -> LoomStatus:
        return replace(super().status(), engine=self._engine_name)


def open_stored(settings: Settings, home: str | Path | None = None) -> StoredLoom | None:
    """A home over the settings' model without loading it; None where this home has never seen it loaded so.

    Raises StoreError.
    """
    where = paths(home)
    if parse_address(settings.model) is not None or not (where.home / DATABASE_NAME).is_file():
        return None
    try:
        found = find_model(settings.model, where)
        header = read_header(found.path)
        fingerprint = fingerprint_of(found.path, settings, where)
        record = recorded(where.home, fingerprint, settings)
        if record is None:
            return None
        reading = reading_for(read_memory(), on_accelerator=record.uses_accelerator)
        sizing = opening_window(settings, demand_of(header.shape, header.weights.total_bytes, settings), reading)
    except (ModelError, EngineMemoryError):  # loading it says what is wrong
        return None
    chosen = settings.model_copy(update={"context": sizing.context})
    engine = RecordedEngine(record, num_cells(sizing.context))
    try:
        loom = join(engine, chosen, where.home, (found.name, found.path), StoredLoom)
    except ModelNeededError:  # another kvloom has put other questions to the model
        forget(where.home, fingerprint, settings)
        return None
    loom.sizing = sizing
    assert isinstance(loom, StoredLoom)
    return loom
