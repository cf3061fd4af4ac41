"""One reply: options, the stream that a caller iterates, and the loop that samples and decodes.

Knows tokens and text deltas. What is placed before the reply, and what becomes of it, is the session's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from kvloom.engine.base import Vocabulary
from kvloom.engine.batch_work import Chosen
from kvloom.errors import CancelledError, SessionBusyError, UsageError
from kvloom.session.values import Delta, Reply
from kvloom.text.reasoning import ReasoningSplitter, ReasoningTags, ReplyText
from kvloom.text.stream import TextStream
from kvloom.types import SamplingParams


@dataclass(frozen=True)
class ReplyOptions:
    """What a caller may ask of one reply. `max_tokens` None: what the window leaves, capped by the reserve."""

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    keep_partial: bool = False
    must_find: bool = False

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """What was asked for; `defaults` where nothing was."""
        given = {item.name: getattr(self, item.name, None) for item in fields(SamplingParams)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})

    @staticmethod
    def make(stop: str | Sequence[str] | None, **values: object) -> ReplyOptions:
        """Options checked before any work. Raises UsageError naming the value and its range."""
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        options = ReplyOptions(stop=stops, **values)  # type: ignore[arg-type]
        if options.max_tokens is not None and options.max_tokens < 1:
            raise UsageError(f"max_tokens is {options.max_tokens}; it must be at least 1")
        if options.temperature is not None and not 0 <= options.temperature <= 100:
            raise UsageError(f"temperature is {options.temperature}; it must be between 0 and 100")
        for name, value in (("top_p", options.top_p), ("min_p", options.min_p)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be between 0 and 1")
        if any(not text for text in stops):
            raise UsageError("a stop string is empty; leave it out, or give the text to stop at")
        return options


class ReplyStream(Iterator[Delta]):
    """The deltas of one reply. `reply` is there once it has ended; closing it early cancels the turn.

    May be read and closed by any thread; it holds the session's turn from the first `next()` to its end.
    """

    def __init__(self, run: Generator[Delta, None, Reply]) -> None:
        self._run = run
        self._reply: Reply | None = None
        self._lock = threading.RLock()
        self._reader: int | None = None
        self._worker: int | None = None
        """The thread that is in a step now; another one that closes the reply is in one, too."""
        self._is_cut_off = False

    @property
    def has_begun(self) -> bool:
        return self._reader is not None

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> Delta:
        with self._at_work():
            if self._is_cut_off:
                raise CancelledError("the reply was closed by another thread; the context is as before the turn")
            self._reader = threading.get_ident()
            try:
                return next(self._run)
            except StopIteration as end:
                if end.value is not None:
                    self._reply = end.value
                raise StopIteration from None

    @property
    def reply(self) -> Reply:
        """The whole reply. Raises UsageError while the stream has not ended."""
        if self._reply is None:
            raise UsageError("the reply has not ended yet; iterate the stream to its end first")
        return self._reply

    def close(self) -> None:
        """Stop here. A reply that has not ended is taken back, the context is as before the turn.

        From another thread: waits for the running step. Raises SessionBusyError from inside a step (a callback).
        """
        with self._at_work():
            self._run.close()
            self._is_cut_off = self._reply is None and self._reader not in (None, threading.get_ident())

    def check_not_inside(self) -> None:
        """Raises SessionBusyError from inside a step (a callback)."""
        if self._worker == threading.get_ident():
            raise SessionBusyError("the reply is at work in this thread; call cancel() from a callback instead")

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.check_not_inside()
        with self._lock:
            self._worker = threading.get_ident()
            try:
                yield
            finally:
                self._worker = None

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class Sampled:
    """What came of the loop: ids as sampled (no end token), how many of them may stay in the cache, and the text."""

    tokens: list[int]
    num_kept: int
    answer: str
    reasoning: str
    finish_reason: str


@dataclass(frozen=True)
class Loop:
    """Everything that makes text of tokens as they are chosen: at most `max_tokens`, an end token among them."""

    vocabulary: Vocabulary
    tags: ReasoningTags
    max_tokens: int
    options: ReplyOptions
    is_cancelled: Callable[[], bool]
    on_first: Callable[[], None]

    def run(self, chosen: Iterator[Chosen]) -> Generator[Delta, None, Sampled]:
        """Yield deltas until an end token, a stop string, `max_tokens` or a cancel.

        Raises CancelledError unless the options keep the partial reply.
        """
        text = TextStream(self.vocabulary, self.options.stop, self._tag_tokens())
        reasoning = ReasoningSplitter(self.tags)
        out = Sampled([], 0, "", "", "length")
        while len(out.tokens) < self.max_tokens:
            if self.is_cancelled():
                if not self.options.keep_partial or not out.tokens:
                    raise CancelledError("the reply was cancelled; the context is as before the turn")
                out.finish_reason = "cancelled"
                break
            token = next(chosen).token
            if not out.tokens:
                self.on_first()
            if self.vocabulary.is_end(token):
                out.finish_reason = "stop"
                break
            out.tokens.append(token)
            yield from _note(out, reasoning.push(text.push(token)))
            if text.stopped_by:
                out.finish_reason = "stop"
                break
        out.num_kept = len(out.tokens)
        yield from _note(out, reasoning.push(text.finish()))
        yield from _note(out, reasoning.finish())
        if text.stopped_by:
            self._cut_at_stop(out, text)
        return out

    def _tag_tokens(self) -> set[int]:
        """Reasoning tags that are control tokens of the vocabulary: their names are text to us."""
        found = set()
        for tag in (self.tags.opening, self.tags.closing):
            ids = self.vocabulary.tokenize(tag.encode(), parse_special=True)
            if len(ids) == 1:
                found.add(ids[0])
        return found

    def _cut_at_stop(self, out: Sampled, text: TextStream) -> None:
        """Leave in the context exactly the text before the stop string; a token that spans it is split."""
        kept = text.kept_tokens()
        said = b"".join(self.vocabulary.token_bytes(token, special=True) for token in kept)
        rest = text.text.encode()[len(said) :]
        out.tokens = [*kept, *self.vocabulary.tokenize(rest, parse_special=False)] if rest else list(kept)
        out.num_kept = len(kept)


def _note(out: Sampled, said: ReplyText) -> Generator[Delta, None, None]:
    """Add to the reply and hand out what has become clear."""
    if said.reasoning:
        out.reasoning += said.reasoning
        yield Delta(said.reasoning, is_reasoning=True)
    if said.answer:
        out.answer += said.answer
        yield Delta(said.answer)
