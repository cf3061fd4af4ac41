"""The loaded model's vocabulary: bytes to token ids and back. Knows no chat template beyond its bare source.

SentencePiece vocabularies put a space before every text they are given. A piece in the middle of a prompt must not get
one, so it is tokenized behind a guard byte whose tokens are dropped again.
"""

from __future__ import annotations

import ctypes
import re

import llama_cpp

from kvloom.engine.base import Vocabulary
from kvloom.engine.llamacpp.load import NativeModel
from kvloom.errors import EngineUnsupportedError

__all__ = ["LlamaCppVocabulary"]

_BPE = 2
_SPACE_ADDING = (1, 4)  # LLAMA_VOCAB_TYPE_SPM, LLAMA_VOCAB_TYPE_UGM
_GUARDS = (b"\n", b"\t", b"~")
"""Tried in turn: a guard that melts into the text's first token cannot be dropped."""
_BLOCK_BYTES = 1 << 18
"""Longer texts are tokenized in blocks: a native tokenizer may need stack or time beyond linear."""
_LONE_LINE_END = re.compile(rb"(?<=\S)\n(?=\S)")
_SPECIAL_IN_TEMPLATE = re.compile(r"<[^<>\s'\"]{1,48}>|\[/?[A-Z_]{1,32}\]")


class LlamaCppVocabulary(Vocabulary):
    """Reads the native vocabulary, which is immutable: safe to use from several threads once made."""

    def __init__(self, native: NativeModel) -> None:
        self._vocab = native.vocabulary
        self._size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        kind: int = llama_cpp.llama_vocab_type(self._vocab)
        if kind == 0 or self._size == 0:
            raise EngineUnsupportedError(f"{native.settings.path} carries no vocabulary")
        adds_space = native.metadata.text("tokenizer.ggml.add_space_prefix")
        self._is_spm = kind in _SPACE_ADDING
        self._needs_guard = self._is_spm and adds_space != "false"
        template = llama_cpp.llama_model_chat_template(native.model, None)
        self._template = template.decode("utf-8", "replace") if template else None
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._guard_tokens = {guard: self._tokenize(guard, parse_special=False) for guard in _GUARDS}

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_spm(self) -> bool:
        return self._is_spm

    @property
    def bos(self) -> int | None:
        token = int(llama_cpp.llama_vocab_bos(self._vocab))
        return token if token >= 0 and llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    @property
    def bos_text(self) -> str:
        return self._special_text(int(llama_cpp.llama_vocab_bos(self._vocab)))

    @property
    def eos_text(self) -> str:
        return self._special_text(int(llama_cpp.llama_vocab_eos(self._vocab)))

    @property
    def chat_template(self) -> str | None:
        return self._template

    def is_end(self, token: int) -> bool:
        return self._holds(token) and bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        return self._holds(token) and bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        tokens: list[int] = []
        for block in _blocks(text):
            tokens += self._tokenize_guarded(block, parse_special=parse_special)
        return tokens

    def tokenize_whole(self, text: bytes) -> list[int]:
        if len(text) <= _BLOCK_BYTES:
            return self._tokenize(text, parse_special=False, add_special=True)
        # A text of many blocks: what frames a text stands around nothing as well.
        frame = self._tokenize(b"", parse_special=False, add_special=True)
        num_before = sum(1 for token in frame[:1] if token == self.bos)
        return [*frame[:num_before], *self.tokenize(text, parse_special=False), *frame[num_before:]]

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        key = (token, special)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._token_bytes(token, special=special)
        return piece

    def sink_token(self) -> int:
        """The fixed token behind which chunks are computed alone.

        BOS where prompts start with it; else the first control token of the chat template (`<|im_start|>` for ChatML);
        else EOS; else token 0. The same for every load of one file, since entries depend on it.
        """
        if self.bos is not None:
            return self.bos
        for match in _SPECIAL_IN_TEMPLATE.finditer(self._template or ""):
            tokens = self._tokenize(match.group().encode(), parse_special=True)
            if len(tokens) == 1 and self.is_control(tokens[0]) and not self.is_end(tokens[0]):
                return tokens[0]
        return max(0, int(llama_cpp.llama_vocab_eos(self._vocab)))

    def _tokenize_guarded(self, text: bytes, *, parse_special: bool) -> list[int]:
        if not self._needs_guard or not text:
            return self._tokenize(text, parse_special=parse_special)
        for guard, head in self._guard_tokens.items():
            tokens = self._tokenize(guard + text, parse_special=parse_special)
            if tokens[: len(head)] == head:
                return tokens[len(head) :]
        return self._tokenize(text, parse_special=parse_special)

    def _tokenize(self, text: bytes, *, parse_special: bool, add_special: bool = False) -> list[int]:
        capacity = len(text) + 16
        for _ in range(2):
            buffer = (llama_cpp.llama_token * capacity)()
            count = llama_cpp.llama_tokenize(self._vocab, text, len(text), buffer, capacity, add_special, parse_special)
            if count >= 0:
                return list(buffer[:count])
            capacity = -count
        raise EngineUnsupportedError(f"llama.cpp cannot tokenize a text of {len(text):,} bytes")

    def _token_bytes(self, token: int, *, special: bool) -> bytes:
        if not self._holds(token):
            raise EngineUnsupportedError(f"token {token} is not in the vocabulary of {self._size} tokens")
        size = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length
        return b""

    def _special_text(self, token: int) -> str:
        return self.token_bytes(token, special=True).decode("utf-8", "replace") if self._holds(token) else ""

    def _holds(self, token: int) -> bool:
        return 0 <= token < self._size


def _blocks(text: bytes) -> list[bytes]:
    """The text cut into blocks of at most `_BLOCK_BYTES`, behind a line end where there is one, never in a character.

    The cuts depend on the bytes alone, so equal texts give equal ids. A line end between two other characters is a
    pre-token of its own to every BPE known, so that a cut behind it leaves the ids as they are.
    """
    blocks: list[bytes] = []
    start = 0
    while len(text) - start > _BLOCK_BYTES:
        stop = _cut(text, start, start + _BLOCK_BYTES)
        blocks.append(text[start:stop])
        start = stop
    blocks.append(text[start:])
    return blocks


def _cut(text: bytes, start: int, limit: int) -> int:
    lone = -1
    for match in _LONE_LINE_END.finditer(text, start, limit):
        lone = match.end()
    if lone > start:
        return lone
    line_end = text.rfind(b"\n", start, limit)
    if line_end > start:
        return line_end + 1
    while limit > start + 1 and text[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit
