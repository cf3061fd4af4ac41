"""Counts tokens: exactly where a vocabulary is there, else by an estimate that says so. Knows no templates."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvloom.text.tokenizer import PieceTokenizer

_CHARS_PER_TOKEN = 4.0
"""English prose under common BPE vocabularies."""
_CODE_CHARS_PER_TOKEN = 3.0
"""Source code: names are cut up, and indentation and brackets cost tokens of their own."""
_CJK_CHARS_PER_TOKEN = 1.0
"""Han, kana and hangul: between 0.7 and 1.5 by vocabulary."""
_CODE_SHARE = 0.06
"""Share of code-like characters from which a text is taken as code: prose has under 0.03, code over 0.08."""
_LEARNING_RATE = 0.2
"""Weight of one exact count against all earlier ones: five counts settle it."""

_CJK = re.compile(
    r"[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_CODE = re.compile(r"[{}()\[\]<>=;_/\\|&*+$#@]|^[ \t]{2,}", re.MULTILINE)


@dataclass(frozen=True)
class TokenCount:
    """A number of tokens, and whether it is only an estimate."""

    num_tokens: int
    is_estimate: bool


def estimate_tokens(text: str) -> float:
    """Tokens that `text` takes by its characters alone: /4, code /3, one a character for CJK."""
    if not text:
        return 0.0
    num_cjk = len(_CJK.findall(text))
    is_code = len(_CODE.findall(text)) > _CODE_SHARE * len(text)
    per_token = _CODE_CHARS_PER_TOKEN if is_code else _CHARS_PER_TOKEN
    return num_cjk / _CJK_CHARS_PER_TOKEN + (len(text) - num_cjk) / per_token


class TokenCounter:
    """Counts for one model. Without a tokenizer it estimates, corrected by what `learn` was told."""

    def __init__(self, tokenizer: PieceTokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._correction = 1.0

    def count(self, text: str) -> TokenCount:
        """Tokens of `text` as content; exact counts are cached by the tokenizer."""
        if self._tokenizer is not None:
            return TokenCount(len(self._tokenizer.content(text)), is_estimate=False)
        estimate = round(estimate_tokens(text) * self._correction)
        return TokenCount(max(estimate, 1) if text else 0, is_estimate=True)

    def learn(self, text: str, num_tokens: int) -> None:
        """An exact count from elsewhere (a provider's usage) corrects the estimates that follow."""
        estimate = estimate_tokens(text)
        if estimate > 0 and num_tokens > 0:
            self._correction += _LEARNING_RATE * (num_tokens / estimate - self._correction)
