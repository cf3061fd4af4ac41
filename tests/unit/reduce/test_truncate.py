"""Truncation: never over the budget, never inside a character, and nothing left out that would have fitted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvloom
from kvloom.engine.llamacpp import LlamaCppEngine, LoadSettings
from kvloom.errors import UsageError
from kvloom.reduce.boundaries import is_boundary
from kvloom.reduce.truncate import Keep, truncate
from kvloom.text.tokenizer import PieceTokenizer
from kvloom.types import ModelFingerprint
from tests.tiny_gguf import TinyModel, write_tiny
from tests.unit.reduce.counts import COUNTS, by_bytes, by_words

WORDS = st.lists(
    st.sampled_from(
        ["the", " the", "user", "\r\n", "\n\n", "    ", "def ", "日本語", "👍🏽", "é", "e\u0301", "🇩🇪", " ", "."]
    )
    | st.text(max_size=6),
    max_size=60,
).map(lambda words: "".join(words).encode("utf-8", "ignore").decode())
MARKERS = st.sampled_from(["", "…", "\n[… {n} tokens left out …]\n", "{n}", "{", "[{}]"])


def holds(text: str, max_tokens: int, keep: Keep, marker: str, count: str) -> None:
    """Everything that a truncated text must be."""
    counting = COUNTS[count]
    cut = truncate(text, max_tokens, counting, keep, marker)
    assert cut.num_tokens == counting(cut.text) <= max_tokens
    if counting(text) <= max_tokens:
        assert (cut.text, cut.num_removed_tokens) == (text, 0)
        return
    assert cut.num_removed_tokens > 0
    assert all(is_boundary(text, start) and is_boundary(text, stop) for start, stop in cut.kept)
    head = next((text[:stop] for start, stop in cut.kept if start == 0), "")
    tail = next((text[start:] for start, stop in cut.kept if stop == len(text)), "")
    mark = marker.replace("{n}", str(cut.num_removed_tokens))
    assert cut.text in (head + mark + tail, head + tail)
    assert keep is not Keep.HEAD or not tail
    assert keep is not Keep.TAIL or not head
    assert len(head) + len(tail) < len(text)


@settings(max_examples=300)
@given(WORDS, st.integers(0, 60), st.sampled_from(Keep), MARKERS, st.sampled_from(sorted(COUNTS)))
def test_a_cut_text_is_within_its_budget_and_made_of_the_original(
    text: str, max_tokens: int, keep: Keep, marker: str, count: str
) -> None:
    holds(text, max_tokens, keep, marker, count)


@settings(max_examples=200)
@given(WORDS, st.integers(0, 60), st.sampled_from([Keep.HEAD, Keep.TAIL]), st.sampled_from(sorted(COUNTS)))
def test_one_character_more_would_not_have_fitted(text: str, max_tokens: int, keep: Keep, count: str) -> None:
    counting = COUNTS[count]
    cut = truncate(text, max_tokens, counting, keep, marker="")
    if not cut.is_cut:
        return
    if keep is Keep.HEAD:
        at = next((at for at in range(len(cut.text) + 1, len(text)) if is_boundary(text, at)), len(text))
        more = text[:at]
    else:
        at = next((at for at in range(len(text) - len(cut.text) - 1, 0, -1) if is_boundary(text, at)), 0)
        more = text[at:]
    assert counting(more) > max_tokens


@pytest.mark.parametrize("keep", list(Keep))
@pytest.mark.parametrize("max_tokens", [20, 57, 200, 1000])
def test_the_budget_is_used_up_to_a_token_or_two(keep: Keep, max_tokens: int) -> None:
    text = "".join(f"This is sentence number {number} of a long text. " for number in range(1000))
    cut = truncate(text, max_tokens, by_words, keep)
    assert max_tokens - 2 <= cut.num_tokens <= max_tokens
    assert cut.num_removed_tokens == pytest.approx(by_words(text) - max_tokens, abs=20)
    assert f"[… {cut.num_removed_tokens} tokens left out …]" in cut.text


def test_the_head_the_tail_or_both_ends_stay() -> None:
    text = "one two three four five six seven eight nine ten"
    assert truncate(text, 3, by_words, Keep.HEAD, "").text == "one two three"
    assert truncate(text, 3, by_words, Keep.TAIL, "").text == " eight nine ten"
    both = truncate(text, 5, by_words, Keep.BOTH_ENDS, "…")
    assert both.text == "one two… nine ten"
    assert both.kept == ((0, 7), (39, 48))
    assert both.num_removed_tokens == 6


def test_of_a_middle_cut_each_end_has_half_of_the_tokens_not_of_the_characters() -> None:
    text = "日本語の文章" * 100 + "plain words " * 100
    cut = truncate(text, 300, by_bytes, Keep.BOTH_ENDS, "…")
    [(_, stop), (start, _)] = cut.kept
    assert by_bytes(text[:stop]) == pytest.approx(150, abs=4)
    assert by_bytes(text[start:]) == pytest.approx(150, abs=4)


def test_the_marker_counts_and_is_left_out_where_it_would_take_most_of_the_budget() -> None:
    text = "a" * 100
    assert truncate(text, 10, by_bytes, Keep.HEAD, "[cut]").text == "aaaaa[cut]"
    assert truncate(text, 9, by_bytes, Keep.HEAD, "[cut]").text == "a" * 9
    assert truncate(text, 9, by_bytes, Keep.TAIL, "[cut]").text == "a" * 9


@pytest.mark.parametrize("keep", list(Keep))
def test_small_budgets(keep: Keep) -> None:
    nothing = truncate("some text", 0, by_bytes, keep)
    assert (nothing.text, nothing.num_tokens, nothing.kept) == ("", 0, ())
    assert nothing.num_removed_tokens == 9
    assert truncate("some text", 1, by_bytes, keep).num_tokens == 1
    assert truncate("", 0, by_bytes, keep).text == ""
    assert truncate("日本", 2, by_bytes, keep).text == ""


def test_a_line_end_of_two_characters_stays_whole() -> None:
    assert truncate("a\r\nb", 2, by_bytes, Keep.HEAD, "").text == "a"
    assert truncate("a\r\nb", 2, by_bytes, Keep.TAIL, "").text == "b"


def test_a_negative_budget_and_an_unknown_way_to_cut_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 tokens"):
        truncate("a", -1, by_bytes)
    with pytest.raises(UsageError, match="head, tail, both"):
        truncate("a", 1, by_bytes, "middle")


def test_a_long_text_is_not_counted_over_and_over() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return by_words(text)

    text = "some words of prose, again and again; " * 20_000
    truncate(text, 500, count, Keep.BOTH_ENDS)
    assert counted < 2 * len(text)


@pytest.fixture(scope="module", params=["bpe", "spm"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PieceTokenizer]:
    """llama.cpp's own tokenizer over a tiny vocabulary."""
    path = write_tiny(tmp_path_factory.mktemp("cut") / "tiny.gguf", TinyModel(tokenizer=request.param))
    engine = LlamaCppEngine(LoadSettings(path, 256, num_threads=1), ModelFingerprint("0" * 64))
    yield PieceTokenizer(engine.vocabulary)
    engine.close()


@pytest.mark.parametrize("keep", list(Keep))
def test_a_real_tokenizer_counts_what_was_promised(real: PieceTokenizer, keep: Keep) -> None:
    source = Path(__file__).read_text(encoding="utf-8")

    def count(text: str) -> int:
        return len(real.content(text))

    for max_tokens in (0, 1, 7, 40, 41, 333, 2000):
        cut = kvloom.truncate(source, max_tokens, count, keep)
        assert cut.num_tokens == count(cut.text) <= max_tokens
        assert cut.num_tokens >= max_tokens - 6  # a character of this file may take so many
        if cut.num_tokens > 200:
            assert re.findall(r"… (\d+) tokens left out …", cut.text) == [str(cut.num_removed_tokens)]
