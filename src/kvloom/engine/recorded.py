# ruff: noqa: ARG002 - what cannot be told needs none of its arguments
"""What an engine said of itself when its model was loaded, as a value that is kept, and an engine that says it again.

The vocabulary answers what it was asked then; whatever else is asked of it, or computed, needs the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from kvloom.engine.absent import AbsentEngine
from kvloom.engine.base import Capabilities, Engine, Vocabulary
from kvloom.errors import EngineUnsupportedError
from kvloom.types import KVLayout, ModelFingerprint, RopeSpec

__all__ = ["EngineRecord", "ModelNeededError", "RecordedEngine", "record_engine"]


class ModelNeededError(EngineUnsupportedError):
    """What was asked for cannot be had without loading the model. Whoever opened it so loads it, and asks again."""


@dataclass(frozen=True)
class VocabularyRecord:
    """A vocabulary's constants and answers: `tokenized` as (text, parse_special, ids), `spelled` as (id, special,
    bytes)."""

    size: int
    is_spm: bool
    bos: int | None
    bos_text: str
    eos_text: str
    chat_template: str | None
    tokenized: tuple[tuple[bytes, bool, tuple[int, ...]], ...]
    spelled: tuple[tuple[int, bool, bytes], ...]


@dataclass(frozen=True)
class EngineRecord:
    """All that is told of a loaded model without computing anything. `name`: of the engine."""

    name: str
    fingerprint: ModelFingerprint
    layout: KVLayout
    rope: RopeSpec
    capabilities: Capabilities
    train_context: int
    uses_accelerator: bool
    sink_token: int
    vocabulary: VocabularyRecord


def record_engine(engine: Engine, name: str, ask: Callable[[Vocabulary], object]) -> EngineRecord:
    """A record of the engine; `ask` puts the questions to its vocabulary that will be put to the record's."""
    listener = _Listener(engine.vocabulary)
    ask(listener)
    return EngineRecord(
        name, engine.fingerprint, engine.layout, engine.rope, engine.capabilities, engine.train_context,
        engine.uses_accelerator, engine.sink_token, listener.record(),
    )  # fmt: skip


class _Listener(Vocabulary):
    """Hands questions on and notes the answers."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenized: dict[tuple[bytes, bool], tuple[int, ...]] = {}
        self._spelled: dict[tuple[int, bool], bytes] = {}

    def record(self) -> VocabularyRecord:
        return VocabularyRecord(
            self.size, self.is_spm, self.bos, self.bos_text, self.eos_text, self.chat_template,
            tuple((*key, ids) for key, ids in self._tokenized.items()),
            tuple((*key, text) for key, text in self._spelled.items()),
        )  # fmt: skip

    @property
    def size(self) -> int:
        return self._vocabulary.size

    @property
    def is_spm(self) -> bool:
        return self._vocabulary.is_spm

    @property
    def bos(self) -> int | None:
        return self._vocabulary.bos

    @property
    def bos_text(self) -> str:
        return self._vocabulary.bos_text

    @property
    def eos_text(self) -> str:
        return self._vocabulary.eos_text

    @property
    def chat_template(self) -> str | None:
        return self._vocabulary.chat_template

    def is_end(self, token: int) -> bool:
        return self._vocabulary.is_end(token)

    def is_control(self, token: int) -> bool:
        return self._vocabulary.is_control(token)

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        found = self._vocabulary.tokenize(text, parse_special=parse_special)
        self._tokenized[text, parse_special] = tuple(found)
        return found

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        found = self._vocabulary.token_bytes(token, special=special)
        self._spelled[token, special] = found
        return found


class _RecordedVocabulary(Vocabulary):
    """Says again what was said. Raises ModelNeededError for what was not asked then."""

    def __init__(self, record: VocabularyRecord) -> None:
        self._record = record
        self._tokenized = {(text, special): ids for text, special, ids in record.tokenized}
        self._spelled = {(token, special): text for token, special, text in record.spelled}

    @property
    def size(self) -> int:
        return self._record.size

    @property
    def is_spm(self) -> bool:
        return self._record.is_spm

    @property
    def bos(self) -> int | None:
        return self._record.bos

    @property
    def bos_text(self) -> str:
        return self._record.bos_text

    @property
    def eos_text(self) -> str:
        return self._record.eos_text

    @property
    def chat_template(self) -> str | None:
        return self._record.chat_template

    def is_end(self, token: int) -> bool:
        raise _needed("the end of a reply")

    def is_control(self, token: int) -> bool:
        raise _needed("the kind of a token")

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        known = self._tokenized.get((text, parse_special))
        if known is None:
            raise _needed("token ids")
        return list(known)

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        known = self._spelled.get((token, special))
        if known is None:
            raise _needed("the text of a token")
        return known


class RecordedEngine(AbsentEngine):
    """A model that is not loaded, with `num_cells` as it would have."""

    def __init__(self, record: EngineRecord, num_cells: int) -> None:
        self.record = record
        self.fingerprint, self.layout, self.rope = record.fingerprint, record.layout, record.rope
        self.capabilities = record.capabilities
        self.train_context, self.sink_token = record.train_context, record.sink_token
        self.uses_accelerator = record.uses_accelerator
        self.vocabulary: Vocabulary = _RecordedVocabulary(record.vocabulary)
        self.num_cells = num_cells

    def refuse(self, what: str) -> NoReturn:
        raise _needed(what)


def _needed(what: str) -> ModelNeededError:
    return ModelNeededError(f"{what} cannot be had here: the model is not loaded")
