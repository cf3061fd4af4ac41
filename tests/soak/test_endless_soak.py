"""1,000 turns in a window of 2,048 tokens under every policy: no error, no compaction loop, memory that stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kvloom
from kvloom.bench.facts import facts
from kvloom.config import load_settings
from kvloom.context.policies.base import policy_names
from kvloom.engine.llamacpp import LlamaCppEngine
from tests.soak.memory import own_bytes
from tests.unit.session.fakes import fake_loom

TURNS = int(os.environ.get("SOAK_TURNS", "1000"))
WARM_TURNS = TURNS // 4


@pytest.mark.parametrize("name", [name for name in policy_names() if name != "stop"])
def test_a_conversation_of_1000_turns_goes_on_in_constant_memory(tmp_path: Path, name: str) -> None:
    with fake_loom(tmp_path / "home", context=2048, reserve_tokens=128, ram_budget_bytes=1_000_000) as loom:
        chat = loom.session()
        chat.policy = name
        sizes = []
        for number in range(TURNS):
            chat.generate(f"turn {number}: {'some words ' * (number % 9)}", max_tokens=20, temperature=0.0)
            assert chat.usage().used <= 2048
            if number >= WARM_TURNS and number % 50 == 0:
                chat.wait_for_compression(30)
                sizes.append(own_bytes())
        compressions = sum(record.op.startswith("compress") for record in loom.log.manifests(chat.id))
    assert max(sizes) <= 1.05 * sizes[0], [size >> 20 for size in sizes]
    assert compressions < TURNS / 4, "every compression has to make room for several turns"


def state_buffer_bytes(loom: kvloom.Loom) -> int:
    """What the engine keeps to read and set states in: as large as the largest state so far, whenever that comes."""
    assert isinstance(loom.engine, LlamaCppEngine)
    return int(loom.engine._state_buffer.size + loom.engine._writer._buffer.size)


REAL_TURNS = int(os.environ.get("SOAK_REAL_TURNS", "100"))
REAL_WARM = REAL_TURNS // 2
"""The window and the RAM for entries are full by then."""


@pytest.mark.parametrize("name", [name for name in policy_names() if name != "stop"])
def test_100_turns_of_a_real_model_go_on_in_constant_memory(tmp_path: Path, smollm2_path: Path, name: str) -> None:
    sizes = []
    # RAM for entries that the warm-up fills: what grows behind that is a leak.
    settings = load_settings(
        {"model": str(smollm2_path), "context": 2048, "reserve_tokens": 128, "ram_budget_bytes": 32_000_000,
         "compression": {"enabled": name == "adaptive"}, "guard": {"enabled": False}}
    )  # fmt: skip
    with kvloom.open(settings=settings, home=tmp_path / "home") as loom:
        chat = loom.session()
        chat.policy = name
        for number, fact in enumerate(facts(REAL_TURNS)):
            reply = chat.generate(f"{fact.text} Tell me about such things.", max_tokens=24, temperature=0.0)
            assert reply.usage.completion_tokens
            assert chat.usage().used <= 2048
            chat.wait_for_compression(120)  # the next question would come first, and again, and again
            if number >= REAL_WARM and number % 5 == 0:
                buffers = state_buffer_bytes(loom)
                assert buffers <= 2 * 2048 * loom.engine.layout.token_bytes * 1.01
                sizes.append(own_bytes() - buffers)
        compressions = sum(record.op.startswith("compress") for record in loom.log.manifests(chat.id))
        print(f"{name}: {REAL_TURNS} turns, {compressions} compressions, {sizes[0] >> 20} … {max(sizes) >> 20} MiB")
    assert max(sizes) <= 1.05 * sizes[0], [size >> 20 for size in sizes]
    assert compressions < REAL_TURNS / 4, "every compression has to make room for several turns"
