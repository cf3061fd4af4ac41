"""Counts tokens: exactly where a vocabulary or a counting endpoint is there, else by an estimate that says so.

Knows no templates. Exact counts are cached by content, so that asking again costs a hash.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

from kvloom.errors import EngineError
from kvloom.text.estimate import Estimator, TokenCount, estimate_tokens
from kvloom.text.tokenizer import PieceTokenizer

__all__ = ["TokenCount", "TokenCounter", "estimate_tokens"]

_MAX_CACHED_COUNTS = 32_768
"""About 5 MB: every message of some hundred long conversations."""
_KEY_BYTES = 16
"""Of a text's hash: by chance no two texts of one process share it."""


class TokenCounter:
    """Counts for one model. Safe for several threads where `exact` is.

    `exact`: the model's tokenizer, or a function that counts elsewhere (a provider's endpoint); it may raise
    EngineError, and is then stood in for by `estimator`. What it counts teaches the estimator, so that a counter whose
    endpoint goes away still knows its model.
    """

    def __init__(
        self, exact: PieceTokenizer | Callable[[str], int] | None = None, estimator: Estimator | None = None
    ) -> None:
        self.estimator = estimator or Estimator()
        self._exact = _counting(exact) if isinstance(exact, PieceTokenizer) else exact
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, text: str) -> TokenCount:
        """Tokens of `text` as content, special tokens in it read as text."""
        if not text:
            return TokenCount(0, is_estimate=self._exact is None)
        if self._exact is None:
            return self.estimator.count(text)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]
        with self._lock:
            known = self._counts.get(key)
            if known is not None:
                self._counts.move_to_end(key)
                return TokenCount(known, is_estimate=False)
        try:
            num_tokens = self._exact(text)
        except EngineError:
            return self.estimator.count(text)
        with self._lock:
            self._counts[key] = num_tokens
            self.estimator.learn(text, num_tokens)
            while len(self._counts) > _MAX_CACHED_COUNTS:
                self._counts.popitem(last=False)
        return TokenCount(num_tokens, is_estimate=False)

    def learn(self, text: str, num_tokens: int) -> None:
        """An exact count from elsewhere (a provider's usage) corrects the estimates that follow."""
        with self._lock:
            self.estimator.learn(text, num_tokens)


def _counting(tokenizer: PieceTokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.content(text))
