"""Counts tokens for a model behind HTTP: the endpoint's own count where it has one, else an estimate that learns.

Knows no conversation. What was learned is kept in the home, for each model by itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from kvloom.engine.remote.base import Endpoint
from kvloom.engine.remote.engine import STAND_IN_MARKS
from kvloom.text.counter import TokenCounter
from kvloom.text.estimate import Estimator, TextKind, TokenCount

_LOG = logging.getLogger(__name__)

MOVED_SHARE = 0.03
"""A factor that has moved by less changes no count that was given: windows would flicker, and the log grow."""
MAX_KNOWN = 32_768
_KEY_BYTES = 16


class RemoteCounts:
    """Counts for one model. Safe for several threads.

    An estimate is given again for the same text until `epoch` changes: then all are to be asked for anew. A count
    that came from the server for exactly this text stays.
    """

    def __init__(self, endpoint: Endpoint, path: Path) -> None:
        self._path = path
        self._estimator = _stored(path)
        self.is_exact = endpoint.counts_exactly
        self.epoch = 0
        self._content = TokenCounter(lambda text: endpoint.count(text, is_template=False), self._estimator)
        self._template = TokenCounter(lambda text: endpoint.count(text, is_template=True), Estimator())
        self._certain: OrderedDict[bytes, int] = OrderedDict()
        self._estimated: OrderedDict[bytes, int] = OrderedDict()
        self._told = self._factors()
        self._lock = threading.Lock()

    def count(self, text: str) -> TokenCount:
        """Tokens of `text` as content, and whether that is an estimate."""
        if self.is_exact:
            return self._content.count(text)
        key = _key(text)
        with self._lock:
            known = self._certain.get(key)
        return TokenCount(self.number(text, False) if known is None else known, is_estimate=known is None)

    def number(self, text: str, is_template: bool) -> int:
        """The same as a number; `is_template`: special tokens in it are tokens."""
        if self.is_exact:
            return (self._template if is_template else self._content).count(text).num_tokens
        key = _key(text) + bytes([is_template])
        with self._lock:
            known = self._certain.get(key[:_KEY_BYTES]) if not is_template else None
            known = self._estimated.get(key) if known is None else known
            if known is None:
                known = self._estimate(text, is_template)
                _keep(self._estimated, key, known)
        return known

    def remember(self, text: str, num_tokens: int) -> None:
        """The server's own count of exactly this text."""
        if text and num_tokens > 0:
            with self._lock:
                _keep(self._certain, _key(text), num_tokens)

    def learn(self, text: str, num_tokens: int) -> None:
        """What the server counted for all of `text`: the estimates that follow are nearer."""
        if self.is_exact or num_tokens <= 0:
            return
        with self._lock:
            self._estimator.learn(text, num_tokens)
            now = self._factors()
            has_moved = any(
                abs(new / old - 1) > MOVED_SHARE for new, old in zip(now, self._told, strict=True) if old > 0
            )
            if has_moved:
                self._told = now
                self._estimated.clear()
                self.epoch += 1
            stored = json.dumps(self._estimator.to_dict())
        self._store(stored)

    # -- inside -------------------------------------------------------------------------------------------------

    def _estimate(self, text: str, is_template: bool) -> int:
        num_marks = 0
        if is_template:
            for mark in STAND_IN_MARKS:
                num_marks += text.count(mark)
                text = text.replace(mark, "")
        return num_marks + self._estimator.count(text).num_tokens

    def _factors(self) -> tuple[float, ...]:
        return tuple(self._estimator.factor(kind) for kind in TextKind)

    def _store(self, text: str) -> None:
        """Whole or not at all. What is not stored is learned again."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".learned-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                Path(name).replace(self._path)
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            _LOG.warning("what was learned about token counts cannot be kept in %s: %s", self._path, error)


def _stored(path: Path) -> Estimator:
    """What was learned before; a file that is damaged or not there teaches nothing."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Estimator()
    return Estimator.from_dict(data) if isinstance(data, dict) else Estimator()


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def _keep(counts: OrderedDict[bytes, int], key: bytes, number: int) -> None:
    counts[key] = number
    while len(counts) > MAX_KNOWN:
        counts.popitem(last=False)
