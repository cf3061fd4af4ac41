"""Estimates: marked as such, near to what real vocabularies count, and not led astray by one odd count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.text.estimate import Estimator, TextKind, TokenCount, estimate_tokens

ROOT = Path(__file__).resolve().parents[3]
PROSE = "Some words of plain prose, and nothing else in it. " * 10
CODE = "def f(a, b):\n    return {a: b[0]} if a_b else (b, a)\n" * 10
CJK = (
    "知识库里的每一个文件都会变成一个可以寻址的片段，它的键值缓存只计算一次，然后保存在内存或者磁盘上。"
    "当用户再次提问时，系统不需要重新阅读整个文件，只要把保存好的缓存放回到上下文里。"
    "会話が長くなると、古いやり取りは要約されますが、元の文章は失われません。"
    "利用者はいつでも一つ前の状態に戻ることができます。東京から大阪までは新幹線で約二時間半かかります。"
)
OTHER_CJK = "这样第一个回答就会马上开始，不会让人等待。昨日の会議では、三つの案のうち二番目が選ばれました。" * 3


@pytest.fixture(scope="module", params=["smollm2_path", "qwen_path"])
def vocabulary(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A real model's tokenizer, without its weights."""
    model = llama_cpp.Llama(str(request.getfixturevalue(request.param)), vocab_only=True, verbose=False)
    yield lambda text: len(model.tokenize(text.encode(), add_bos=False, special=False))
    model.close()


def sources() -> list[str]:
    """Real files of this repository, code and prose, long enough for an average to mean something."""
    files = [*sorted(ROOT.glob("src/kvloom/**/*.py"))[::5], *sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"]
    return [file.read_text(encoding="utf-8") for file in files if file.stat().st_size > 2_000]


def test_after_learning_estimates_of_real_files_are_within_a_quarter(vocabulary: Any) -> None:
    # The files change with every commit: nine of ten are to be within a quarter, and none far out.
    estimator, files = Estimator(), sources()
    for text in [*files[::3], CJK]:
        estimator.learn(text, vocabulary(text))
    others = [*(text for number, text in enumerate(files) if number % 3), OTHER_CJK]
    off = sorted(abs(estimator.count(text).num_tokens / vocabulary(text) - 1) for text in others)
    assert off[len(off) * 9 // 10] < 0.25
    assert off[-1] < 0.3


def test_before_learning_estimates_of_real_files_are_not_far_off(vocabulary: Any) -> None:
    for text in sources():
        assert Estimator().count(text).num_tokens == pytest.approx(vocabulary(text), rel=0.35)


@given(st.text(max_size=200))
def test_an_estimate_is_marked_and_is_none_for_no_text_alone(text: str) -> None:
    count = Estimator().count(text)
    assert count.is_estimate
    assert (count.num_tokens == 0) == (text == "")
    assert count.num_tokens <= 2 * len(text) + 1


def test_each_kind_of_text_has_a_factor_of_its_own() -> None:
    estimator, fresh = Estimator(), Estimator()
    for text, factor in ((PROSE, 1.2), (CODE, 0.8), (CJK, 0.6)):
        for _ in range(3):
            estimator.learn(text, round(fresh.count(text).num_tokens * factor))
    assert estimator.factor(TextKind.PROSE) == pytest.approx(1.2, rel=0.03)
    assert estimator.factor(TextKind.CODE) == pytest.approx(0.8, rel=0.03)
    assert estimator.factor(TextKind.CJK) == pytest.approx(0.6, rel=0.03)
    mixed = estimator.count(CJK + PROSE).num_tokens
    assert mixed == pytest.approx(estimator.count(CJK).num_tokens + estimator.count(PROSE).num_tokens, rel=0.02)


def test_one_odd_count_moves_nothing() -> None:
    estimator, fresh = Estimator(), Estimator().count(PROSE).num_tokens
    for _ in range(5):
        estimator.learn(PROSE, round(fresh * 1.3))
    before = estimator.count(PROSE)
    for odd in (fresh * 4, fresh * 40, 0, -3, 1):
        estimator.learn(PROSE, odd)
    assert estimator.count(PROSE) == before


def test_a_short_text_teaches_nothing_since_a_template_outweighs_it() -> None:
    estimator = Estimator()
    estimator.learn("hello", 30)
    estimator.learn("", 12)
    assert estimator.count(PROSE) == Estimator().count(PROSE)


def test_a_model_that_changes_is_learned_anew() -> None:
    estimator, fresh = Estimator(), Estimator().count(PROSE).num_tokens
    for factor in (1.5, 0.7):
        for _ in range(40):
            estimator.learn(PROSE, round(fresh * factor))
        assert estimator.count(PROSE).num_tokens == pytest.approx(fresh * factor, rel=0.02)


def test_what_was_learned_comes_back_from_json() -> None:
    estimator = Estimator()
    for text in (PROSE, CODE, CJK):
        estimator.learn(text, 3 * estimator.count(text).num_tokens // 2)
    again = Estimator.from_dict(json.loads(json.dumps(estimator.to_dict())))
    for text in (PROSE, CODE, CJK, CJK + CODE):
        assert again.count(text) == estimator.count(text)


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"prose": None},
        {"prose": 3},
        {"prose": [1, "x", [1], [1, 2, 3], ["a", "b"], [None, 2]]},
        {"prose": [[1e9, 10], [-1, 10], [float("nan"), 10], [1.0, float("inf")], [1.0, -5]]},
        {"poetry": [[2.0, 100.0]]},
    ],
)
def test_damaged_values_are_left_out(damaged: dict[str, Any]) -> None:
    assert Estimator.from_dict(damaged).count(PROSE) == Estimator().count(PROSE)


def test_the_estimate_that_chunk_borders_follow_stays_as_it_is() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("a" * 40) == 10
    assert estimate_tokens("{a}" * 10) == 10
    assert estimate_tokens("日本語") == 3
    assert Estimator().count("") == TokenCount(0, is_estimate=True)
