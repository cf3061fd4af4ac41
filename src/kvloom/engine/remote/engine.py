# ruff: noqa: ARG002 - what cannot be told needs none of its arguments
"""The engine behind an endpoint, as the seam sees it: no cells, no KV, a vocabulary that only counts.

Its token ids are stand-ins: as many as the text has tokens, the same for the same text, and of no meaning. They carry
a text's size and identity through manifests, policies and the log; what is sent to the endpoint is text.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import NoReturn

from kvloom.engine.absent import AbsentEngine
from kvloom.engine.base import Capabilities, Vocabulary
from kvloom.engine.remote.base import Endpoint
from kvloom.errors import EngineUnsupportedError
from kvloom.types import KVLayout, KVType, ModelFingerprint, RopeSpec

MAX_SEQUENCES = 32
"""Nothing is held in them; the device's books want some."""

STAND_IN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For endpoints that do not show theirs: most templates put as many tokens around a message as this one."""
STAND_IN_MARKS = ("<|im_start|>", "<|im_end|>")
"""Words of it that are one token each."""

Counter = Callable[[str, bool], int]
"""Tokens of a text; True where the template wrote it."""

_ID_BITS = 0x3FFFFFFF
_NUM_HASHED = 8


def stand_in_ids(text: str, num_tokens: int) -> tuple[int, ...]:
    """`num_tokens` ids that stand for `text`: the first ones are its hash, the rest counts on from there."""
    words = struct.unpack("<8I", hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    hashed = tuple(word & _ID_BITS for word in words[: min(num_tokens, _NUM_HASHED)])
    start = words[-1] & (_ID_BITS >> 1)
    return (*hashed, *range(start, start + num_tokens - len(hashed)))


class CountingVocabulary(Vocabulary):
    """Gives every text as many ids as it has tokens by `count`. Ids cannot be turned back into text."""

    size = 0
    is_spm = False

    def __init__(self, count: Counter, template: str, bos_text: str = "", eos_text: str = "") -> None:
        self._count = count
        self._template = template
        self._bos_text, self._eos_text = bos_text, eos_text

    @property
    def bos(self) -> int | None:
        return 0 if self._bos_text else None

    @property
    def bos_text(self) -> str:
        return self._bos_text

    @property
    def eos_text(self) -> str:
        return self._eos_text

    @property
    def chat_template(self) -> str | None:
        return self._template

    def is_end(self, token: int) -> bool:
        return False

    def is_control(self, token: int) -> bool:
        return False

    def tokenize(self, text: bytes, *, parse_special: bool) -> list[int]:
        words = text.decode("utf-8", "replace")
        return list(stand_in_ids(words, self._count(words, parse_special) if words else 0))

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        return b""


class RemoteEngine(AbsentEngine):
    """Refuses whatever needs KV, saying so: the model runs behind `endpoint`, and its rows cannot be had."""

    def __init__(self, endpoint: Endpoint, vocabulary: Vocabulary, fingerprint: ModelFingerprint, window: int) -> None:
        facts = endpoint.facts
        self.endpoint = endpoint
        self.vocabulary = vocabulary
        self.fingerprint = fingerprint
        self.why_not = (
            f"the model runs behind {facts.server} at {endpoint.where}, whose KV cannot be read, written or moved: "
            "messages are managed, KV is the server's own business"
        )
        self.capabilities = Capabilities(
            can_move_kv=False, can_rotate=False, kv_types=(), max_sequences=MAX_SEQUENCES, prefill_quantum=1,
            why_not=self.why_not,
        )  # fmt: skip
        self.layout = KVLayout((), KVType.F16, KVType.F16)
        self.rope = RopeSpec(())
        self.num_cells = window
        self.train_context = facts.max_window
        self.uses_accelerator = False
        self.sink_token = 0

    def refuse(self, what: str) -> NoReturn:
        raise EngineUnsupportedError(f"{what} cannot be had: {self.why_not}")

    def resize(self, num_cells: int) -> None:
        """Another window, where the endpoint takes one."""
        if not self.endpoint.is_resizable:
            self.refuse("another window")
        self.endpoint.resize(num_cells)
        self.num_cells = num_cells

    def close(self) -> None:
        self.endpoint.close()
