"""Another program's `context:` group in our file: understood key by key, its mistakes named where they stand."""

from __future__ import annotations

import pytest

from kvloom.config import Paths, load_settings
from kvloom.errors import ConfigError
from kvloom.types import KVType

WHOLE = """\
context:
  targetSize: 8192
  minSize: 1024
  maxSize: 32768
  autoSize: true
  vramBuffer: 256
  kvQuantization: q8_0
  compression:
    enabled: false
    threshold: 0.7
    strategy: summarize
    preserveRecent: 2048
    summaryMaxTokens: 512
  snapshots:
    enabled: false
    maxCount: 3
    autoCreate: false
    autoThreshold: 0.9
"""


def write(where: Paths, text: str) -> None:
    where.config_file.parent.mkdir(parents=True, exist_ok=True)
    where.config_file.write_text(text, encoding="utf-8")


def test_every_key_has_its_counterpart(where: Paths) -> None:
    write(where, WHOLE)
    settings = load_settings()
    assert (settings.context_target, settings.context_min, settings.context_max) == (8192, 1024, 32768)
    assert settings.context_auto
    assert settings.memory_reserve_bytes == 256 * 1024**2
    assert settings.kv_type is KVType.Q8_0
    compression, snapshots = settings.compression, settings.snapshots
    assert (compression.enabled, compression.threshold, compression.strategy) == (False, 0.7, "summarize")
    assert (compression.preserve_recent, compression.summary_max_tokens) == (2048, 512)
    assert (snapshots.enabled, snapshots.max_count) == (False, 3)
    assert (snapshots.auto_create, snapshots.auto_threshold) == (False, 0.9)


def test_it_stands_beside_keys_of_ours_and_gives_way_to_the_environment(
    where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        where, "compression:\n  background: false\ncontext:\n  compression:\n    threshold: 0.6\n  targetSize: 4096\n"
    )
    assert (load_settings().compression.background, load_settings().compression.threshold) == (False, 0.6)
    monkeypatch.setenv("KVLOOM_COMPRESSION__THRESHOLD", "0.5")
    monkeypatch.setenv("OLLM_CONTEXT_SIZE", "2048")
    settings = load_settings()
    assert (settings.compression.background, settings.compression.threshold) == (False, 0.5)
    assert settings.context_target == 2048


def test_a_buffer_may_carry_a_unit(where: Paths) -> None:
    write(where, "context:\n  vramBuffer: 1GiB\n")
    assert load_settings().memory_reserve_bytes == 1024**3


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("context:\n  targetsize: 1\n", 2, "`context.targetsize`; did you mean `targetSize`?"),
        ("context:\n  target_size: 1\n", 2, "did you mean `targetSize`?"),
        ("context:\n  zzz: 1\n", 2, "valid names: autoSize, compression, kvQuantization"),
        ("context:\n  compression:\n    treshold: 1\n", 3, "did you mean `threshold`?"),
        ("model: m\ncontext:\n  snapshots:\n    count: 1\n", 4, "did you mean `maxCount`?"),
        ("context:\n  compression: true\n", 2, "`context.compression` is a group; expected enabled, preserveRecent"),
        ("context:\n  targetSize: many\n", 2, "`context.targetSize`: expected a number of tokens"),
        ("context:\n  kvQuantization: q8\n", 2, "`context.kvQuantization`: Input should be 'f16', 'q8_0' or 'q4_0'"),
        ("context:\n  vramBuffer: true\n", 2, "`context.vramBuffer`"),
        (
            "context:\n  minSize: 4096\n  maxSize: 2048\n",
            3,
            "`context.maxSize`, `context.minSize`: the smallest window",
        ),
        ("context_min: 100\ncontext:\n  minSize: 200\n", 3, "the same setting as `context_min` in line 1"),
        ("compression: 3\ncontext:\n  compression:\n    enabled: true\n", 1, "`compression` is a group"),
    ],
)
def test_a_mistake_in_it_names_file_line_and_the_nearest_name(where: Paths, text: str, line: int, hint: str) -> None:
    write(where, text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert f"{where.config_file}, line {line}" in str(caught.value)
    assert hint in str(caught.value)


def test_a_value_from_elsewhere_is_not_blamed_on_the_file(where: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write(where, "context:\n  targetSize: 4096\n")
    monkeypatch.setenv("OLLM_CONTEXT_SIZE", "few")
    with pytest.raises(ConfigError, match="environment variable OLLM_CONTEXT_SIZE: `context_target`"):
        load_settings()
