"""`kvloom memory`: what the probes tell, as a person and a program get it."""

from __future__ import annotations

import pytest

from kvloom.memory import probe
from kvloom.memory.reading import MemoryKind, MemoryPicture, MemoryReading, ProbeFailure, ServedModel
from tests.unit.cli.conftest import Kvloom

GIB = 1024**3


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> MemoryPicture:
    """A machine with a full GPU, a card that is lost, and an Ollama server."""
    found = MemoryPicture(
        readings=(
            MemoryReading("NVIDIA H200 #0", MemoryKind.VRAM, 100 * GIB, 92 * GIB, 8 * GIB, "NVML", 3 * GIB),
            MemoryReading("RAM", MemoryKind.RAM, 64 * GIB, 16 * GIB, 48 * GIB, "psutil"),
        ),
        served=(ServedModel("ollama", "gemma3", 5 * GIB, GIB),),
        failures=(ProbeFailure("nvidia", "NVML", "GPU 1: GPU is lost"),),
    )
    monkeypatch.setattr(probe, "read_memory", lambda _=None: found)
    return found


def test_every_device_is_told_with_the_guards_level(kvloom: Kvloom, picture: MemoryPicture) -> None:
    found = kvloom("memory", "--json", loom=False).document
    card, ram = found["devices"]
    assert (card["device"], card["kind"], card["source"]) == ("NVIDIA H200 #0", "vram", "NVML")
    assert (card["total_bytes"], card["used_bytes"], card["available_bytes"]) == (100 * GIB, 92 * GIB, 8 * GIB)
    assert (card["held_bytes"], ram["held_bytes"]) == (3 * GIB, None)
    assert (card["level"], ram["level"]) == ("hard", "normal")
    assert card["safe_limit_bytes"] == 0
    assert 35 * GIB < ram["safe_limit_bytes"] < 36 * GIB
    assert card["trend_bytes_per_s"] is None
    assert found["served"] == [{"server": "ollama", "name": "gemma3", "vram_bytes": 5 * GIB, "ram_bytes": GIB}]
    assert found["failures"][0]["reason"] == "GPU 1: GPU is lost"
    assert found["thresholds"]["soft"] == 0.8


def test_a_person_sees_the_same(kvloom: Kvloom, picture: MemoryPicture) -> None:
    shown = kvloom("memory", loom=False).out
    for part in ("NVIDIA H200 #0", "100.0 GiB", "92.0 GiB (92%)", "hard", "3.0 GiB", "NVML", "gemma3", "GPU is lost"):
        assert part in shown


def test_thresholds_are_those_of_the_settings(
    kvloom: Kvloom, picture: MemoryPicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLOOM_GUARD__HARD", "0.93")
    assert kvloom("memory", "--json", loom=False).document["devices"][0]["level"] == "soft"
    assert "hard at 93%" in kvloom("memory", loom=False).out


def test_watching_gives_a_trend(kvloom: Kvloom, picture: MemoryPicture) -> None:
    found = kvloom("memory", "--watch", "0.02", "--json", loom=False).document
    assert [row["trend_bytes_per_s"] for row in found["devices"]] == [0.0, 0.0]
    assert "0 B/s" in kvloom("memory", "--watch", "0.02", loom=False).out


def test_this_machine_is_told_without_a_model(kvloom: Kvloom) -> None:
    found = kvloom("memory", "--json", loom=False).document
    assert any(row["kind"] in ("ram", "unified") and row["held_bytes"] for row in found["devices"])
