"""What makes vectors of passages and questions where `recall.vectors` asks for it: the model's token table, or a
model2vec model in a folder. Knows no index and no conversation.

What both are worth, and why they are off by default: docs/decisions/libraries.md.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvloom.config import Settings
from kvloom.engine.base import Engine
from kvloom.errors import ModelError, UsageError
from kvloom.index import Embedder
from kvloom.model.token_table import TokenTable
from kvloom.types import F32Array

__all__ = ["Embedders", "StaticEmbedder", "TableEmbedder", "of_loom", "of_model"]

OFF, MODEL = "off", "model"
FOLDER = "vectors"
"""Of a home: what was measured of a model's table, some hundred kB a model."""
DIMENSIONS = 256
"""100,000 passages are 100 MB then; with 512, recall was the same within what chance gives."""
SAMPLE_ROWS = 20_000
"""Of the table, evenly spaced: enough to see its directions, and read in half a second."""
RARITY_POWER = 1.5
"""What a word of a question weighs by its rareness; measured, 2 was no better and 1 worse."""
_VERSION = "1"
"""Raised with every change of how these vectors are made."""


class Tokenize(Protocol):
    """Text to ids, as content."""

    def __call__(self, text: str) -> Sequence[int]: ...


class TableEmbedder(Embedder):
    """A text's vector: the sum of its tokens' rows in the model's table, each token once, over the table's first
    directions and scaled to the same spread in each (what a table says most of is how frequent a token is).

    A question's words count by how rare they are in the library. `name` holds the model and the directions.
    """

    def __init__(self, table: TokenTable, tokenize: Tokenize, fingerprint: str, folder: Path) -> None:
        self._table = table
        self._tokenize = tokenize
        self._centre, self._directions = _directions(table, folder / f"{fingerprint[:32]}.npy")
        digest = hashlib.sha256(self._centre.tobytes() + self._directions.tobytes()).hexdigest()
        self.name = f"table-{_VERSION}:{fingerprint[:16]}:{digest[:16]}"

    def embed(self, texts: Sequence[str]) -> F32Array:
        return np.stack([self._vector([(text, 1.0)]) for text in texts])

    def embed_question(self, question: str, words: Sequence[tuple[str, float]]) -> F32Array:
        # Of a name of several words its words stand beside it.
        weighed = [(f" {word}", weight**RARITY_POWER) for word, weight in words if " " not in word]
        return self._vector(weighed or [(question, 1.0)])

    def _vector(self, parts: Sequence[tuple[str, float]]) -> F32Array:
        weights: dict[int, float] = {}
        for text, weight in parts:
            for token in set(self._tokenize(text)):
                weights[token] = weights.get(token, 0.0) + weight
        if not weights:
            return np.zeros(self._directions.shape[1], np.float32)
        rows = self._table.rows(np.fromiter(weights, np.int64)) - self._centre
        found: F32Array = (np.fromiter(weights.values(), np.float32) @ rows) @ self._directions
        return found


class StaticEmbedder(Embedder):
    """A model2vec model from a folder, read and never fetched. Raises UsageError where it cannot be had."""

    least_similarity = 0.5
    """Of such models unrelated texts have about 0.1, near ones over 0.5; not measured here, no model was at hand."""

    def __init__(self, folder: Path) -> None:
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise UsageError(
                f"recall.vectors names the folder {folder}, and model2vec is not installed: "
                "pip install 'kvloom[vectors]', or set recall.vectors to model or off"
            ) from error
        if not folder.is_dir():
            raise UsageError(f"recall.vectors is {str(folder)!r}: neither off nor model, and no folder is there")
        try:
            self._model = StaticModel.from_pretrained(folder, force_download=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder} holds no model2vec model: {error}") from error
        self._lock = threading.Lock()
        self.name = f"model2vec-{_VERSION}:{_digest_of(folder)}"

    def embed(self, texts: Sequence[str]) -> F32Array:
        with self._lock:
            found = self._model.encode(list(texts), max_length=None, use_multiprocessing=False)
        return np.asarray(found, np.float32)

    def embed_question(
        self,
        question: str,
        words: Sequence[tuple[str, float]],  # noqa: ARG002 - such a model knows by itself what words weigh
    ) -> F32Array:
        vector: F32Array = self.embed([question])[0]
        return vector


