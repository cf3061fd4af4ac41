"""Holds replies to a grammar: which tokens may come next. Works on any engine's `Vocabulary`, knows no sampler.

A grammar is a text as llguidance reads it (its Lark dialect, or its JSON form); `kvloom.text.grammar` makes them.
llguidance is an Earley parser that never aborts the process, and whose work per token is bounded whatever the grammar.
llama.cpp's own grammars are neither: a refused token throws through C, and an ambiguous grammar doubles its stacks with
every character. What a grammar costs to compile is found out in a child process first.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from kvloom.engine import grammar_trial
from kvloom.engine.base import Vocabulary
from kvloom.errors import EngineUnsupportedError, UsageError

__all__ = ["GrammarGuide", "GrammarGuides", "check_grammar"]

MAX_GRAMMAR_BYTES = 256 << 10
"""Room for a hundred tools with large schemas."""
MAX_NESTING = 64
"""Brackets within brackets. Compilers of grammars recurse, and a thread's stack may be as small as 512 KiB."""
TRIAL_TIMEOUT_S = 10.0
"""A child starts in 0.1 s and compiles a large schema in 0.1 s; a busy machine may be many times slower."""
TRIAL_CPU_S = 5
TRIAL_MEMORY_BYTES = 1 << 30
"""Address space, of which the interpreter and the library map some 200 MiB."""
MAX_REMEMBERED = 1024
"""Grammars whose trial is not repeated; some 100 bytes each."""
MAX_MESSAGE_CHARS = 500

BoolArray = npt.NDArray[np.bool_]


def check_grammar(grammar: str) -> None:
    """Raises UsageError where a grammar is wrong, too large, or too costly to compile. Safe with any text.

    The first time it starts a child process (some 0.1 s); call it before a request takes anything that others need.
    """
    data = grammar.encode("utf-8", "surrogatepass")
    if len(data) > MAX_GRAMMAR_BYTES:
        raise UsageError(f"the grammar takes {len(data):,} bytes; at most {MAX_GRAMMAR_BYTES:,} are allowed")
    if (depth := _nesting(grammar)) > MAX_NESTING:
        raise UsageError(f"the grammar nests {depth} brackets; at most {MAX_NESTING} are allowed")
    key = hashlib.sha256(data).digest()
    verdict = _verdicts.get(key)
    if verdict is None:
        verdict = _try(data)
        _verdicts.put(key, verdict)
    if verdict:
        raise UsageError(verdict)


class _Verdicts:
    """What is wrong with the grammars tried last ("" nothing), by their hash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, str] = OrderedDict()

    def get(self, key: bytes) -> str | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: bytes, verdict: str) -> None:
        with self._lock:
            self._kept[key] = verdict
            if len(self._kept) > MAX_REMEMBERED:
                self._kept.popitem(last=False)


_verdicts = _Verdicts()


def _try(data: bytes) -> str:
    """Compile in a child; what is wrong, "" for nothing."""
    command = [sys.executable, "-I", grammar_trial.__file__, str(TRIAL_MEMORY_BYTES), str(TRIAL_CPU_S)]
    try:
        ended = subprocess.run(command, input=data, capture_output=True, timeout=TRIAL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"the grammar is too complex: it was not compiled within {TRIAL_TIMEOUT_S:g} s. Make it smaller"
    except OSError as error:
        raise EngineUnsupportedError(f"no process can be started to try the grammar in: {error}") from error
    if ended.returncode == 0:
        return ""
    if ended.returncode == grammar_trial.REFUSED:
        return "the grammar is refused: " + _told(ended.stdout.decode("utf-8", "replace"))
    return (
        "the grammar is too complex: its compilation took more than "
        f"{TRIAL_MEMORY_BYTES >> 20} MiB or {TRIAL_CPU_S} s, or nests too deep. Make it smaller"
    )


def _nesting(text: str) -> int:
    """How many brackets are open at once at most, those in strings and classes counted too: never too few."""
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}" and depth:
            depth -= 1
    return deepest


def _told(message: str) -> str:
    """llguidance's words, short; what it has for a person to do nothing with, in ours."""
    message = " ".join(message.split())
    if message.startswith("NoExtensionBias"):
        return "nothing satisfies it (is there a rule or a schema that only refers to itself?)"
    crowded = re.search(r"Current row has (\d+) items; max is (\d+)", message)
    if crowded:
        return (
            f"too much is possible at one place ({crowded[1]} ways, at most {crowded[2]}): make properties required,"
            " or have fewer of them"
        )
    return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + " …"


class GrammarGuides:
    """Starts guides over one vocabulary; its tables (some 40 MB, 0.5 s for 150,000 tokens) are made by the first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._ends: npt.NDArray[np.intp] = np.empty(0, np.intp)

    def start(self, grammar: str) -> GrammarGuide:
        """A guide at the grammar's start. Raises UsageError as `check_grammar` does."""
        import llguidance

        check_grammar(grammar)
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer()
        limits = llguidance.LLParserLimits(**grammar_trial.LIMITS)  # type: ignore[arg-type]  # a mapping of two value types
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise UsageError("the grammar is refused: " + _told(matcher.get_error()))
        guide = GrammarGuide(matcher, self._vocabulary.size, self._ends)
        guide.allowed()  # a grammar that nothing satisfies says so here
        return guide

    def _make_tokenizer(self) -> Any:
        import llguidance

        tokens = _Tokens(self._vocabulary)
        if not tokens.ends:
            raise EngineUnsupportedError("this model has no token that ends a reply: no grammar can be held to")
        self._ends = np.array(tokens.ends, np.intp)
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens), n_vocab=self._vocabulary.size)


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = range(vocabulary.size)
        self._vocabulary = vocabulary
        self.ends = [token for token in ids if vocabulary.is_end(token)]
        hidden = {token for token in ids if vocabulary.is_control(token)} | set(self.ends)
        self.special_token_ids = sorted(hidden)
        self.tokens = [vocabulary.token_bytes(token, special=token in hidden) for token in ids]
        self.eos_token_id = self.ends[0] if self.ends else -1
        self.bos_token_id = vocabulary.bos

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return self._vocabulary.tokenize(data, parse_special=False)


class GrammarGuide:
    """How far one reply has come in its grammar. Not thread-safe."""

    def __init__(self, matcher: Any, size: int, ends: npt.NDArray[np.intp]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._num_tokens = 0
        self._bits = np.zeros(-(-size // 32), np.uint32)
        self._allowed: BoolArray = np.zeros(size, np.bool_)
        self._is_fresh = False

    def allowed(self) -> BoolArray:
        """(vocab,): which tokens may come next, every end token where the grammar may end. Valid until `accept`."""
        if not self._is_fresh:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            self._check()
            bits = np.unpackbits(self._bits.view(np.uint8), count=self._allowed.size, bitorder="little")
            self._allowed = bits.view(np.bool_)
            self._allowed[self._ends] = self._matcher.is_accepting() or self._matcher.is_stopped()
            self._is_fresh = True
        return self._allowed

    def accept(self, token: int) -> None:
        """Go on by a token that `allowed` has allowed. An end token changes nothing."""
        if not self.allowed()[token]:
            raise UsageError(f"token {token} is not what the grammar wants after {self._num_tokens} tokens")
        if token in self._ends:
            return
        self._is_fresh = False
        self._num_tokens += 1
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _told(self._matcher.get_error())
            raise UsageError(f"the grammar cannot be followed beyond {self._num_tokens} tokens of the reply: {reason}")
