"""The benchmarks' probe sees what a reply would see, and leaves the session as it was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import kvloom
from kvloom.session.loom import Loom
from kvloom.session.probe import Probe, Recompute
from kvloom.session.session import Session
from kvloom.types import Fidelity
from tests.tiny_gguf import TinyModel, write_tiny

QUESTION = "What is in them?"


@pytest.fixture(scope="module")
def loom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loom]:
    folder = tmp_path_factory.mktemp("probe")
    model = write_tiny(folder / "tiny.gguf", TinyModel(context=2048))
    with kvloom.open(model=model, context=1024, home=folder / "home") as opened:
        yield opened


@pytest.fixture(params=list(Fidelity))
def session(loom: Loom, request: pytest.FixtureRequest) -> Iterator[Session]:
    with loom.session(system="Be brief.", fidelity=request.param) as opened:
        for letter in "abc":
            opened.activate(loom.load_text(f"{letter * 3} and more of {letter}\n" * 4, name=f"{letter}.txt").id)
        yield opened


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def test_its_last_row_is_what_the_next_token_would_be_drawn_from(session: Session) -> None:
    probe = Probe(session)
    tokens = probe.question_tokens(QUESTION)
    share = session.loom.settings.blend_budget if session.fidelity is Fidelity.BLEND else 0.0
    rows, recomputed = probe.log_probs(tokens, 3, Recompute(blend_share=share), QUESTION)
    assert rows.shape == (3, session.loom.engine.vocabulary.size)
    assert np.exp(rows).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-4)
    assert (recomputed > 0) == (session.fidelity is Fidelity.BLEND)
    np.testing.assert_allclose(rows[-1], log_softmax(session.next_logits(QUESTION)), atol=2e-3)


def test_a_cold_prefill_is_what_exact_computes(session: Session) -> None:
    probe = Probe(session)
    tokens = [*session.tokens(), *probe.question_tokens(QUESTION)]
    whole, small = probe.cold_log_probs(tokens, 4), probe.cold_log_probs(tokens, 4, batch=7)
    np.testing.assert_allclose(whole, small, atol=6e-2)
    if session.fidelity is Fidelity.EXACT:
        np.testing.assert_allclose(whole[-1], log_softmax(session.next_logits(QUESTION)), atol=6e-2)


def test_recomputing_chunks_in_place_brings_splice_nearer_to_a_full_prefill(loom: Loom) -> None:
    with loom.session(system="Be brief.", fidelity=Fidelity.SPLICE) as session:
        for letter in "xyz":
            session.activate(loom.load_text(f"{letter * 3} is what {letter} was\n" * 4, name=f"{letter}.txt").id)
        probe = Probe(session)
        tokens = probe.question_tokens(QUESTION)
        full = probe.cold_log_probs([*session.tokens(), *tokens], 1)
        spliced, none = probe.log_probs(tokens, 1)
        redone, some = probe.log_probs(tokens, 1, Recompute(first_share=1.0))
        assert (none, some) == (0, sum(s.num_tokens for s in session.usage().segments if s.kind == "chunk"))
        # Each chunk behind the spliced others, so nearer, not equal.
        assert np.abs(spliced - full).max() > 2 * np.abs(redone - full).max()


def test_probing_leaves_session_and_device_as_they_were(session: Session) -> None:
    probe = Probe(session)
    session.warm()
    before = session.tokens(), session.usage(), session.next_logits(QUESTION), session.loom.engine.used_cells()
    tokens = probe.question_tokens(QUESTION)
    probe.log_probs(tokens, 2, Recompute(first_share=0.2))
    probe.logits_behind(tokens)
    probe.cold_log_probs(tokens, 1)
    assert probe.bare_tokens_per_s(QUESTION, 8) > 0
    assert probe.plan_s() > 0
    after = session.tokens(), session.usage(), session.next_logits(QUESTION), session.loom.engine.used_cells()
    assert before[0] == after[0]
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[2], after[2])
    assert before[3] == after[3]


def test_the_bare_loop_says_what_a_greedy_reply_says(loom: Loom) -> None:
    from kvloom.engine.llamacpp import LlamaCppEngine
    from kvloom.engine.llamacpp.bare import bare_greedy
    from kvloom.types import SequenceId

    engine = loom.engine
    assert isinstance(engine, LlamaCppEngine)
    with loom.session(system="Be brief.") as session:
        reply = session.generate(QUESTION, max_tokens=12, temperature=0.0)
        tokens = session.tokens()
        said = tokens[reply.usage.prompt_tokens :]
        assert len(said) > 2
        with loom.device.lock, loom.device.scratch() as scratch:
            engine.copy(SequenceId(loom.device.holding(session.id).sequence), scratch, 0, reply.usage.prompt_tokens)
            chosen, seconds = bare_greedy(engine, scratch, said[0], len(said) - 1)
    assert chosen == said[1:]
    assert seconds > 0
