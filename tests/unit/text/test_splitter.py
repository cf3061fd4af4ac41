"""Splitting: nothing lost, sizes held, and an edit recomputes almost nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.errors import UsageError
from kvloom.text.counter import estimate_tokens
from kvloom.text.splitter import SplitSizes, split

SMALL = SplitSizes(whole_tokens=60, least_tokens=20)
LINES = st.lists(
    st.one_of(
        st.integers(0, 999).map(lambda n: f"    value_{n} = compute({n})\n"),
        st.integers(0, 99).map(lambda n: f"def function_{n}():\n"),
        st.integers(0, 99).map(lambda n: f"Some words of prose, number {n}.\n"),
        st.sampled_from(["\n", "@decorated\n", "# Heading\n", "}\n", "文字列です。\n"]),
    ),
    max_size=120,
)


def source(num_functions: int, seed: int = 1) -> list[str]:
    """Lines of a module, as people write them."""
    draw = random.Random(seed)
    lines: list[str] = []
    for i in range(num_functions):
        lines += [f"def function_{i}(a, b):\n", f'    """Does the thing number {draw.randrange(10**6)}."""\n']
        lines += [f"    x{j} = a * {draw.randrange(10**6)} + b\n" for j in range(draw.randrange(3, 30))]
        lines += ["    return x0\n", "\n", "\n"]
    return lines


def changed(old: list[str], new: list[str]) -> int:
    """Parts of the new text that would have to be computed."""
    known = set(split("".join(old)))
    return sum(part not in known for part in split("".join(new)))


@given(text=st.text(st.characters(codec="utf-8")) | LINES.map("".join))
def test_parts_join_to_the_text(text: str) -> None:
    assert "".join(split(text, SMALL)) == text


@given(lines=LINES)
def test_no_part_is_over_the_limit_and_none_is_empty(lines: list[str]) -> None:
    for part in split("".join(lines), SMALL) if lines else ():
        assert part
        assert estimate_tokens(part) <= SMALL.whole_tokens * 1.4  # lines are weighed one by one


@settings(max_examples=150)
@given(lines=LINES.filter(lambda lines: len(lines) > 30), data=st.data())
def test_inserting_or_deleting_a_line_changes_at_most_four_small_parts(lines: list[str], data: st.DataObject) -> None:
    """Four only where lines repeat themselves, so that few borders can be told by what stands there."""
    at = data.draw(st.integers(0, len(lines) - 1))
    edited = [*lines[:at], *lines[at + 1 :]]
    if data.draw(st.booleans()):
        edited = [*lines[:at], f"inserted = {at}\n", *lines[at:]]
    known = set(split("".join(lines), SMALL))
    assert sum(part not in known for part in split("".join(edited), SMALL)) <= 4


def test_an_edit_of_one_line_in_a_real_module_recomputes_one_part_nearly_always() -> None:
    lines = source(120)
    draw = random.Random(2)
    counts = []
    for _ in range(40):
        at = draw.randrange(len(lines))
        edit = draw.choice(["insert", "delete", "change"])
        kept = lines[at + 1 :] if edit != "insert" else lines[at:]
        fresh = [] if edit == "delete" else [f"    edited = {draw.randrange(10**6)}\n"]
        counts.append(changed(lines, [*lines[:at], *fresh, *kept]))
    assert max(counts) <= 3
    assert sum(count == 1 for count in counts) >= 36


def test_parts_begin_where_the_text_has_a_structure() -> None:
    parts = split("".join(source(120)))
    assert len(parts) > 5
    assert all(part.startswith("def function_") for part in parts)


def test_prose_is_cut_at_headings_and_paragraphs() -> None:
    draw = random.Random(3)
    words = ["river", "stone", "morning", "walks", "quiet", "letter", "under", "seven"]
    text = "".join(
        f"## Part {i}\n\n" + "".join(" ".join(draw.choices(words, k=12)) + ".\n" for _ in range(12)) + "\n"
        for i in range(60)
    )
    parts = split(text)
    assert len(parts) > 3
    assert all(part.startswith("## Part") for part in parts)


def test_a_decorator_stays_with_what_it_decorates() -> None:
    lines = [f"@route({i})\ndef page_{i}():\n    return {i} * {i}\n\n\n" for i in range(400)]
    assert all(part.startswith("@route") for part in split("".join(lines)))


def test_a_short_text_stays_whole() -> None:
    text = "word " * 1000
    assert split(text) == (text,)


def test_one_huge_line_is_cut_and_an_edit_in_it_stays_local() -> None:
    items = [f'"key{i}": [{i * 7}, {i * 11}]' for i in range(8000)]
    before, after = "{" + ",".join(items) + "}", "{" + ",".join([*items[:4000], '"new": 1', *items[4000:]]) + "}"
    parts = split(before)
    assert "".join(parts) == before
    assert all(estimate_tokens(part) <= 1536 * 1.4 for part in parts)  # its runs are weighed one by one
    assert sum(part not in set(parts) for part in split(after)) <= 2


def test_identical_lines_do_not_make_a_giant_part() -> None:
    parts = split("x = 1\n" * 5000)
    assert len(parts) > 5
    assert all(estimate_tokens(part) <= 1536 for part in parts)


def test_crlf_lines_are_not_cut_between_their_two_characters() -> None:
    parts = split("\r\n".join(f"line number {i}" for i in range(3000)))
    assert len(parts) > 2
    assert all(part.endswith("\r\n") for part in parts[:-1])


def test_sizes_that_cannot_be_held_are_refused() -> None:
    with pytest.raises(UsageError, match="at least twice"):
        SplitSizes(whole_tokens=100, least_tokens=60)
