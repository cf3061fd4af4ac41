from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from kvloom.errors import ModelNotFoundError
from kvloom.model.fingerprint import Adapter, HashCache, file_sha256, model_fingerprint


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "home")


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has not been written to for an hour."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights" * 1000)
    # ctime cannot be set back, so the clock goes forward instead.
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 3600 * 10**9)
    return path


def test_the_hash_is_that_of_sha256sum(settled: Path, cache: HashCache) -> None:
    seen: list[tuple[int, int]] = []
    assert file_sha256(settled, cache, lambda *at: seen.append(at)) == hashlib.sha256(settled.read_bytes()).hexdigest()
    assert seen[-1] == (7000, 7000)


def test_an_unchanged_file_is_hashed_once(settled: Path, cache: HashCache) -> None:
    first = file_sha256(settled, cache)
    assert file_sha256(settled, cache, lambda *_: pytest.fail("it was read again")) == first


def test_a_changed_file_is_hashed_again_although_size_and_time_are_the_same(settled: Path, cache: HashCache) -> None:
    first, status = file_sha256(settled, cache), settled.stat()
    settled.write_bytes(b"WEIGHTS" * 1000)
    os.utime(settled, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_sha256(settled, cache) == hashlib.sha256(b"WEIGHTS" * 1000).hexdigest() != first


def test_a_file_written_this_moment_is_not_remembered(
    tmp_path: Path, cache: HashCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "young.gguf"
    path.write_bytes(b"a")
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written + 10**9)
    file_sha256(path, cache)
    assert not cache.path.exists()


def test_a_damaged_cache_costs_only_time(settled: Path, cache: HashCache) -> None:
    expected = file_sha256(settled, cache)
    for damage in (b"", b"{", b"[1]", b'{"a": 1}', b"\xff\xfe"):
        cache.path.write_bytes(damage)
        assert file_sha256(settled, cache) == expected


def test_a_home_that_cannot_be_written_costs_only_time(settled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert file_sha256(settled, HashCache(tmp_path / "file" / "home")) == file_sha256(settled)


def test_the_cache_is_for_its_owner_alone(settled: Path, cache: HashCache) -> None:
    file_sha256(settled, cache)
    assert cache.path.stat().st_mode & 0o077 == 0
    assert [path.name for path in cache.home.iterdir()] == [cache.path.name]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        file_sha256(tmp_path / "none.gguf")


def test_everything_that_changes_what_is_computed_changes_the_fingerprint() -> None:
    a, b = "a" * 64, "b" * 64
    variants = [
        model_fingerprint([a]),
        model_fingerprint([b]),
        model_fingerprint([a, b]),
        model_fingerprint([b, a]),
        model_fingerprint([a], [Adapter(b)]),
        model_fingerprint([a], [Adapter(b, 0.5)]),
        model_fingerprint([a], rope={"freq_base": 1e4}),
        model_fingerprint([a], rope={"freq_scale": 1e4}),
        model_fingerprint([a], rope={"scaling": "yarn"}),
    ]
    assert len(set(variants)) == len(variants)
    assert all(len(variant) == 64 for variant in variants)


def test_what_changes_nothing_leaves_the_fingerprint_alone() -> None:
    plain = model_fingerprint(["a" * 64])
    assert plain == model_fingerprint(["a" * 64], (), {}) == model_fingerprint(["a" * 64], rope={"freq_base": None})
    assert model_fingerprint(["a"], rope={"x": 1, "y": 2}) == model_fingerprint(["a"], rope={"y": 2.0, "x": 1.0})
    # Stored entries are found by it in years to come.
    assert plain == "7d87f7d6b695226a1163ff43a21cb120546e16553652df7fbbff2bc1a60de4cc"
