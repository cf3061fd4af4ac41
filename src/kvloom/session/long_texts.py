"""Texts longer than the window, with the loaded model: a pass of windows over one, one summary of many.

Joins the room that shortens texts with a loom, the home's results and the reader of files. Nothing of it is part of a
conversation: each prompt stands alone, and its reply is kept by what it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvloom.errors import ContentError, UsageError
from kvloom.read import Document, Extract, ReadLimits, Skipped, extract_plain, read
from kvloom.reduce.asking import MemoryResults, Results, TextModel
from kvloom.reduce.summarize import Watch
from kvloom.reduce.tree import DEFAULT_WORDS, Node, TextSource, TreeSummary, summarize_tree
from kvloom.reduce.window_answers import MAX_REPLY_TOKENS, Combine, WindowAnswers, WindowPass
from kvloom.reduce.window_answers import ask_windows as ask_each_window
from kvloom.session.completion import SYSTEM, Completer
from kvloom.session.results import StoredResults
from kvloom.session.values import Progress, ProgressCallback
from kvloom.text.splitter import SplitSizes, split

__all__ = [
    "MAX_REPLY_TOKENS",
    "FilesRead",
    "NamedText",
    "Node",
    "TreeSummary",
    "WindowAnswers",
    "ask_windows",
    "read_files",
    "read_input",
    "split_by_content",
    "summarize",
]

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

_ESTIMATE_SHARE = 0.8
"""Of a room in tokens that is filled by estimate: few texts count so much more than that."""
_LEAST_SHARE = 3.5
"""A part has at least one in so many of the most: borders are then known by what stands near them."""
_MIN_SPLIT_TOKENS = 64
_MAX_REASONS = 5
"""In one message; a folder may hold thousands of files that are no text."""
_SAMPLING = "greedy"
"""How `Completer` draws; another way is to find no earlier reply."""


class NamedText(Protocol):
    """A document: what the reader of files gives, or anything with a name and a text."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...


Texts = str | Mapping[str, str] | Iterable[NamedText]
"""One text, texts by their names, or documents."""


@dataclass(frozen=True)
class FilesRead:
    """The documents that files hold, and what gave none, with the reason."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def summarize(
    texts: Texts,
    model: Loom | TextModel,
    *,
    words: int = DEFAULT_WORDS,
    results: Results | None = None,
    progress: ProgressCallback | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> TreeSummary:
    """One summary of texts of any length in at most `words` words, with the tree of summaries that it was made of.

    `model`: a loom, or your own function as a TextModel. `results`: where replies are kept; the loom's home, or for a
    TextModel nowhere. What was asked before, in a run that was interrupted or before an edit, is not asked again.
    Raises UsageError where there is nothing to summarize or the window is too small, CancelledError between two steps.
    """
    watch = _watch("summarizing", "parts", progress, is_cancelled)
    sources = _sources(texts)
    with _model(model, SYSTEM, is_cancelled) as found, _results(model, results) as kept:
        return summarize_tree(sources, found, split_by_content, words=words, results=kept, watch=watch)


def ask_windows(  # noqa: PLR0913 - a public function: each is one keyword of its own
    text: str,
    prompt: str,
    model: Loom | TextModel,
    *,
    size: int | None = None,
    overlap: float = 0.0,
    combine: Combine | str = Combine.LIST,
    max_tokens: int | None = None,
    results: Results | None = None,
    progress: ProgressCallback | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> WindowAnswers:
    """The same prompt to every window of a text, and the replies combined: "list", or "answer" for one of them all.

    `size`: tokens of a window, counted by the model; None takes what it has room for. `max_tokens`: of each reply.
    `model` and `results` as for `summarize`. Raises UsageError for windows that cannot be laid, ContextOverflowError
    for windows that do not fit the model's, before anything is computed; CancelledError between two steps.
    """
    limit = MAX_REPLY_TOKENS if max_tokens is None else max_tokens
    wanted = WindowPass(prompt, size, overlap, _combine(combine), limit)
    watch = _watch("asking", "windows", progress, is_cancelled)
    laying = _watch("laying windows", "characters", progress, is_cancelled)
    system = "" if isinstance(model, TextModel) else model.settings.system
    with _model(model, system, is_cancelled) as found, _results(model, results) as kept:
        return ask_each_window(text, wanted, found, kept, watch, laying)


def read_input(data: bytes, name: str, limits: ReadLimits | None = None) -> Extract:
    """The text of bytes that came from elsewhere, read as a text file is. Raises ContentError, with what to do."""
    return extract_plain(data, name, limits)


def read_files(paths: Sequence[Path], limits: ReadLimits | None = None) -> FilesRead:
    """What is in files and folders. Raises ContentError where none of them gives a text, with the reasons."""
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for found in read(paths, limits):
        if isinstance(found, Document):
            documents.append(found)
        elif isinstance(found, Skipped):
            skipped.append(found)
    if not documents:
        reasons = "; ".join(f"{one.path} {one.why}" for one in skipped[:_MAX_REASONS])
        more = f"; and {len(skipped) - _MAX_REASONS} more" if len(skipped) > _MAX_REASONS else ""
        raise ContentError(f"{reasons}{more}" if skipped else "no text was found: the folder is empty")
    return FilesRead(tuple(documents), tuple(skipped))


def split_by_content(text: str, max_tokens: int) -> tuple[str, ...]:
    """Parts whose borders an edit elsewhere does not move."""
    whole = int(max_tokens * _ESTIMATE_SHARE)
    if whole < _MIN_SPLIT_TOKENS:
        return (text,)
    return split(text, SplitSizes(whole, int(whole / _LEAST_SHARE)))


# -- inside -----------------------------------------------------------------------------------------------------------


class _Ending:
    """Nobody is waited for; the caller may end it."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self._is_cancelled = is_cancelled

    def is_interrupted(self) -> bool:
        return self._is_cancelled()

    def wait(self) -> bool:
        return not self._is_cancelled()


