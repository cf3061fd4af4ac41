"""`bench switch`: compositions are what they are said to be, and the peer is compared at its best."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvloom
from kvloom.bench.documents import Document
from kvloom.bench.peer import PeerAnswer
from kvloom.bench.switch import FULL, QUICK, Desk, Ours, Samples, Size, Theirs, rows_of, steps_of
from kvloom.session.loom import Loom
from kvloom.types import Fidelity, Usage
from tests.tiny_gguf import TinyModel, write_tiny

DOCS = [Document(f"{letter}.txt", f"document {letter * 5}\n", 20) for letter in "abcd"]


class Numbered:
    """Questions that need no tokenizer."""

    def __init__(self) -> None:
        self.asked = 0

    def next(self) -> str:
        self.asked += 1
        return f"question {self.asked}"


@pytest.fixture(scope="module")
def loom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loom]:
    folder = tmp_path_factory.mktemp("switch")
    model = write_tiny(folder / "tiny.gguf", TinyModel(context=2048))
    with kvloom.open(model=model, context=1024, home=folder / "home") as opened:
        yield opened


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_every_case_is_the_composition_that_its_name_says(size: Size) -> None:
    whole = tuple(range(size.num_documents))
    for repeat in range(6):
        steps = {step.case: step.target for step in steps_of(size, repeat, Numbered()) if step.is_measured}
        assert len(steps["off"]) == len(whole) - 1
        assert steps["off"] == tuple(sorted(steps["off"]))
        assert steps["on-seen"] == whole
        assert sorted(steps["insert-front"]) == list(whole)
        assert steps["insert-front"][0] != 0
        assert steps["insert-front"][1:] == tuple(sorted(steps["insert-front"][1:]))
        assert sorted(steps["reorder"]) == list(whole)
        assert steps["reorder"] not in (whole, steps["insert-front"])
        assert len(steps["subset-unseen"]) == size.subset


def test_each_step_asks_a_new_question() -> None:
    questions = Numbered()
    asked = [step.question for repeat in range(3) for step in steps_of(FULL, repeat, questions)]
    assert len(set(asked)) == len(asked)


def test_a_desk_brings_the_context_to_each_composition(loom: Loom) -> None:
    desk = Desk(loom, Fidelity.SPLICE, DOCS)
    try:
        for target in [(0, 1, 2, 3), (0, 2, 3), (1, 0, 2, 3), (3, 1, 2, 0), (1, 3), (3, 1), (2,), (0, 1, 2, 3)]:
            ours = desk.ask(target, "Which one?")
            text = b"".join(loom.engine.vocabulary.token_bytes(t, special=True) for t in ours.prompt).decode()
            places = [text.find(DOCS[index].text.strip()) for index in target]
            assert -1 not in places
            assert places == sorted(places)
            assert all(DOCS[index].text.strip() not in text for index in set(range(4)) - set(target))
            assert text.count("Which one?") == 1
            assert not desk.session.history()
    finally:
        desk.close()


def test_every_fidelity_asks_the_same_token_ids(loom: Loom) -> None:
    prompts = []
    for fidelity in Fidelity:
        desk = Desk(loom, fidelity, DOCS)
        prompts.append([desk.ask(target, "Why?").prompt for target in [(0, 1, 2, 3), (3, 1), (2, 0, 1, 3)]])
        desk.close()
    assert prompts[0] == prompts[1] == prompts[2]


def test_the_time_to_the_first_token_holds_the_edits_and_the_counts_add_up(loom: Loom) -> None:
    desk = Desk(loom, Fidelity.SPLICE, DOCS)
    ours = desk.ask((3, 0), "How?")
    desk.close()
    assert ours.ttft_s >= ours.edit_s + ours.usage.weave_s > 0
    assert len(ours.prompt) == ours.usage.prompt_tokens


def test_ours_stands_beside_the_better_setting_and_exact_beside_the_exact_one() -> None:
    samples = Samples()
    for fidelity in Fidelity:
        samples.add_ours("off", fidelity, ours(0.5))
    samples.add_theirs("off", Theirs(answer(10.0), answer(1.0)))
    samples.add_theirs("off", Theirs(answer(12.0), answer(13.0)))
    samples.add_theirs("off", Theirs(answer(2.0), None))
    rows = {row.fidelity: row for row in rows_of(samples)}
    assert (rows["splice"].peer_s, rows["blend"].peer_s, rows["exact"].peer_s) == (2.0, 2.0, 10.0)
    assert rows["splice"].speedup == 4.0
    assert rows["splice"].peer == "llama.cpp server, cache-reuse 0 or 256"
    assert rows["exact"].peer == "llama.cpp server, cache-reuse 0"


def ours(seconds: float) -> Ours:
    usage = Usage(40, 30, 0, 10, 0, 0, 0, 1, Fidelity.SPLICE, seconds)
    return Ours(seconds, 0.0, usage, ())


def answer(seconds: float) -> PeerAnswer:
    return PeerAnswer(seconds, seconds, (1,), 1, 10, 0, seconds)
