"""Guides over a vocabulary, and what becomes of grammars that are wrong or meant to do harm."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kvloom.engine import grammar as room
from kvloom.engine import grammar_trial
from kvloom.engine.base import Vocabulary
from kvloom.engine.fake import IM_END, FakeEngine, FakeVocabulary
from kvloom.engine.grammar import GrammarGuides, check_grammar
from kvloom.errors import EngineUnsupportedError, UsageError
from kvloom.types import F32Array, SamplingParams
from tests.unit.engine import grammar_fuzz_child

FOLLOWED = 'start: "{" /[a-z]{2,5}/ "}"'


@pytest.fixture
def guides() -> GrammarGuides:
    return GrammarGuides(FakeVocabulary())


def follow(guides: GrammarGuides, grammar: str, text: bytes) -> bool:
    """Whether the grammar allows every byte of the text in turn; then whether it may end there."""
    guide = guides.start(grammar)
    for byte in text:
        if not guide.allowed()[byte]:
            return False
        guide.accept(byte)
    return bool(guide.allowed()[IM_END])


def test_only_what_the_grammar_wants_is_allowed(guides: GrammarGuides) -> None:
    guide = guides.start(FOLLOWED)
    assert [token for token, allowed in enumerate(guide.allowed()) if allowed] == [ord("{")]
    for text, ends in ((b"{ab}", True), (b"{a}", False), (b"{abcdef}", False), (b"{ab", False), (b"", False)):
        assert follow(guides, FOLLOWED, text) is ends


def test_every_end_token_is_allowed_exactly_where_the_grammar_may_end(guides: GrammarGuides) -> None:
    guide = guides.start('start: "a"+')
    assert not guide.allowed()[256:].any()
    guide.accept(ord("a"))
    assert guide.allowed()[256:].tolist() == [True, False, True]  # <|im_start|> ends no reply
    guide.accept(IM_END)
    assert guide.allowed()[IM_END]


def test_a_token_that_is_not_allowed_is_refused_before_the_parser_sees_it(guides: GrammarGuides) -> None:
    guide = guides.start(FOLLOWED)
    with pytest.raises(UsageError, match="token 120 is not what the grammar wants after 0 tokens"):
        guide.accept(120)
    guide.accept(ord("{"))


def test_characters_of_several_tokens_are_held_together(guides: GrammarGuides) -> None:
    guide = guides.start('start: "é" | "ê"')
    first, second = "é".encode()
    guide.accept(first)
    assert guide.allowed()[second] and not guide.allowed()[ord("a")]


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: nowhere", "unknown name"),
        ("nonsense", "refused"),
        ('start: "a', "refused"),
        ("start: /(?=a)b/", "look-around"),
        ('{"grammars": []}', "refused"),
        ("(" * 65, "nests 65 brackets; at most 64"),
        ("x" * (room.MAX_GRAMMAR_BYTES + 1), "takes 262,145 bytes"),
        ('start: "\udc80"', "."),
    ],
)
def test_a_wrong_grammar_is_refused_with_what_is_wrong(guides: GrammarGuides, grammar: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        guides.start(grammar)


def test_a_grammar_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    def count(data: bytes) -> str:
        nonlocal tried
        tried += 1
        return "" if data == b"good" else "wrong"

    monkeypatch.setattr(room, "_try", count)
    monkeypatch.setattr(room, "_verdicts", room._Verdicts())
    for _ in range(3):
        check_grammar("good")
        with pytest.raises(UsageError, match="wrong"):
            check_grammar("bad")
    assert tried == 2


def test_the_grammars_tried_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_REMEMBERED", 2)
    verdicts = room._Verdicts()
    verdicts.put(b"a", "")
    verdicts.put(b"b", "")
    assert verdicts.get(b"a") == ""
    verdicts.put(b"c", "")
    assert (verdicts.get(b"a"), verdicts.get(b"b"), verdicts.get(b"c")) == ("", None, "")


@pytest.mark.parametrize(
    ("script", "most_s", "message"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", 60.0, "too complex: its compilation"),
        ("import time\ntime.sleep(60)", 0.5, r"not compiled within 0\.5 s"),
        ("raise MemoryError", 60.0, "too complex: its compilation"),
        ("import sys\nprint('it is wrong')\nsys.exit(3)", 60.0, "refused: it is wrong"),
    ],
)
def test_what_ends_the_trial_ends_only_the_trial(
    script: str, most_s: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trial.py"
    path.write_text(script, encoding="utf-8")
    monkeypatch.setattr(grammar_trial, "__file__", str(path))
    monkeypatch.setattr(room, "TRIAL_TIMEOUT_S", most_s)
    monkeypatch.setattr(room, "_verdicts", room._Verdicts())
    with pytest.raises(UsageError, match=message):
        check_grammar('start: "a"')


def test_a_trial_has_no_more_memory_than_it_is_given() -> None:
    code = "from kvloom.engine.grammar_trial import limit\nlimit(300 << 20, 5)\nbytearray(400 << 20)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"MemoryError" in ended.stderr


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('start: s\ns: "x" s "a" | "x" s "b" | "z"', b"x" * 60 + b"z" + b"ab" * 30),  # 2^60 stacks for a naive parser
        ('start: a start "x" | "y"\na: b\nb: "" | "q"', b"yxxx"),  # left recursion behind what may be empty
        ('start: start start | "a"', b"a" * 60),
        ('start: (("a"*)*)*', b"a" * 60),
        ('start: ("a" | "b"){1,1000000}', b"ab" * 60),
        ("start: /((a|aa)*b){1,500}c?/", b"aab" * 40),
        ("start: /(.*a){12}/", b"ba" * 40),
    ],
)
def test_grammars_that_explode_elsewhere_cost_little_here(guides: GrammarGuides, grammar: str, text: bytes) -> None:
    start = time.thread_time()
    assert follow(guides, grammar, text)
    assert time.thread_time() - start < 5.0  # some 0.1 s; what explodes never ends


def test_a_grammar_that_becomes_too_complex_on_the_way_says_so(guides: GrammarGuides) -> None:
    guide = guides.start('start: (("a"*)*)*')
    with pytest.raises(UsageError, match=r"cannot be followed beyond \d+ tokens"):  # noqa: PT012
        for _ in range(1000):
            guide.accept(ord("a"))


def test_a_grammar_that_nothing_satisfies_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(UsageError, match="refused: nothing satisfies it"):
        check_grammar('{"grammars": [{"json_schema": {"$ref": "#"}}]}')


def test_too_many_possibilities_at_the_beginning_are_refused_before_anything_is_computed() -> None:
    properties = ", ".join(f'"p{number}": {{"type": "string"}}' for number in range(500))
    with pytest.raises(UsageError, match=r"too much is possible at one place \(2007 ways, at most 600\)"):
        check_grammar(f'{{"grammars": [{{"json_schema": {{"type": "object", "properties": {{{properties}}}}}}}]}}')


def test_two_threads_may_start_guides_at_once(guides: GrammarGuides) -> None:
    ends: list[bool] = []
    threads = [threading.Thread(target=lambda: ends.append(follow(guides, FOLLOWED, b"{abc}"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [True] * 4


def test_a_model_without_an_end_token_follows_no_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVocabulary, "is_end", lambda self, token: False)
    with pytest.raises(EngineUnsupportedError, match="no token that ends a reply"):
        GrammarGuides(FakeVocabulary()).start(FOLLOWED)


def test_control_tokens_are_no_text(guides: GrammarGuides) -> None:
    """`<|im_start|>` as text is twelve characters; the token of that name is none of them."""
    guide = guides.start('start: "<|im_start|>"')
    assert guide.allowed()[ord("<")] and not guide.allowed()[256:].any()


def test_the_fake_engine_follows_a_grammar_and_its_penalties() -> None:
    engine = FakeEngine()
    logits: F32Array = _spread(engine.vocabulary)
    for params, wanted in (
        (SamplingParams(0.0, grammar=FOLLOWED), b"{zzzzz}"),
        (SamplingParams(0.0, grammar=FOLLOWED, presence_penalty=500.0), b"{zyxwv}"),
        (SamplingParams(0.0, grammar=FOLLOWED, logit_bias=((97, 400.0),)), b"{aaaaa}"),
    ):
        sampler = engine.sampler(params)
        said = [sampler.sample(logits) for _ in range(8)]
        sampler.close()
        assert bytes(said[:-1]) == wanted
        assert engine.vocabulary.is_end(said[-1])


def _spread(vocabulary: Vocabulary) -> F32Array:
    logits = np.arange(vocabulary.size, dtype=np.float32)
    logits[ord("}")] = 0
    return logits


def test_no_grammar_ends_the_process() -> None:
    """Random grammars, right and wrong, are compiled and followed without a trial before them, in a child process."""
    ended = subprocess.run(
        [sys.executable, grammar_fuzz_child.__file__, "150"], capture_output=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode("utf-8", "replace")[-3000:]
    num_followed, num_refused = map(int, ended.stdout.split())
    assert num_followed > 60
    assert num_refused > 60