@contextmanager
def _model(model: Loom | TextModel, system: str, is_cancelled: Callable[[], bool]) -> Iterator[TextModel]:
    if isinstance(model, TextModel):
        yield model
        return
    loom = model
    completer = Completer(loom, _Ending(is_cancelled), system)

    def complete(prompt: str, max_tokens: int) -> str:
        loom.guard.check()
        with loom.monitor.busy():
            return completer(prompt, max_tokens)

    try:
        window = min(loom.window, loom.pool.window) - completer.num_overhead_tokens
        if not loom.counts_exactly:
            window = int(window * _ESTIMATE_SHARE)
        yield TextModel(_name(loom, system), complete, loom.count, window)
    finally:
        completer.close()


def _name(loom: Loom, system: str) -> str:
    """What decides a reply beside the prompt."""
    kv_types = [loom.settings.k_type.value, loom.settings.v_type.value]
    parts = [loom.engine.fingerprint, kv_types, loom.settings.system, system, _SAMPLING]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _results(model: Loom | TextModel, given: Results | None) -> Iterator[Results]:
    if given is not None:
        yield given
    elif isinstance(model, TextModel):
        yield MemoryResults()
    else:
        with StoredResults(model.home) as stored:
            yield stored


def _sources(texts: Texts) -> list[TextSource]:
    """Raises UsageError for what is no text or none with a name."""
    if isinstance(texts, str):
        return [TextSource("text", texts)]
    try:
        if isinstance(texts, Mapping):
            found = [TextSource(name, text) for name, text in texts.items()]
        else:
            found = [TextSource(one.name, one.text) for one in texts]
    except (AttributeError, TypeError) as exc:
        raise _no_texts(texts) from exc
    if not all(_is_str(part) for one in found for part in (one.name, one.text)):
        raise _no_texts(texts)
    return found


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _no_texts(given: object) -> UsageError:
    return UsageError(
        "what is summarized is one text, a mapping of names to texts, or documents that have a name and a text; "
        f"got {type(given).__name__}"
    )


def _combine(wanted: Combine | str) -> Combine:
    try:
        return Combine(wanted)
    except ValueError as exc:
        known = ", ".join(one.value for one in Combine)
        raise UsageError(f"there is no way to combine replies by {wanted!r}; choose one of {known}") from exc


def _watch(task: str, unit: str, progress: ProgressCallback | None, is_cancelled: Callable[[], bool]) -> Watch:
    num_known = 0

    def know(number: int) -> None:
        nonlocal num_known
        num_known = number

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(task, done, total, unit, num_known))

    return Watch(report, is_cancelled, know)
