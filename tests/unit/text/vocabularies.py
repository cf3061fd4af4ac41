"""Small, real vocabularies: longest match over a lexicon, bytes underneath, special tokens beside. No model needed.

And those of real models, out of their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import llama_cpp

from kvloom.engine.base import Vocabulary
from kvloom.engine.llamacpp.load import NativeModel
from kvloom.engine.llamacpp.vocab import LlamaCppVocabulary

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>")
_LEXICON = (
    b"\n\n", b" the", b" a", b"the", b"user", b"system", b"assistant", b"file", b"</", b"name", b'">\n', b"def ",
    b"return", b"    ", b" is", b"ing", b"er", b"in", b"\nuser", b"User", b": ", b"<tool_call>", b"[INST]",
)  # fmt: skip


class LexiconVocabulary(Vocabulary):
    """BPE-like by default; `is_spm` puts a space in front of every text run, as SentencePiece does."""

    def __init__(
        self,
        template: str | None = None,
        *,
        is_spm: bool = False,
        has_bos: bool = False,
        specials: tuple[str, ...] = SPECIALS,
    ) -> None:
        self._template, self._is_spm, self._has_bos = template, is_spm, has_bos
        self._specials = specials
        self._words = [*(bytes([b]) for b in range(256)), *_LEXICON]
        self._ids = {word: i for i, word in enumerate(self._words)}
        self._longest = max(map(len, self._words))
        self._pattern = re.compile(b"(" + b"|".join(re.escape(s.encode()) for s in specials or ("\x00none",)) + b")")

    @property
    def size(self) -> int:
        return len(self._words) + len(self._specials)

    @property
    def is_spm(self) -> bool:
        return self._is_spm

    @property
    def bos(self) -> int | None:
        return self.special("<s>") if self._has_bos else None

    @property
    def bos_text(self) -> str:
        return "<s>"

    @property
    def eos_text(self) -> str:
        return "</s>"

    @property
    def chat_template(self) -> str | None:
        return self._template

    def special(self, name: str) -> int:
        return len(self._words) + self._specials.index(name)

    def is_end(self, token: int) -> bool:
        return self.is_control(token) and self._specials[token - len(self._words)] in ("</s>", "<|im_end|>")

    def is_control(self, token: int) -> bool:
        return token >= len(self._words)

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        ids: list[int] = []
        runs = self._pattern.split(text) if parse_special else [text]
        for run in runs:
            if parse_special and run.decode("utf-8", "replace") in self._specials:
                ids.append(self.special(run.decode()))
            elif run:
                ids += self._match(b" " + run if self._is_spm else run)
        return ids

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        if self.is_control(token):
            return self._specials[token - len(self._words)].encode() if special else b""
        return self._words[token]

    def _match(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            size = next(n for n in range(min(self._longest, len(text) - at), 0, -1) if text[at : at + n] in self._ids)
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids


@contextmanager
def real_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """A real model's vocabulary, without its weights."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    native = SimpleNamespace(
        vocabulary=llama_cpp.llama_model_get_vocab(model.model),
        model=model.model,
        metadata=SimpleNamespace(text=model.metadata.get),
        settings=SimpleNamespace(path=path),
    )
    yield LlamaCppVocabulary(cast("NativeModel", native))
    model.close()
