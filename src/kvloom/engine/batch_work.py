"""What threads want of the batcher, as it goes along: replies, prefills, errands. Knows ids and positions, no engine.

Each belongs to the thread that wants it and to the worker, which takes the next step of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from kvloom.engine.base import Logits, Run, Sampler
from kvloom.types import F32Array, SequenceId

__all__ = ["Chosen", "Errand", "Look", "Part", "Prefill", "TokenStream"]


@dataclass(frozen=True)
class Chosen:
    """A token that was sampled, and what its reply wanted to know of the logits it came from."""

    token: int
    seen: object = None


Look = Callable[[F32Array, int], object]
"""`look(logits (vocab,), token)`: what a reply wants to know of the logits, in the worker's thread."""


class TokenStream(Iterator[Chosen]):
    """The tokens of one reply as they are sampled; the last one may end the reply, and is not decoded then.

    Read by one thread. `close` is needed behind its end, too: only then the sequence is the caller's again.
    """

    def __init__(
        self, sequence: SequenceId, position: int, sampler: Sampler, max_tokens: int, look: Look | None
    ) -> None:
        self.sequence = sequence
        self.position = position
        """Where the next token will be decoded."""
        self.token = -1
        """Sampled, and not decoded yet."""
        self.num_left = max_tokens
        self.is_cancelled = False
        self._sampler = sampler
        self._look = look
        self._queue: SimpleQueue[Chosen | BaseException | None] = SimpleQueue()
        self.on_close: Callable[[TokenStream], None] = lambda _: None
        self._has_ended = False

    def sample(self, logits: F32Array, is_end: Callable[[int], bool]) -> bool:
        """Choose the next token and hand it out; whether it has to be decoded, since another one will follow."""
        token = self._sampler.sample(logits)
        self._queue.put(Chosen(token, None if self._look is None else self._look(logits, token)))
        self.token, self.num_left = token, self.num_left - 1
        return self.num_left > 0 and not is_end(token)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come."""
        self._queue.put(error)

    def __next__(self) -> Chosen:
        if self._has_ended:
            raise StopIteration
        found = self._queue.get()
        if isinstance(found, Chosen):
            return found
        self._has_ended = True
        if found is not None:
            raise found
        raise StopIteration

    def close(self) -> None:
        """No more steps for this reply. Waits for the one that runs. Idempotent."""
        self.on_close(self)


@dataclass(eq=False)
class Prefill:
    """Runs that a thread waits for; `run` and `offset` say how far they are."""

    runs: Sequence[Run]
    results: list[F32Array | None]
    due: int = 0
    run: int = 0
    offset: int = 0
    rows: list[F32Array] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    @property
    def num_left(self) -> int:
        """Rows that are not computed yet."""
        return sum(len(run.tokens) for run in self.runs[self.run :]) - self.offset

    def take(self, num_rows: int) -> list[Run]:
        """The next rows as runs of their own, at most `num_rows`; at most one run that wants all its logits."""
        taken: list[Run] = []
        index, offset = self.run, self.offset
        while num_rows > 0 and index < len(self.runs):
            run = self.runs[index]
            stop = min(len(run.tokens), offset + num_rows)
            is_last = stop == len(run.tokens)
            wants = run.logits if is_last or run.logits is Logits.ALL else Logits.NONE
            taken.append(Run(run.sequence, run.tokens[offset:stop], run.start + offset, wants))
            num_rows -= stop - offset
            index, offset = (index + 1, 0) if is_last else (index, stop)
        return taken

    def advance(self, taken: Sequence[Run], logits: Sequence[F32Array | None]) -> bool:
        """Note what was computed; whether nothing is left."""
        for run, found in zip(taken, logits, strict=True):
            whole = self.runs[self.run]
            self.offset += len(run.tokens)
            if found is not None:
                self.rows.append(found)
            if self.offset == len(whole.tokens):
                if self.rows:
                    is_all = whole.logits is Logits.ALL
                    self.results[self.run] = np.concatenate(self.rows) if is_all else self.rows[-1]
                self.run, self.offset, self.rows = self.run + 1, 0, []
        return self.run == len(self.runs)


class Errand:
    """What a thread wants to have run in the worker's."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._found: object = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    def run(self) -> None:
        try:
            self._found = self._call()
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whoever waits gets it
            self._error = error
        self._done.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._done.set()

    def result(self) -> object:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._found


@dataclass(frozen=True)
class Part:
    """What a step takes of a prefill."""

    prefill: Prefill
    runs: list[Run]

    @property
    def num_rows(self) -> int:
        return sum(len(run.tokens) for run in self.runs)
