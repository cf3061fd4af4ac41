"""Estimates tokens from characters, and learns from exact counts how far off that is. Knows no vocabulary.

An estimate always says that it is one. Where a tokenizer or a counting endpoint is there, `counter` asks that.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

_CHARS_PER_TOKEN = 4.0
"""English prose under common BPE vocabularies."""
_CODE_CHARS_PER_TOKEN = 3.0
"""Source code: names are cut up, and indentation and brackets cost tokens of their own."""
_CJK_CHARS_PER_TOKEN = 1.0
"""Han, kana and hangul: between 0.7 and 1.5 by vocabulary."""
_CODE_SHARE = 0.06
"""Share of code-like characters from which a text is taken as code: prose has under 0.03, code over 0.08."""

_CJK = re.compile(
    r"[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_CODE = re.compile(r"[{}()\[\]<>=;_/\\|&*+$#@]|^[ \t]{2,}", re.MULTILINE)

_LETTERS_PER_TOKEN = 5.0
"""Letters and single spaces, all else taken out: a word and the space before it are mostly one token."""
_SIGNS_TOKENS = 0.6
"""A run of one sign (`=`, `----`): often two of them are a token in code, one in prose."""
_BLANK_TOKENS = 1.0
"""A run of white space: an indentation, an empty line."""
_ODD_TOKENS = 0.9
"""Digits (one to three a token, by vocabulary) and what is neither ASCII nor CJK."""
_SIGNS = re.compile(r"([!-/:-@\[-`{-~])\1*")
_BLANK = re.compile(r"\s{2,}")
_ODD = re.compile(r"[0-9]|[^\x00-\x7f]")

_MAX_SAMPLES = 32
"""Of each kind of text; older ones are forgotten, for a provider may change its model under the same name."""
_MIN_SAMPLE_TOKENS = 16
"""In a shorter text a template's own tokens weigh more than the text."""
_RATIO_LIMITS = (0.2, 5.0)
"""Exact over estimated, outside of which a count is of something else than the text: an image, a cached prompt."""
_PRIOR_TOKENS = 64.0
"""Weight of a factor of 1 against the samples: one short text does not move it far."""


@dataclass(frozen=True)
class TokenCount:
    """A number of tokens, and whether it is only an estimate."""

    num_tokens: int
    is_estimate: bool


class TextKind(Enum):
    """What a text mostly is: vocabularies differ by kind far more than within one."""

    PROSE = "prose"
    CODE = "code"
    CJK = "cjk"


def estimate_tokens(text: str) -> float:
    """Tokens that `text` takes by its length alone: /4, code /3, one a character for CJK.

    It must not change: the borders of split chunks follow it, and their stored KV with them. `Estimator` is nearer.
    """
    if not text:
        return 0.0
    num_cjk = len(_CJK.findall(text))
    per_token = _CODE_CHARS_PER_TOKEN if _is_code(text) else _CHARS_PER_TOKEN
    return num_cjk / _CJK_CHARS_PER_TOKEN + (len(text) - num_cjk) / per_token


def _is_code(text: str) -> bool:
    return len(_CODE.findall(text)) > _CODE_SHARE * len(text)


@dataclass(frozen=True)
class _Raw:
    """What the characters alone say: tokens of CJK and of everything else, and what everything else is."""

    cjk: float
    other: float
    other_kind: TextKind

    @property
    def total(self) -> float:
        return self.cjk + self.other


def _raw(text: str) -> _Raw:
    num_cjk = len(_CJK.findall(text))
    num_odd = len(_ODD.findall(text)) - num_cjk
    signs = [match.end() - match.start() for match in _SIGNS.finditer(text)]
    blanks = [len(run) for run in _BLANK.findall(text)]
    num_letters = max(0, len(text) - num_cjk - num_odd - sum(signs) - sum(blanks))
    other = num_letters / _LETTERS_PER_TOKEN + len(signs) * _SIGNS_TOKENS
    other += len(blanks) * _BLANK_TOKENS + num_odd * _ODD_TOKENS
    return _Raw(num_cjk / _CJK_CHARS_PER_TOKEN, other, TextKind.CODE if _is_code(text) else TextKind.PROSE)


class Estimator:
    """Estimates for one model. `learn` is told exact counts as they come back; `to_dict` is what a caller keeps.

    A factor for each kind of text: the weighted median of exact over estimated, so that one count of something else
    moves nothing. A mixed text is corrected part by part and teaches the kind that it mostly is.
    """

    def __init__(self) -> None:
        self._samples: dict[TextKind, deque[tuple[float, float]]] = {
            kind: deque(maxlen=_MAX_SAMPLES) for kind in TextKind
        }
        self._factors = dict.fromkeys(TextKind, 1.0)

    def count(self, text: str) -> TokenCount:
        """Tokens of `text`, corrected by what was learned; at least 1 for a text that is not empty."""
        raw = _raw(text)
        estimate = round(raw.cjk * self._factors[TextKind.CJK] + raw.other * self._factors[raw.other_kind])
        return TokenCount(max(estimate, 1) if text else 0, is_estimate=True)

    def learn(self, text: str, num_tokens: int) -> None:
        """An exact count of `text` from elsewhere, for example a provider's usage; nonsense is passed over."""
        raw = _raw(text)
        if raw.total < _MIN_SAMPLE_TOKENS:
            return
        kind = TextKind.CJK if raw.cjk > raw.other else raw.other_kind
        ratio = self._ratio(raw, kind, num_tokens)
        if _RATIO_LIMITS[0] <= ratio <= _RATIO_LIMITS[1]:
            self._samples[kind].append((ratio, raw.total))
            self._factors[kind] = _weighted_median([(1.0, _PRIOR_TOKENS), *self._samples[kind]])

    def factor(self, kind: TextKind) -> float:
        """By what the characters' estimate is multiplied for texts of this kind; 1 before anything was learned."""
        return self._factors[kind]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, for `from_dict`."""
        return {kind.value: [list(sample) for sample in samples] for kind, samples in self._samples.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Estimator:
        """The estimator of a stored `to_dict`; what is damaged in it or of a later version is left out."""
        estimator = cls()
        for kind in TextKind:
            for sample in _listed(data.get(kind.value)):
                pair = _listed(sample)
                if len(pair) == 2 and all(isinstance(x, int | float) for x in pair) and _is_sample(pair[0], pair[1]):
                    estimator._samples[kind].append((float(pair[0]), float(pair[1])))
            estimator._factors[kind] = _weighted_median([(1.0, _PRIOR_TOKENS), *estimator._samples[kind]])
        return estimator

    def _ratio(self, raw: _Raw, kind: TextKind, num_tokens: int) -> float:
        """Exact over estimated for the part of `kind`; the other part is taken as it is estimated now."""
        if kind is TextKind.CJK:
            return (num_tokens - raw.other * self._factors[raw.other_kind]) / raw.cjk
        return (num_tokens - raw.cjk * self._factors[TextKind.CJK]) / raw.other


def _is_sample(ratio: float, weight: float) -> bool:
    return _RATIO_LIMITS[0] <= ratio <= _RATIO_LIMITS[1] and 0 < weight < float("inf")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _weighted_median(samples: list[tuple[float, float]]) -> float:
    """The value with half of the weight on either side; between two values, in proportion to where the half lies."""
    ordered = sorted(samples)
    half = sum(weight for _, weight in ordered) / 2
    before = 0.0
    for number, (value, weight) in enumerate(ordered):
        if before + weight >= half:
            following = ordered[number + 1][0] if number + 1 < len(ordered) else value
            return (value + following) / 2 if before + weight == half else value
        before += weight
    return 1.0
