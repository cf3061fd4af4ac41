"""Summaries of documents with a scripted model: everything is read, an edit computes its own branches only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from kvloom.errors import CancelledError, UsageError
from kvloom.reduce.asking import MemoryResults
from kvloom.reduce.summarize import Watch
from kvloom.reduce.tree import Node, TextSource, TreeSummary, summarize_tree, within_words
from kvloom.reduce.truncate import Keep, truncate
from kvloom.session.long_texts import split_by_content
from tests.unit.reduce.counts import by_words
from tests.unit.reduce.models import Reply, ScriptedModel, told_facts

NUM_PARAGRAPHS = 400
RAMBLING = "\n".join(f"- Ramble {number} goes on" for number in range(500))


def paragraph(number: int, word: str = "wrote") -> str:
    return f"In chapter {number} Ann {word} of fact{number}. " + f"It was said on page {number * 3} that so it is. " * 3


def book(num_paragraphs: int = NUM_PARAGRAPHS, changed: Mapping[int, str] = MappingProxyType({})) -> str:
    made = [changed.get(number, paragraph(number)) for number in range(num_paragraphs)]
    return "\n\n".join(made) + "\n"


def summed(scripted: ScriptedModel, *texts: str, results: MemoryResults | None = None, words: int = 60) -> TreeSummary:
    sources = [TextSource(f"book{number}.md", text) for number, text in enumerate(texts)]
    return summarize_tree(sources, scripted.model, split_by_content, words=words, results=results)


def leaves(node: Node) -> list[Node]:
    return [leaf for child in node.children for leaf in leaves(child)] if node.children else [node]


def depth(node: Node) -> int:
    return 1 + max(map(depth, node.children), default=0)


def test_a_short_text_takes_one_prompt() -> None:
    scripted = ScriptedModel(told_facts)
    found = summed(scripted, paragraph(7))
    assert (found.text, found.num_asked) == ("- Ann wrote of fact7.", 1)
    assert "at most 60 words" in scripted.prompts[0]
    assert (found.root.first_line, found.root.last_line, found.root.children) == (1, 1, ())
    assert not found.is_fallback


def test_of_a_long_text_every_part_is_read_and_every_note_is_in_the_tree() -> None:
    scripted = ScriptedModel(told_facts)
    found = summed(scripted, book())
    shown = "".join(scripted.prompts)
    assert all(f"fact{number}." in shown for number in range(NUM_PARAGRAPHS))
    assert depth(found.root) >= 3
    assert found.num_asked == len(scripted.prompts) == found.root.num_nodes
    parts = leaves(found.root)
    assert (parts[0].first_line, parts[-1].last_line) == (1, book().count("\n"))
    for before, after in itertools.pairwise(parts):
        assert before.last_line <= after.first_line <= before.last_line + 2
    assert not found.is_fallback


def test_no_prompt_is_more_than_the_window() -> None:
    scripted = ScriptedModel(told_facts, window_tokens=500)
    summed(scripted, book())
    for prompt, limit in zip(scripted.prompts, scripted.limits, strict=True):
        assert scripted.model.count(prompt) + limit <= 500


def test_the_same_text_again_computes_nothing() -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    first = summed(scripted, book(), results=results)
    again = summed(scripted, book(), results=results)
    assert (again.num_asked, again.text) == (0, first.text)
    assert not any(node.is_new for node in leaves(again.root))


@pytest.mark.parametrize("at", [0, 57, 200, NUM_PARAGRAPHS - 1])
def test_an_edit_of_one_paragraph_computes_only_its_branches(at: int) -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    first = summed(scripted, book(), results=results)
    num_before = len(scripted.prompts)
    edited = book(changed={at: paragraph(9999, "forgot")})
    found = summed(scripted, edited, results=results)
    fresh = scripted.prompts[num_before:]
    changed = [leaf for leaf in leaves(found.root) if leaf.is_new]
    assert 1 <= len(changed) <= 2
    assert any("fact9999" in prompt for prompt in fresh)
    # A level gets a new node above each changed one, and where a border moved its neighbours'.
    assert len(fresh) == found.num_asked <= len(changed) + 3 * (depth(found.root) - 1)
    assert len(fresh) < first.num_asked / 4


@pytest.mark.parametrize("at", [0, 200])
def test_a_paragraph_more_or_less_moves_no_other_branch(at: int) -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    first = summed(scripted, book(), results=results)
    longer = summed(scripted, book(changed={at: paragraph(at) + "\n\n" + paragraph(8888)}), results=results)
    shorter = summed(scripted, book(changed={at: ""}), results=results)
    assert 0 < longer.num_asked < first.num_asked / 4
    assert 0 < shorter.num_asked < first.num_asked / 4


def test_a_run_that_was_stopped_goes_on_where_it_was() -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    stop = Watch(is_cancelled=lambda: len(scripted.prompts) >= 10)
    with pytest.raises(CancelledError, match="run it again to go on"):
        summarize_tree(
            [TextSource("b", book())], scripted.model, split_by_content, words=60, results=results, watch=stop
        )
    assert len(scripted.prompts) == 10
    found = summarize_tree([TextSource("b", book())], scripted.model, split_by_content, words=60, results=results)
    assert found.num_found == 10
    assert len(scripted.prompts) == len(set(scripted.prompts))


def test_documents_have_a_branch_each_and_another_one_leaves_theirs_alone() -> None:
    results, scripted = MemoryResults(), ScriptedModel(told_facts)
    texts = [book(60), book(80).replace("Ann", "Bob"), "A short note on fact3 by Cleo, who has more to say on it."]
    first = summed(scripted, *texts, results=results)
    assert [child.name for child in first.root.children] == ["book0.md", "book1.md", "book2.md"]
    assert first.root.name == ""
    last = scripted.prompts[-1]
    assert all(f"book{number}.md:\n" in last for number in range(3))
    num_before = len(scripted.prompts)
    summed(scripted, *texts, "Another text on fact5, and what else there is to be said of it.", results=results)
    assert len(scripted.prompts) - num_before <= 2


def test_documents_of_one_name_stay_apart() -> None:
    scripted = ScriptedModel(told_facts)
    sources = [TextSource("README.md", "On fact1, and what it means."), TextSource("README.md", "On fact2, and why.")]
    found = summarize_tree(sources, scripted.model, split_by_content)
    assert [child.name for child in found.root.children] == ["README.md", "README.md (2)"]


def test_progress_ends_with_all_steps_done() -> None:
    steps: list[tuple[int, int]] = []
    scripted = ScriptedModel(told_facts)
    watch = Watch(lambda done, total: steps.append((done, total)))
    summarize_tree([TextSource("b", book())], scripted.model, split_by_content, words=60, watch=watch)
    assert steps[-1][0] == steps[-1][1] == len(scripted.prompts)
    assert all(done <= total for done, total in steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


BAD: dict[str, Reply] = {
    "nothing": lambda _prompt: "",
    "special tokens": lambda _prompt: "<|im_end|><|im_start|>",
    "an echo": lambda prompt: prompt,
    "the instruction": lambda _prompt: "Sum up this part of a longer text in short notes.",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_model_that_gives_nothing_is_stood_in_for_by_first_sentences(bad: Reply) -> None:
    scripted = ScriptedModel(bad)
    found = summed(scripted, book(40))
    assert found.is_fallback
    assert found.text
    assert "fact" in found.text
    assert found.num_words <= 60


def test_a_useless_reply_is_asked_for_again_in_other_words() -> None:
    scripted = ScriptedModel(lambda prompt: "" if prompt.startswith(("<text>", "<notes>")) else told_facts(prompt))
    found = summed(scripted, book(40))
    assert not found.is_fallback
    assert found.num_asked == 2 * found.root.num_nodes


def test_a_note_that_was_cut_off_is_ended_by_first_sentences() -> None:
    def reply(prompt: str) -> str:
        return truncate(RAMBLING, scripted.limits[-1], by_words, Keep.HEAD, "").text if "fact" in prompt else "-"

    scripted = ScriptedModel(reply)
    found = summed(scripted, book(40))
    for leaf in leaves(found.root):
        assert leaf.is_fallback
        assert leaf.text.startswith("- Ramble 0")
        assert re.search(r"\n- In chapter \d+ Ann wrote of fact\d+\.$", leaf.text), "of its end"


def test_tags_of_the_prompt_are_no_notes() -> None:
    scripted = ScriptedModel(lambda prompt: f"<text>\n{told_facts(prompt)}\n</text>")
    found = summed(scripted, book(40))
    assert all("<" not in leaf.text and "fact" in leaf.text for leaf in leaves(found.root))


def test_a_summary_has_no_more_words_than_asked_for() -> None:
    scripted = ScriptedModel(lambda prompt: "It is a book by Ann. " * 100)
    found = summed(scripted, book(40), words=20)
    assert found.num_words <= 20
    assert found.text.endswith("Ann.")


def test_words_are_cut_at_the_end_of_a_sentence() -> None:
    assert within_words("One two. Three four. Five six.", 5) == "One two. Three four."
    assert within_words("One two. Three", 10, is_cut_off=True) == "One two."
    assert within_words("One two three four", 2) == "One two…"
    assert within_words("It costs 3.50 in all. Yes it does.", 5) == "It costs 3.50 in all."
    assert within_words("今日は。 明日も。 そう", 2) == "今日は。 明日も。"
    assert within_words("short", 5) == "short"


def test_more_words_than_the_window_has_room_for_are_refused_with_the_most() -> None:
    scripted = ScriptedModel(told_facts)
    with pytest.raises(UsageError, match=r"makes (\d+) words at most") as caught:
        summed(scripted, book(40), words=5000)
    most = int(str(caught.value).split(" words at most")[0].split()[-1])
    assert summed(scripted, book(40), words=most).text
    with pytest.raises(UsageError, match=r"leaves .* give a larger context"):
        summed(ScriptedModel(told_facts, window_tokens=100), book(40))
    with pytest.raises(UsageError, match="10 or more"):
        summed(scripted, book(40), words=3)


@pytest.mark.parametrize("texts", [(), ("",), (" \n\n", "\t")])
def test_nothing_to_summarize_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="nothing to summarize"):
        summed(ScriptedModel(told_facts), *texts)
