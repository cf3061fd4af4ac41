"""What the status box reads beside the window: which memory counts, what the guard says, whether compression waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import kvloom
from kvloom.cli.context_verbs import POLICY_TEXTS, policies
from kvloom.cli.standing import AutoCompress, read_standing
from kvloom.config.groups import PolicyName
from kvloom.context.policies.base import policy_names
from kvloom.memory.monitor import MemoryMonitor
from kvloom.memory.reading import MemoryKind, MemoryPicture, MemoryReading
from kvloom.session.loom import Loom
from tests.unit.session.fakes import fake_loom

GIB = 1024**3
RAM = MemoryReading("ram", MemoryKind.RAM, 16 * GIB, 4 * GIB, 12 * GIB, "test")
VRAM = MemoryReading("gpu 0", MemoryKind.VRAM, 8 * GIB, 7 * GIB, GIB, "test")


def test_every_policy_that_there_is_can_be_chosen_in_a_chat_and_in_the_settings() -> None:
    assert policies() == policy_names() == kvloom.policies()
    assert set(get_args(PolicyName)) == set(policies()) == set(POLICY_TEXTS)


@pytest.fixture
def loom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loom]:
    """Its monitor does not run: what the guard sees is what a test tells it."""
    monkeypatch.setattr(MemoryMonitor, "start", lambda _monitor: None)
    with fake_loom(tmp_path / "home", guard={"enabled": True}) as opened:
        opened.policy = "adaptive"
        yield opened


def pictured(monkeypatch: pytest.MonkeyPatch, *readings: MemoryReading) -> None:
    """What every loom reads off this machine from now on."""
    monkeypatch.setattr(Loom, "memory", lambda _loom: MemoryPicture(readings))


def test_the_memory_of_the_gpu_counts_where_there_is_one(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    pictured(monkeypatch, VRAM, RAM)
    assert read_standing(loom, loom.session()).memory == (VRAM,)


def test_without_a_gpu_it_is_the_hosts(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    pictured(monkeypatch, RAM)
    assert read_standing(loom, loom.session()).memory == (RAM,)


def test_a_model_that_is_kept_off_the_gpu_sits_in_the_hosts_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured(monkeypatch, VRAM, RAM)
    with fake_loom(tmp_path / "home", n_gpu_layers=0) as loom:
        assert read_standing(loom, loom.session()).memory == (RAM,)


def test_nothing_could_be_read_and_the_rest_is_told_still(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    pictured(monkeypatch)
    session = loom.session()
    session.snapshot()
    found = read_standing(loom, session)
    assert found.memory == ()
    assert found.num_snapshots == 1


def test_the_real_machine_has_a_memory(loom: Loom) -> None:
    [host, *_] = read_standing(loom, loom.session()).memory
    assert 0 < host.used_bytes <= host.total_bytes


def test_the_guard_tells_its_level_what_still_fits_and_what_it_did(loom: Loom, monkeypatch: pytest.MonkeyPatch) -> None:
    pictured(monkeypatch, RAM)
    session = loom.session()
    loom.guard.on_picture(MemoryPicture((replace(RAM, available_bytes=RAM.total_bytes // 2),)))
    calm = read_standing(loom, session)
    assert calm.guard == "normal"
    assert calm.safe_limit_tokens is not None
    assert calm.safe_limit_tokens > 0
    assert calm.interventions == ()
    loom.guard.on_picture(MemoryPicture((replace(RAM, available_bytes=RAM.total_bytes // 6),)))
    loom.guard.wait()
    low = read_standing(loom, session)
    assert (low.guard, low.safe_limit_tokens) == ("soft", 0)
    assert "normal → soft" in low.interventions[-1]


def test_a_guard_that_is_switched_off_says_so(tmp_path: Path) -> None:
    with fake_loom(tmp_path / "home", guard={"enabled": False}) as loom:
        found = read_standing(loom, loom.session())
        assert (found.guard, found.safe_limit_tokens) == ("off", None)


def test_compression_is_off_by_setting_or_by_policy_or_armed(loom: Loom, tmp_path: Path) -> None:
    session = loom.session()
    assert read_standing(loom, session).auto_compress is AutoCompress.ARMED
    session.policy = "stop"
    assert read_standing(loom, session).auto_compress is AutoCompress.BY_POLICY
    with fake_loom(tmp_path / "other", compression={"enabled": False}) as other:
        assert read_standing(other, other.session()).auto_compress is AutoCompress.OFF
