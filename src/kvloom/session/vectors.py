"""The vectors of one library: filled behind an update, caught up a little with each question, searched with.

An embedder that fails costs a notice: questions go by words alone then. Knows no conversation and no model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvloom.errors import KvloomError, StoreError
from kvloom.index import Found, LibraryIndex, Vectors
from kvloom.index import Progress as IndexProgress
from kvloom.session.values import Progress, ProgressCallback

if TYPE_CHECKING:
    from kvloom.session.embedders import Embedders

log = logging.getLogger(__name__)

CATCH_UP_S = 0.5
"""What a question gives to passages that have no vector yet: those that were added where no model was loaded."""


class LibraryVectors:
    """Safe for several threads."""

    def __init__(self, index: LibraryIndex, embedders: Embedders) -> None:
        self._index = index
        self._embedders = embedders
        self._lock = threading.Lock()
        self._vectors: Vectors | None = None
        self._notices: list[str] = []

    def fill(self, progress: ProgressCallback | None, is_cancelled: Callable[[], bool]) -> bool:
        """Vectors for all passages that have none; False where it was stopped, and the next goes on behind it."""
        vectors = self._asked()
        if vectors is None:
            return True
        missing = vectors.num_missing(self._index)

        def tell(at: IndexProgress) -> None:
            if progress is not None:
                progress(Progress("making vectors", at.num_passages, max(missing, at.num_passages), "passages"))

        try:
            return vectors.update(self._index, tell, is_cancelled)
        except StoreError:
            raise
        except KvloomError as error:
            self._failed(error)
            return True

    def search(self, question: str, limit: int) -> list[Found]:
        """The passages that have most to do with the question, by words, and by vectors where there are any."""
        vectors = self._asked()
        if vectors is not None:
            try:
                end = time.monotonic() + CATCH_UP_S
                vectors.update(self._index, None, lambda: time.monotonic() > end)
                return self._index.search(question, limit, vectors)
            except StoreError:
                raise
            except KvloomError as error:
                self._failed(error)
        return self._index.search(question, limit)

    def take_notices(self) -> tuple[str, ...]:
        with self._lock:
            taken, self._notices = tuple(self._notices), []
        return taken

    def _asked(self) -> Vectors | None:
        try:
            embedder = self._embedders.get()
        except KvloomError as error:
            self._failed(error)
            return None
        if embedder is None:
            return None
        with self._lock:
            if self._vectors is None or self._vectors.name != embedder.name:
                self._vectors = Vectors(embedder)
            return self._vectors

    def _failed(self, error: KvloomError) -> None:
        said = f"passages were looked up by words alone: {error}"
        log.warning("%s", said)
        with self._lock:
            if said not in self._notices:
                self._notices.append(said)
