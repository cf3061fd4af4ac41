"""Computes passages ahead of any question, each alone, and stores them. Knows no conversation and no index."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvloom.context.manifest import Manifest, Tokens
from kvloom.context.placing import Passage, with_passages
from kvloom.errors import CancelledError, EngineUnsupportedError
from kvloom.index import StoredPassage
from kvloom.session.passage_entries import PassageEntries
from kvloom.session.values import Progress, ProgressCallback
from kvloom.types import ALONE, EntryId, Fidelity, SessionId

if TYPE_CHECKING:
    from kvloom.session.loom import Loom

OWNER = SessionId("precompute")
BATCH_SHARE = 4
"""A batch takes this part of the window: sessions that are open keep what they have on the device."""
NAMED_AT_ONCE = 256
"""Passages whose names are looked up together: few enough to hold their texts."""
_SAMPLE = "The bell of the chapel rings.\n\n" * 200
"""Longer than one part of a chunk: where parts are cut differently, its entries are others."""


@dataclass(frozen=True)
class Precomputed:
    """What was done. A stopped run keeps what it had stored, and the next goes on behind it."""

    num_passages: int
    num_computed: int
    num_known: int
    computed_tokens: int
    is_complete: bool = True
    num_too_long: int = 0
    """Passed over, since the window cannot hold them: no question can get them either."""


def precompute(
    loom: Loom,
    passages: Sequence[StoredPassage],
    progress: ProgressCallback | None,
    is_cancelled: Callable[[], bool],
    max_tokens: int | None = None,
    on_computed: Callable[[int], None] = lambda _: None,
) -> Precomputed:
    """What is stored already is passed over without being tokenized, and what the window cannot hold without being
    computed. Raises EngineUnsupportedError where KV that was computed alone is of no use.

    `max_tokens`: stop before more would be computed; a first passage that is longer alone is computed all the same.
    `on_computed` is told the tokens of each batch that were computed and are kept, of one that was broken off, too.
    """
    capabilities = loom.engine.capabilities
    if not (capabilities.can_rotate and capabilities.can_move_kv):
        raise EngineUnsupportedError(
            f"{loom.model_name} cannot place KV that was computed ahead ({capabilities.why_not}): its libraries are "
            "searched all the same, and their passages are computed with each question"
        )
    unique = list({passage.id: passage for passage in passages}.values())
    entries = PassageEntries(loom._database, _setting(loom))
    num_done = num_computed = num_too_long = num_tokens = 0

    def so_far(*, is_complete: bool) -> Precomputed:
        num_known = num_done - num_computed - num_too_long
        return Precomputed(len(unique), num_computed, num_known, num_tokens, is_complete, num_too_long)

    for passed, batch in _batches(loom, unique, entries, max_tokens):
        missing = [one for one in batch if not _is_stored(loom, one[0])]
        if is_cancelled() or (num_computed and _is_over(max_tokens, num_tokens, missing)):
            return so_far(is_complete=False)
        if missing:
            is_stopped = False
            try:
                _compute(loom, missing, is_cancelled)
            except CancelledError:
                is_stopped = True
            finally:  # whatever ended it: what was computed until then is kept
                kept = sum(passage.num_tokens for passage, _ in missing if _is_stored(loom, passage))
                num_tokens += kept
                on_computed(kept)
            if is_stopped:
                return so_far(is_complete=False)
        entries.add((passage.ref, passage.name, _entries(loom, passage)) for passage, _ in batch)
        num_done += passed.num_known + passed.num_too_long + len(batch)
        num_too_long += passed.num_too_long
        num_computed += len(missing)
        if progress is not None:
            progress(Progress("computing passages", num_done, len(unique), "passages"))
    loom.flush()
    return so_far(is_complete=True)


_Named = tuple[Passage, str]
"""A passage as it stands in a prompt, and its text."""


@dataclass
class _Passed:
    """How many passages before a batch need nothing, or can get nothing."""

    num_known: int = 0
    num_too_long: int = 0


def _is_over(max_tokens: int | None, num_tokens: int, missing: Sequence[_Named]) -> bool:
    return max_tokens is not None and num_tokens + sum(one.num_tokens for one, _ in missing) > max_tokens


def _batches(
    loom: Loom, passages: Sequence[StoredPassage], entries: PassageEntries, max_tokens: int | None
) -> Iterator[tuple[_Passed, list[_Named]]]:
    """Passages that stand on the device together, with what was passed over before them."""
    window = min(loom.window, loom.pool.window)
    longest = window - _bare(loom).num_tokens
    room = max(1, window // BATCH_SHARE)
    room = room if max_tokens is None else min(room, max_tokens)
    batch: list[_Named] = []
    num_tokens, passed = 0, _Passed()
    for one in _named(loom, passages, entries):
        if one is None:
            passed.num_known += 1
            continue
        if one[0].num_tokens > longest:
            passed.num_too_long += 1
            continue
        if batch and num_tokens + one[0].num_tokens > room:
            yield passed, batch
            batch, num_tokens, passed = [], 0, _Passed()
        batch.append(one)
        num_tokens += one[0].num_tokens
    if batch or passed != _Passed():
        yield passed, batch


def _named(loom: Loom, passages: Sequence[StoredPassage], entries: PassageEntries) -> Iterator[_Named | None]:
    """Each passage with its tokens, or None where its entries are known and stored: those are not tokenized again."""
    shelf = loom.shelf
    for start in range(0, len(passages), NAMED_AT_ONCE):
        some = passages[start : start + NAMED_AT_ONCE]
        names = shelf.passage_names((one.id, one.document, (one.first_line, one.last_line)) for one in some)
        known = entries.of(names)
        for one in some:
            name = names[one.id]
            if one.id in known and all(map(loom.store.contains, known[one.id])):
                yield None
            else:
                yield Passage(one.id, name, shelf.passage_parts(one.id, name, one.text)), one.text


def _setting(loom: Loom) -> str:
    """What entries' ids depend on beside a passage and its name: the model, the types of its KV, how texts are cut."""
    parts = loom.builder.chunk_pieces("sample", _SAMPLE)
    ids = [loom.composer.entry_id(Tokens(part.tokens), ALONE) for part in parts]
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()


def _entries(loom: Loom, passage: Passage) -> list[EntryId]:
    return [loom.composer.entry_id(run, ALONE) for run in passage.parts]


def _is_stored(loom: Loom, passage: Passage) -> bool:
    return all(map(loom.store.contains, _entries(loom, passage)))


def _bare(loom: Loom) -> Manifest:
    """What passages stand behind while they are computed."""
    return Manifest(fidelity=Fidelity.SPLICE, model=loom.engine.fingerprint).with_head(loom.prompts.head(""), "")


def _compute(loom: Loom, named: Iterable[_Named], is_cancelled: Callable[[], bool]) -> None:
    loom.guard.check()
    passages = []
    for passage, text in named:
        loom.shelf.add_passage(passage.ref, passage.name, text)
        passages.append(passage)
    runner = loom.runner(OWNER, _Asked(is_cancelled))
    try:
        runner.warm(with_passages(_bare(loom), passages), None)
    finally:
        runner.close()


class _Asked(threading.Event):
    """An event that is set as soon as a callback says so: the engine's steps ask it between two native calls."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        super().__init__()
        self._is_cancelled = is_cancelled

    def is_set(self) -> bool:
        return super().is_set() or self._is_cancelled()
