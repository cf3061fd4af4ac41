"""Keeps content data where a server tokenizes whole prompts: words that it would read as special tokens are broken.

A broken word has a space behind its first character, so that a person sees it. Knows texts, no conversation.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass

from kvloom.engine.remote.base import Endpoint
from kvloom.errors import ContentError

_MARKUP = re.compile(r"<[^\s<>'\"]{1,48}>|\[/?[A-Za-z0-9_]{1,32}\]")
"""What special tokens look like, and much that is none: only an endpoint that counts can tell."""
_CONTROL = re.compile(
    r"<\|[^\s<>|]{1,48}\|>|<\uff5c[^\s<>\uff5c]{1,48}\uff5c>|</?s>|<</?SYS>>"
    r"|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
"""Control words of the usual model families (ChatML, Llama, Mistral, Gemma, DeepSeek, Phi), for endpoints that do not
count: broken wherever they stand in content."""
MAX_KNOWN_TEXTS = 16_384
MAX_KNOWN_WORDS = 16_384


@dataclass(frozen=True)
class Plain:
    """Text that holds no special token, and the words that were broken for it."""

    text: str
    broken: tuple[str, ...] = ()


class Marks:
    """Breaks special tokens in what goes to one endpoint. Safe for several threads.

    Where the endpoint counts, it is asked which words are special; elsewhere those are taken that models usually have,
    and those that its template names.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.is_certain = endpoint.counts_exactly
        """Whether the endpoint has said which words it reads as special tokens."""
        facts = endpoint.facts
        self._template_words = {*_MARKUP.findall(facts.chat_template), *facts.marks} - {""}
        # By hash: no text stays in memory here.
        self._found: OrderedDict[tuple[bytes, bool], frozenset[str]] = OrderedDict()
        self._words: OrderedDict[tuple[str, bool], bool] = OrderedDict()
        self._lock = threading.Lock()

    def plain(self, text: str, *, is_reply: bool = False) -> Plain:
        """`is_reply`: the model wrote it; what its template writes as plain text (`<tool_call>`) stays then.

        Raises EngineError where the endpoint cannot be asked, ContentError where a special token cannot be broken.
        """
        key = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], is_reply)
        with self._lock:
            words = self._found.get(key)
        if words is None:
            words = self._asked(text, is_reply) if self.is_certain else self._guessed(text, is_reply)
            with self._lock:
                self._found[key] = words
                while len(self._found) > MAX_KNOWN_TEXTS:
                    self._found.popitem(last=False)
        return _broken(text, words)

    # -- inside -------------------------------------------------------------------------------------------------

    def _guessed(self, text: str, is_reply: bool) -> frozenset[str]:
        forged = () if is_reply else (word for word in self._template_words if word in text)
        return frozenset((*_CONTROL.findall(text), *forged))

    def _asked(self, text: str, is_reply: bool) -> frozenset[str]:
        forged = set() if is_reply else {word for word in self._template_words if word in text}
        if not forged and self._is_text(text):
            return frozenset()
        words = frozenset(word for word in (*_MARKUP.findall(text), *forged) if self._is_special(word, is_reply))
        if not self._is_text(_broken(text, words).text):
            raise ContentError(
                f"a text of {len(text)} characters holds a special token of {self._endpoint.facts.model} that could "
                f"not be found in it, and {self._endpoint.where} would take it as one; take it out of the text"
            )
        return words

    def _is_text(self, text: str) -> bool:
        """Whether reading special tokens in it makes no difference."""
        count = self._endpoint.count
        return not text or count(text, is_template=True) == count(text, is_template=False)

    def _is_special(self, word: str, is_reply: bool) -> bool:
        """One token where it is read as special; several as text, or one that the template writes, too."""
        may_be_plain = not is_reply and word in self._template_words
        with self._lock:
            known = self._words.get((word, may_be_plain))
        if known is None:
            count = self._endpoint.count
            known = count(word, is_template=True) == 1 and (may_be_plain or count(word, is_template=False) != 1)
            with self._lock:
                self._words[word, may_be_plain] = known
                while len(self._words) > MAX_KNOWN_WORDS:
                    self._words.popitem(last=False)
        return known


def broken_word(word: str) -> str:
    """A word as it is sent: a space behind its first character."""
    return f"{word[0]} {word[1:]}"


def _broken(text: str, words: frozenset[str]) -> Plain:
    # The longest first: one word may begin with another.
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, broken_word(word))
    return Plain(text, tuple(sorted(words)))