class Embedders:
    """The embedder that the settings ask for, made at its first use. Thread-safe.

    `get` gives None where vectors are off, or the model has no file that holds a table (one behind an endpoint).
    """

    def __init__(self, wanted: str, make_of_model: Callable[[], Embedder | None]) -> None:
        self._wanted = wanted.strip()
        self._make_of_model = make_of_model
        self._lock = threading.Lock()
        self._made: Embedder | None = None
        self._is_made = False

    def get(self) -> Embedder | None:
        """Raises KvloomError where it is asked for and cannot be had; asked again, it is tried again."""
        with self._lock:
            if not self._is_made:
                self._made = self._make()
                self._is_made = True
            return self._made

    def _make(self) -> Embedder | None:
        if self._wanted == OFF:
            return None
        if self._wanted == MODEL:
            return self._make_of_model()
        return StaticEmbedder(Path(self._wanted).expanduser())


def of_loom(settings: Settings, engine: Engine, path: Path, home: Path) -> Embedders:
    """What `recall.vectors` asks for, with the model of a loom at `path`."""
    vocabulary = engine.vocabulary

    def tokenize(text: str) -> list[int]:
        # Not by the builder's tokenizer, which remembers texts: it has the conversation's to remember.
        return vocabulary.tokenize(text.encode(errors="replace"), parse_special=False)

    return Embedders(settings.recall.vectors, lambda: of_model(path, tokenize, str(engine.fingerprint), home))


def of_model(path: Path, tokenize: Tokenize, fingerprint: str, home: Path) -> Embedder | None:
    """Of a model's table; None where no file is there to read it from. Raises UsageError where it has none to use."""
    if not path.is_file():
        return None
    try:
        return TableEmbedder(TokenTable(path), tokenize, fingerprint, home / FOLDER)
    except ModelError as error:
        raise UsageError(f"recall.vectors is {MODEL!r}, and this model gives none: {error}") from error


def _directions(table: TokenTable, file: Path) -> tuple[F32Array, F32Array]:
    """The table's mean row, and its first directions, (width, dimensions), each scaled to a spread of 1.

    Measured once and kept: another machine's arithmetic gives other last digits, and vectors of one name must agree.
    """
    dimensions = min(DIMENSIONS, table.width)
    kept = _read(file, (1 + dimensions, table.width))
    if kept is None:
        step = max(1, table.num_tokens // SAMPLE_ROWS)
        rows = table.rows(np.arange(0, table.num_tokens, step)).astype(np.float64)
        rows = rows[np.isfinite(rows).all(axis=1)]
        centre = rows.mean(axis=0)
        spread, axes = np.linalg.eigh((rows - centre).T @ (rows - centre) / len(rows))
        first = np.argsort(-spread)[:dimensions]
        scaled = axes[:, first] / np.sqrt(np.maximum(spread[first], 1e-12))
        kept = np.vstack([centre, scaled.T]).astype(np.float32)
        _write(file, kept)
    return kept[0], np.ascontiguousarray(kept[1:].T)


def _read(file: Path, shape: tuple[int, int]) -> F32Array | None:
    """What is kept, where it is whole."""
    try:
        found: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_sound = found.shape == shape and found.dtype == np.float32 and bool(np.isfinite(found).all())
    return found if is_sound else None


def _write(file: Path, values: F32Array) -> None:
    """A home that cannot be written costs measuring again, and vectors of another name then."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".vectors-", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as sink:
                np.save(sink, values, allow_pickle=False)
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        return


def _digest_of(folder: Path) -> str:
    """Of all files of a model's folder: another model is another name."""
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as source:
            found.update(file.relative_to(folder).as_posix().encode() + hashlib.file_digest(source, "sha256").digest())
    return found.hexdigest()[:32]
