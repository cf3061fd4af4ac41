"""The peer: llama.cpp's own server in a child process that never outlives its owner."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kvloom.bench.peer import Peer, PeerSettings
from kvloom.errors import EngineError
from tests.tiny_gguf import TinyModel, write_tiny

pytest.importorskip("xllamacpp", reason="the peer is a dependency of the benchmarks only")

PROMPT = list(range(5, 205))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PeerSettings:
    folder = tmp_path_factory.mktemp("peer")
    model = write_tiny(folder / "tiny.gguf", TinyModel(context=1024))
    return PeerSettings(str(model), n_ctx=1024, threads=1, threads_batch=1, slot_save_path=str(folder))


def test_the_server_computes_a_prompt_once_and_then_takes_it_from_its_cache(settings: PeerSettings) -> None:
    with Peer(settings) as peer:
        cold, again = peer.complete(PROMPT), peer.complete(PROMPT)
        longer = peer.complete([*PROMPT, 7, 8, 9], num_predict=4)
    assert (cold.computed_tokens, cold.cached_tokens) == (len(PROMPT), 0)
    assert again.cached_tokens == len(PROMPT) - 1
    assert cold.tokens == again.tokens
    assert longer.computed_tokens == 3
    assert longer.num_predicted == 4
    assert longer.total_s > longer.ttft_s > 0
    assert longer.tokens_per_s > 0
    # What the client sees is what the server says it spent, and a little more.
    assert cold.ttft_s >= cold.server_prompt_s > 0


def test_a_server_that_would_compute_too_much_is_not_waited_for(settings: PeerSettings) -> None:
    with Peer(settings) as peer:
        peer.complete(PROMPT)
        assert peer.complete_below(list(reversed(PROMPT)), 100) is None
        peer.complete(PROMPT)
        short = peer.complete_below([*PROMPT, 7, 8, 9], 100)
    assert short is not None
    assert short.computed_tokens == 3


def test_a_saved_slot_is_taken_up_by_another_server(settings: PeerSettings) -> None:
    with Peer(settings) as peer:
        told = peer.complete(PROMPT)
        assert peer.save_slot("slot.bin") >= len(PROMPT)
    with Peer(settings) as peer:
        assert peer.restore_slot("slot.bin") > 0
        answer = peer.complete([*PROMPT, 7, 8, 9])
        assert answer.computed_tokens == 3
        assert peer.complete(PROMPT).tokens == told.tokens


def test_the_child_is_gone_when_the_owner_fails(settings: PeerSettings) -> None:
    seen = []

    def use() -> None:
        with Peer(settings) as peer:
            seen.append(peer.pid)
            assert psutil.pid_exists(peer.pid)
            raise RuntimeError("the measurement failed")

    with pytest.raises(RuntimeError):
        use()
    assert not psutil.pid_exists(seen[0])


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    missing = PeerSettings(str(tmp_path / "missing.gguf"), n_ctx=512, threads=1, threads_batch=1)
    with pytest.raises(EngineError, match=r"ended with code 1 while it loaded .*missing\.gguf"):
        Peer(missing)


def test_a_request_that_the_server_refuses_is_an_error_with_its_words(settings: PeerSettings) -> None:
    with Peer(settings) as peer, pytest.raises(EngineError, match="the peer answered 400"):
        peer.complete([5] * 2000)
