"""Vectors of a model's token table and of model2vec folders: what they are made of, how they are named, what fails."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kvloom.errors import UsageError
from kvloom.index import Embedder
from kvloom.model.token_table import TokenTable
from kvloom.session.embedders import DIMENSIONS, Embedders, StaticEmbedder, TableEmbedder, of_model
from kvloom.types import F32Array
from tests.tiny_gguf import TinyModel, write_tiny


def tokenize(text: str) -> list[int]:
    return [4 + ord(letter) % 97 for letter in text]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())


def table_embedder(model: Path, home: Path) -> TableEmbedder:
    return TableEmbedder(TokenTable(model), tokenize, "f" * 64, home)


def cosine(one: F32Array, other: F32Array) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_texts_of_the_same_tokens_are_nearest(model: Path, tmp_path: Path) -> None:
    embedder = table_embedder(model, tmp_path)
    abc, cba, other = embedder.embed(["abc abc", "cb a", "xyz"])
    assert abc.shape == (min(DIMENSIONS, TokenTable(model).width),)
    assert cosine(abc, cba) == pytest.approx(1.0, abs=1e-5)
    assert cosine(abc, other) < 0.9


def test_a_question_is_its_words_by_their_weight(model: Path, tmp_path: Path) -> None:
    embedder = table_embedder(model, tmp_path)
    abc, xyz = embedder.embed([" abc", " xyz"])
    heavy = embedder.embed_question("abc xyz", [("abc", 4.0), ("xyz", 0.1)])
    assert cosine(heavy, abc) > 0.9 > cosine(heavy, xyz)
    assert embedder.embed_question("abc", []).any()
    assert not embedder.embed_question("", []).any()


def test_what_was_measured_of_a_table_is_kept_and_names_the_vectors(model: Path, tmp_path: Path) -> None:
    first = table_embedder(model, tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    again = table_embedder(model, tmp_path)
    assert again.name == first.name
    assert kept.stat().st_mtime_ns == before
    np.save(kept, np.load(kept) * 2)
    assert table_embedder(model, tmp_path).name != first.name, "other directions give other vectors"


def test_what_was_kept_and_is_damaged_is_measured_again(model: Path, tmp_path: Path) -> None:
    first = table_embedder(model, tmp_path)
    (kept,) = tmp_path.iterdir()
    for damaged in (b"", b"no numbers", kept.read_bytes()[:-9]):
        kept.write_bytes(damaged)
        assert np.allclose(table_embedder(model, tmp_path).embed(["abc"]), first.embed(["abc"]), atol=1e-3)


def test_a_model_without_a_file_has_no_vectors_and_one_without_a_table_says_so(tmp_path: Path) -> None:
    assert of_model(tmp_path / "gone.gguf", tokenize, "f", tmp_path) is None
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(UsageError, match=r"recall\.vectors is 'model', and this model gives none"):
        of_model(tmp_path / "text.gguf", tokenize, "f", tmp_path)


def test_off_makes_nothing_and_what_failed_is_tried_again() -> None:
    calls: list[int] = []

    def make() -> Embedder | None:
        calls.append(1)
        if len(calls) == 1:
            raise UsageError("not yet")
        return None

    assert Embedders("off", make).get() is None
    assert not calls
    asked = Embedders("model", make)
    with pytest.raises(UsageError, match="not yet"):
        asked.get()
    assert asked.get() is None
    assert asked.get() is None
    assert len(calls) == 2


def test_without_model2vec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - as the real one has it
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if name == "model2vec":
            raise ImportError(name)
        return real(name, globals, locals, fromlist or (), level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'kvloom\[vectors\]'"):
        StaticEmbedder(tmp_path)


def test_a_model2vec_folder_gives_its_vectors(tmp_path: Path) -> None:
    model2vec = pytest.importorskip("model2vec", reason="an extra: kvloom[vectors]")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "car", "automobile", "bread"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vectors = np.array([[0, 0, 0], [1, 0.1, 0], [1, 0, 0.1], [0, 1, 1]], np.float32)
    folder = tmp_path / "static"
    model2vec.StaticModel(vectors, tokenizer, {}).save_pretrained(folder)
    embedder = StaticEmbedder(folder)
    car, automobile, bread = embedder.embed(["car", "automobile", "bread bread"])
    assert cosine(car, automobile) > 0.9 > cosine(car, bread)
    assert np.array_equal(embedder.embed_question("car", []), car)
    assert StaticEmbedder(folder).name == embedder.name
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert StaticEmbedder(folder).name != embedder.name


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    pytest.importorskip("model2vec", reason="an extra: kvloom[vectors]")
    with pytest.raises(UsageError, match="holds no model2vec model"):
        StaticEmbedder(tmp_path)
    with pytest.raises(UsageError, match="neither off nor model, and no folder is there"):
        StaticEmbedder(tmp_path / "gone")
