"""`bench switch`: the context is what each step asks for, the peer is compared at its best, a part can be measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvloom
from kvloom.bench.documents import Document
from kvloom.bench.peer import PeerAnswer
from kvloom.bench.switch import Desk, Only, Ours, Samples, Theirs, rows_of
from kvloom.errors import UsageError
from kvloom.session.loom import Loom
from kvloom.types import Fidelity, Usage
from tests.tiny_gguf import TinyModel, write_tiny

DOCS = [Document(f"{letter}.txt", f"document {letter * 5}\n", 20) for letter in "abcd"]


@pytest.fixture(scope="module")
def loom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loom]:
    folder = tmp_path_factory.mktemp("switch")
    model = write_tiny(folder / "tiny.gguf", TinyModel(context=2048))
    with kvloom.open(model=model, context=1024, home=folder / "home") as opened:
        yield opened


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


def test_a_part_is_measured_in_the_order_of_the_whole_and_says_what_is_missing() -> None:
    only = Only.of("subset-unseen, off", "exact,splice")
    assert only.cases == ("off", "subset-unseen")
    assert only.fidelities == (Fidelity.SPLICE, Fidelity.EXACT)
    assert only.left_out == (
        "full-prefill", "on-seen", "subset-in-order", "insert-front", "reorder", "blend",
    )  # fmt: skip
    assert only.num_measurements(3) == 2 * 3 * (2 + 1)
    assert Only.of(None, None).left_out == ()


@pytest.mark.parametrize(("cases", "fidelity"), [("reordered", None), (None, "splice,fast"), ("", None)])
def test_an_unknown_part_is_refused_with_the_names_that_there_are(cases: str | None, fidelity: str | None) -> None:
    with pytest.raises(UsageError, match=r"choose among .*(subset-in-order|blend)"):
        Only.of(cases, fidelity)


def ours(seconds: float) -> Ours:
    usage = Usage(40, 30, 0, 10, 0, 0, 0, 1, Fidelity.SPLICE, seconds)
    return Ours(seconds, 0.0, usage, ())


def answer(seconds: float) -> PeerAnswer:
    return PeerAnswer(seconds, seconds, (1,), 1, 10, 0, seconds)
