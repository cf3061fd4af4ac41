"""Bytes to ids and back, for BPE and SentencePiece."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.engine.llamacpp.vocab import LlamaCppVocabulary, _blocks
from kvloom.types import ModelFingerprint
from tests.tiny_gguf import TinyModel, write_tiny

ENGINES: dict[str, LlamaCppEngine] = {}


@pytest.fixture(scope="module", autouse=True)
def _engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("vocab")
    for kind in ("bpe", "spm"):
        path = write_tiny(folder / f"{kind}.gguf", TinyModel(tokenizer=kind))
        ENGINES[kind] = LlamaCppEngine(LoadSettings(path, 256, num_threads=1), ModelFingerprint("0" * 64))
    yield
    for engine in ENGINES.values():
        engine.close()
    ENGINES.clear()


def vocabulary(kind: str) -> LlamaCppVocabulary:
    return ENGINES[kind].vocabulary


def text_of(vocab: LlamaCppVocabulary, tokens: list[int]) -> bytes:
    return b"".join(vocab.token_bytes(token, special=True) for token in tokens)


@pytest.mark.parametrize("kind", ["bpe", "spm"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_a_text_comes_back_byte_for_byte(kind: str, text: str) -> None:
    vocab = vocabulary(kind)
    data = text.encode("utf-8", "ignore")
    assert text_of(vocab, vocab.tokenize(data, parse_special=False)) == data


@pytest.mark.parametrize("text", [b"the", b" the", b"\nthe", b"\n\nthe", b"\tx", b"~", b" ", b""])
def test_no_space_is_put_before_a_piece(text: bytes) -> None:
    vocab = vocabulary("spm")
    assert vocab.is_spm
    assert text_of(vocab, vocab.tokenize(text, parse_special=False)) == text


def test_equal_texts_give_equal_ids_wherever_they_stand() -> None:
    vocab = vocabulary("spm")
    alone = vocab.tokenize(b"the end", parse_special=False)
    assert vocab.tokenize(b"<|im_start|>the end", parse_special=True)[1:] != []
    assert alone == vocab.tokenize(b"the end", parse_special=False)
    assert vocab.token_bytes(alone[0], special=True) == b"the"


def test_bos_is_known_but_never_added() -> None:
    spm, bpe = vocabulary("spm"), vocabulary("bpe")
    assert spm.bos == 1
    assert spm.bos_text == "<s>"
    assert spm.eos_text == "</s>"
    assert bpe.bos is None
    assert bpe.bos_text == "<|endoftext|>"
    assert 1 not in spm.tokenize(b"a", parse_special=False)
    assert ENGINES["spm"].sink_token == 1


@given(st.binary(max_size=3000), st.integers(8, 400))
def test_blocks_are_the_text_cut_in_no_character(data: bytes, size: int) -> None:
    text = data.decode("utf-8", "ignore").encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvloom.engine.llamacpp.vocab._BLOCK_BYTES", size)
        blocks = _blocks(text)
    assert b"".join(blocks) == text
    assert all(len(block) <= size for block in blocks)
    for block in blocks:
        block.decode()


def test_a_long_text_is_tokenized_as_it_would_be_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = vocabulary("bpe")
    text = b"import re\ndef the_thing(x):\n    return x + 1\n\n\nclass In:\n\t pass  \nthe end\n" * 300
    whole = vocab.tokenize(text, parse_special=False)
    for size in (100, 333, 1000):
        monkeypatch.setattr("kvloom.engine.llamacpp.vocab._BLOCK_BYTES", size)
        assert vocab.tokenize(text, parse_special=False) == whole


def test_one_word_of_a_megabyte_does_not_break_the_tokenizer() -> None:
    for kind in ("bpe", "spm"):
        tokens = vocabulary(kind).tokenize(b"a" * 1_000_000, parse_special=False)
        assert text_of(vocabulary(kind), tokens) == b"a" * 1_000_000
