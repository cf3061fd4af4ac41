"""Vectors of texts: an embedder that is made when it is asked for, takes turns with the replies, and goes when idle.

Knows the engine's seam and the memory that can be spared; no HTTP. One for all tenants: nothing of a text stays in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from kvloom.context.device import Device
from kvloom.engine.base import Embedder
from kvloom.engine.cores import CORES, Cores
from kvloom.errors import CancelledError, ContextOverflowError, EngineMemoryError, LoomClosedError, UsageError
from kvloom.types import F32Array

log = logging.getLogger(__name__)

IDLE_S = 60.0
"""A context that nobody needs for so long is given back: to make it again takes milliseconds."""
GROUP_TOKENS = 1024
"""Texts of so many tokens are computed before another request's turn."""
LEAST_TOKENS = 512
"""A context is made for texts of this length at least, so that it is not made again for each longer one."""
MIB = 1024**2


class Embeddings:
    """The embeddings of one loaded model. Safe for several threads.

    `spare_bytes`: what memory can give now; None: unknown.
    """

    def __init__(self, device: Device, spare_bytes: Callable[[], int | None], idle_s: float = IDLE_S) -> None:
        self._device = device
        self._spare_bytes = spare_bytes
        self._idle_s = idle_s
        self._turns = Cores()  # a lock whose turns come in the order in which they were asked for
        self._shares_cores = False
        self._embedder: Embedder | None = None
        self._used_s = 0.0
        self._timer: threading.Timer | None = None
        self._is_closed = False

    @property
    def is_possible(self) -> bool:
        """Whether the model makes any."""
        return self._device.engine.has_embeddings

    @property
    def num_bytes(self) -> int:
        """What the context takes now, as forecast; 0 where there is none."""
        embedder = self._embedder
        return 0 if embedder is None else embedder.num_bytes

    def tokens(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """The ids that are read for each text; those of ids are the ids. Raises UsageError for an empty text or an
        unknown id."""
        vocabulary = self._device.engine.vocabulary
        found = [
            vocabulary.tokenize_whole(text.encode("utf-8")) if isinstance(text, str) else list(text) for text in texts
        ]
        for number, (text, ids) in enumerate(zip(texts, found, strict=True)):
            if not text or not ids:
                raise UsageError(f"text {number} is empty: there is nothing to embed")
            wrong = next((token for token in ids if not 0 <= token < vocabulary.size), None)
            if wrong is not None:
                raise UsageError(f"there is no token {wrong}: the model's ids are 0 to {vocabulary.size - 1}")
        return found

    def embed(self, texts: Sequence[Sequence[int]], window: int, is_cancelled: Callable[[], bool]) -> list[F32Array]:
        """A vector of length 1 for each list of ids, of at most `window`.

        Raises ContextOverflowError, EngineUnsupportedError, CancelledError, EngineMemoryError with the numbers where
        memory cannot spare the context.
        """
        longest = max((len(text) for text in texts), default=0)
        if longest > window:
            raise ContextOverflowError(
                f"a text of {longest} tokens is longer than the window of {window}; cut it into parts",
                num_needed_tokens=longest,
                num_window_tokens=window,
            )
        found: list[F32Array] = []
        for group in _groups(texts):
            with self._turns:
                embedder = self._made(min(window, max(LEAST_TOKENS, longest)))
                found += self._computed(embedder, group, is_cancelled)
                self._used_s = time.monotonic()
        return found

    def release(self) -> int:
        """Give the context back as soon as nobody computes in it; bytes, as forecast. It is made again when needed."""
        with self._turns:
            return self._release()

    def close(self) -> None:
        """Before the engine. Idempotent."""
        with self._turns:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._release()

    # -- inside, in turn ----------------------------------------------------------------------------------------

    def _computed(
        self, embedder: Embedder, texts: Sequence[Sequence[int]], is_cancelled: Callable[[], bool]
    ) -> list[F32Array]:
        vectors: list[F32Array] = []
        steps = embedder.embed(texts)
        try:
            while True:
                if is_cancelled():
                    raise CancelledError("the embeddings were cancelled before they were whole")
                with CORES:  # in turns with the batcher's worker: replies flow on between two batches
                    done = next(steps, None)
                if done is None:
                    return vectors
                vectors += done
        finally:
            steps.close()

    def _made(self, num_tokens: int) -> Embedder:
        """The context, large enough for a text of so many tokens."""
        if self._is_closed:
            raise LoomClosedError("the loom is closed; open it again with kvloom.open(…)")
        embedder = self._embedder
        if embedder is not None and embedder.max_tokens >= num_tokens:
            return embedder
        engine, had = self._device.engine, self.num_bytes
        needed = engine.embedder_bytes(num_tokens)
        # Asked for first: the system hands out memory that is not there, and kills the process when it is used.
        spare = self._spare_bytes()
        if spare is not None and needed - had > spare:
            raise EngineMemoryError(
                f"embeddings of texts of {num_tokens} tokens need a context of {needed / MIB:,.0f} MiB, and memory can "
                f"spare {max(0, spare + had) / MIB:,.0f} MiB below the guard's limit; embed shorter texts, or open the "
                "model with a smaller --context"
            )
        self._release()
        with self._device.lock:  # so no step of the batcher is under way that has not taken the cores
            self._embedder = engine.embedder(num_tokens)
            if self._device.batcher.cores is None:
                self._device.batcher.cores, self._shares_cores = CORES, True
        log.info("a context for embeddings of up to %d tokens was made: %.0f MiB", num_tokens, needed / MIB)
        self._watch(self._idle_s)
        return self._embedder

    def _release(self) -> int:
        embedder, self._embedder = self._embedder, None
        if embedder is None:
            return 0
        embedder.close()
        if self._shares_cores:
            with self._device.lock:
                self._device.batcher.cores, self._shares_cores = None, False
        return embedder.num_bytes

    def _watch(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        """In the timer's thread: give back what was idle long enough, else look again when it will be."""
        with self._turns:
            if self._is_closed or self._embedder is None:
                return
            left = self._used_s + self._idle_s - time.monotonic()
            if left > 0:
                self._watch(left)
            else:
                log.info("the context for embeddings was idle for %.0f s and was given back", self._idle_s)
                self._release()


def _groups(texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """The texts in order, some of them at a time."""
    group: list[Sequence[int]] = []
    num_tokens = 0
    for text in texts:
        group.append(text)
        num_tokens += len(text)
        if num_tokens >= GROUP_TOKENS:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group
