"""Known texts are found wherever they stand in a message: all of them, the longest first, fast, and never wrongly."""

from __future__ import annotations

import random
import statistics
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.text.known_texts import MIN_KNOWN_CHARS, KnownSpan, KnownTexts


def prose(num_chars: int, seed: int) -> str:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij\n", k=draw.randint(2, 9))) for _ in range(500)]
    return " ".join(draw.choices(words, k=num_chars // 2))[:num_chars]


def known(*texts: str) -> KnownTexts:
    index = KnownTexts()
    for number, text in enumerate(texts):
        assert index.add(str(number), text)
    return index


def slow(texts: dict[str, str], message: str) -> list[KnownSpan]:
    """What `find` should say, by looking everywhere."""
    spans: list[KnownSpan] = []
    for chunk_id, text in sorted(texts.items(), key=lambda pair: -len(pair[1])):
        at = message.find(text)
        while at >= 0:
            stop = at + len(text)
            is_free = all(stop <= span.start or at >= span.stop for span in spans)
            spans += [KnownSpan(chunk_id, at, stop)] if is_free else []
            at = message.find(text, stop if is_free else at + 1)
    return sorted(spans, key=lambda span: span.start)


def test_every_occurrence_of_every_known_text_is_found_in_order() -> None:
    one, two = prose(700, 1), prose(5_000, 2)
    message = f"See:\n{two}\nand {one}{one} and {two[:-1]}"
    spans = known(one, two).find(message)
    assert [(span.chunk_id, message[span.start : span.stop]) for span in spans] == [("1", two), ("0", one), ("0", one)]


def test_the_longest_of_overlapping_texts_is_chosen() -> None:
    long = prose(3_000, 3)
    for part in (long[:1000], long[1000:2000], long[-1000:]):
        (span,) = known(part, long).find("x" + long)
        assert (span.chunk_id, span.start, span.stop) == ("1", 1, 3_001)
        (span,) = known(part, long).find("x" + long[:-1] if part != long[-1000:] else long[1:])
        assert span.chunk_id == "0"


def test_texts_with_the_same_beginning_are_told_apart() -> None:
    licence = prose(1_000, 4)
    texts = [licence + prose(500, seed) for seed in range(5, 60)]
    assert [span.chunk_id for span in known(*texts).find("".join(reversed(texts)))] == [
        str(n) for n in range(54, -1, -1)
    ]


def test_a_text_that_differs_by_one_character_is_not_found() -> None:
    text = prose(2_000, 5)
    index = known(text)
    for at in (0, 127, 128, 999, 1_999):
        assert index.find(f"{text[:at]}Z{text[at + 1 :]}") == ()


def test_what_is_removed_or_replaced_is_not_found_any_more() -> None:
    one, two = prose(400, 6), prose(400, 7)
    index = known(one, two)
    index.remove("0")
    index.remove("never known")
    assert "0" not in index
    assert [span.chunk_id for span in index.find(one + two)] == ["1"]
    assert index.add("1", one)
    assert [(span.chunk_id, span.start) for span in index.find(two + one)] == [("1", 400)]
    assert len(index) == 1


def test_short_texts_are_not_looked_for() -> None:
    index = KnownTexts()
    text = prose(MIN_KNOWN_CHARS, 8)
    assert not index.add("a", text[:-1])
    assert index.find(text) == ()
    assert index.add("a", text)
    assert index.find(text) == (KnownSpan("a", 0, MIN_KNOWN_CHARS),)
    assert index.find(text[:-1]) == ()


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "\U0001f600", "é"])
def test_places_are_characters_whatever_they_are(odd: str) -> None:
    text = odd * 3 + prose(300, 9) + odd
    assert known(text).find(odd * 5 + text) == (KnownSpan("0", 5, 5 + len(text)),)


def test_runs_of_one_character_are_matched_by_their_length() -> None:
    index = known("\x00" * 300, "\x00" * 500)
    assert [(s.chunk_id, s.start) for s in index.find("\x00" * 1_400)] == [("1", 0), ("1", 500), ("0", 1_000)]


@settings(max_examples=60)
@given(data=st.data())
def test_it_finds_what_a_slow_search_finds(data: st.DataObject) -> None:
    period = data.draw(st.text("ab", min_size=1, max_size=5))
    base = (period * 700)[:700] + "".join(data.draw(st.lists(st.sampled_from("ab"), min_size=50, max_size=50)))
    cuts = st.tuples(st.integers(0, 400), st.integers(200, 500)).map(lambda cut: base[cut[0] : cut[0] + cut[1]])
    texts = data.draw(st.lists(cuts.filter(lambda text: len(text) >= 200), min_size=1, max_size=5, unique=True))
    message = "".join(data.draw(st.lists(st.sampled_from([*texts, base, "-", base[:150]]), max_size=8)))
    numbered = {str(number): text for number, text in enumerate(texts)}
    assert list(known(*texts).find(message)) == slow(numbered, message)


def test_a_thousand_known_files_in_a_long_message_are_found_in_no_time() -> None:
    texts = [prose(5_000, seed) for seed in range(1_000)]
    index = known(*texts)
    message = "".join(prose(1_000, 2_000 + n) + texts[n * 50] for n in range(16))
    taken: list[float] = []
    for _ in range(9):
        start = time.perf_counter()
        spans = index.find(message)
        taken.append(time.perf_counter() - start)
    assert len(spans) == 16
    assert statistics.median(taken) < 0.2  # about 2 ms on an idle core; runners are slow and shared


def test_a_message_made_to_be_slow_is_not() -> None:
    index = known("a" * 5_000, "a" * 2_500 + "b" + "a" * 2_499, *("a" * (300 + n) + "c" for n in range(200)))
    start = time.thread_time()
    assert len(index.find("a" * 200_000)) == 40
    assert time.thread_time() - start < 10.0
