"""The disk tier: what is special about files, restarts, other processes and full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from kvloom.errors import EntryCorruptError, StoreError, StoreFullError, StoreReadOnlyError
from kvloom.kv.codec import Codec
from kvloom.kv.disk import DiskCoding, DiskTier
from kvloom.kv.disk_files import as_store_error
from kvloom.types import Entry, Lineage
from tests.unit.kv.entries import ROPE, entry_of, same

BUDGET = 1 << 20
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "home" / "kv"


@pytest.fixture
def tier(directory: Path) -> Iterator[DiskTier]:
    made = DiskTier(directory, BUDGET)
    yield made
    made.close()


def files_in(directory: Path) -> list[str]:
    """Names of everything but the lock files."""
    return sorted(p.name for p in directory.rglob("*") if p.is_file() and p.name != ".lock" and "owner" not in p.name)


def test_an_entry_lies_under_its_id_closed_to_other_users(tier: DiskTier, directory: Path) -> None:
    entry = entry_of(1)
    tier.put(entry)
    path = directory / entry.id[:2] / f"{entry.id}.kve"
    assert path == tier.path_of(entry.id)
    assert files_in(directory) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    assert {p.stat().st_mode & 0o777 for p in (path.parent, directory, directory.parent)} == {0o700}


def put_long_ago(tier: DiskTier, entry: Entry, number: int) -> None:
    """As if time had passed since it was put: a file system may count in ticks that hold several."""
    os.utime(tier.path_of(entry.id), ns=(10**18 + number, 10**18 + number))


def test_entries_and_their_order_of_use_survive_a_restart(tier: DiskTier, directory: Path) -> None:
    entries = [entry_of(i) for i in range(3)]
    for number, entry in enumerate(entries):
        tier.put(entry)
        put_long_ago(tier, entry, number)
    tier.get(entries[0].id)
    tier.close()
    again = DiskTier(directory, BUDGET)
    assert again.ids() == [entries[1].id, entries[2].id, entries[0].id]
    assert again.nbytes == tier.nbytes > 0
    assert all(same(again.get(e.id), e) for e in entries)


def test_a_corrupt_file_is_reported_then_deleted_unless_healed(tier: DiskTier) -> None:
    entry = entry_of(1)
    tier.put(entry)
    path = tier.path_of(entry.id)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EntryCorruptError):
        tier.get(entry.id)
    path.write_bytes(whole)
    assert not tier.delete_corrupt(entry.id)
    assert same(tier.get(entry.id), entry)
    path.write_bytes(b"")
    assert tier.delete_corrupt(entry.id)
    assert not path.exists()
    assert tier.get(entry.id) is None


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
def test_a_corrupt_file_is_replaced_by_the_next_put(tier: DiskTier, damage: bytes) -> None:
    entry = entry_of(1)
    tier.put(entry)
    tier.path_of(entry.id).write_bytes(damage)
    tier.put(entry)
    assert same(tier.get(entry.id), entry)


def test_verify_names_every_fault_and_deletes_nothing(tier: DiskTier) -> None:
    entries = [entry_of(i) for i in range(4)]
    for entry in entries:
        tier.put(entry)
    whole = tier.path_of(entries[1].id).read_bytes()
    tier.path_of(entries[0].id).write_bytes(whole)
    tier.path_of(entries[1].id).write_bytes(whole[:-1])
    tier.path_of(entries[2].id).write_bytes(whole[:3000] + b"?" + whole[3001:])
    results = {r.entry_id: r for r in tier.verify()}
    assert [results[e.id].fault for e in entries] == ["foreign", "truncated", "checksum", ""]
    assert [results[e.id].is_whole for e in entries] == [False, False, False, True]
    assert all(r.nbytes > 0 for r in results.values())
    assert len(tier.ids()) == 4


def test_a_lossy_codec_is_used_for_entries_computed_alone_only(directory: Path) -> None:
    tier = DiskTier(directory, BUDGET, DiskCoding(Codec.LOW4, (ROPE,)))
    alone, exact = entry_of(1, 40), entry_of(2, 40, lineage=Lineage("ab" * 32))
    tier.put(alone)
    tier.put(exact)
    assert tier.size_of(alone.id) < 0.5 * tier.size_of(exact.id)
    got = tier.get(alone.id)
    assert got is not None
    assert got.is_lossy
    assert same(tier.get(exact.id), exact)
    tier.put(alone)
    got = tier.get(alone.id)
    assert got is not None
    assert got.is_lossy
    tier.close()


def test_without_the_rope_of_its_model_an_entry_is_stored_lossless(directory: Path) -> None:
    tier = DiskTier(directory, BUDGET, DiskCoding(Codec.LOW4))
    tier.put(entry_of(1, 40))
    assert same(tier.get(entry_of(1, 40).id), entry_of(1, 40))
    tier.add_ropes([ROPE])
    tier.put(entry_of(2, 40))
    got = tier.get(entry_of(2, 40).id)
    assert got is not None
    assert got.is_lossy
    tier.close()


def put_range(directory: str, first: int, stop: int, budget: int) -> None:
    """In a child process: put entries, get each once."""
    tier = DiskTier(Path(directory), budget)
    for number in range(first, stop):
        tier.put(entry_of(number, 32))
        got = tier.get(entry_of(number, 32).id)
        assert got is None or same(got, entry_of(number, 32))
    tier.close()


def test_what_another_process_adds_and_deletes_is_seen(tier: DiskTier, directory: Path) -> None:
    tier.put(entry_of(0))
    other = DiskTier(directory, BUDGET)
    other.put(entry_of(1))
    other.delete(entry_of(0).id)
    assert tier.ids() == [entry_of(1).id]
    assert tier.get(entry_of(0).id) is None
    assert same(tier.get(entry_of(1).id), entry_of(1))
    shutil.rmtree(directory / entry_of(1).id[:2])
    assert tier.ids() == []
    assert tier.nbytes == 0
    other.close()


def test_two_processes_on_one_folder_stay_within_the_budget(directory: Path) -> None:
    entry_of(0, 32)
    budget = 8 * 64 * 1024
    children = [SPAWN.Process(target=put_range, args=(str(directory), i * 20, i * 20 + 20, budget)) for i in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    tier = DiskTier(directory, budget)
    assert 0 < tier.nbytes <= budget
    assert tier.nbytes == sum(p.stat().st_size for p in directory.rglob("*.kve"))
    assert len(tier.ids()) >= 6
    assert all(result.is_whole for result in tier.verify())
    assert [name for name in files_in(directory) if not name.endswith(".kve")] == []
    tier.close()


def test_eviction_follows_what_other_processes_used(directory: Path) -> None:
    budget = 4 * 64 * 1024
    tier, other = DiskTier(directory, budget), DiskTier(directory, budget)
    entries = [entry_of(i, 32) for i in range(6)]
    for entry in entries[:4]:
        tier.put(entry)
    other.get(entries[0].id)
    tier.put(entries[4])
    tier.put(entries[5])
    assert tier.contains(entries[0].id)
    assert not tier.contains(entries[1].id)
    tier.close()
    other.close()


def hold_a_half_written_file(directory: str, ready: Event) -> None:
    """In a child process: begin to write an entry, and stay there until killed."""
    tier = DiskTier(Path(directory), BUDGET)

    def stall(_: object) -> None:
        ready.set()
        threading.Event().wait()

    os.fsync = stall  # type: ignore[assignment]  # takes what it is given and never returns
    tier.put(entry_of(1))


def test_half_written_files_are_removed_when_their_writer_is_dead_not_before(directory: Path) -> None:
    ready = SPAWN.Event()
    tier = DiskTier(directory, BUDGET)
    tier.put(entry_of(2))
    (directory / entry_of(1).id[:2]).mkdir(mode=0o700)  # so that the first sync of the child is the file's
    child = SPAWN.Process(target=hold_a_half_written_file, args=(str(directory), ready))
    child.start()
    assert ready.wait(60)
    half = list(directory.glob("*/.tmp-*"))
    assert len(half) == 1
    DiskTier(directory, BUDGET).close()
    assert half[0].exists()
    child.kill()
    child.join()
    again = DiskTier(directory, BUDGET)
    assert not half[0].exists()
    assert again.ids() == [entry_of(2).id]
    again.close()
    tier.close()
    assert files_in(directory) == [f"{entry_of(2).id}.kve"]
    assert not list(directory.glob(".owner-*"))


def put_as_nobody(directory: str, number: int) -> None:
    """In a child process, without root's rights: a put must say that the folder is read-only, a get must work."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    tier = DiskTier(Path(directory), BUDGET)
    assert tier.ids() == [entry_of(1).id]
    assert same(tier.get(entry_of(1).id), entry_of(1))
    for act in (lambda: tier.put(entry_of(number)), lambda: tier.delete(entry_of(1).id)):
        try:
            act()
        except StoreReadOnlyError:
            continue
        raise AssertionError("a read-only folder was written to")
    assert tier.get(entry_of(number).id) is None


def test_a_read_only_folder_can_be_read_and_refuses_to_be_written() -> None:
    # Not under tmp_path: its parents are closed to other users.
    directory = Path(tempfile.mkdtemp())
    try:
        tier = DiskTier(directory, BUDGET)
        tier.put(entry_of(1))
        tier.close()
        for path in directory.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        directory.chmod(0o555)
        child = SPAWN.Process(target=put_as_nobody, args=(str(directory), 2))
        child.start()
        child.join()
        assert child.exitcode == 0
    finally:
        for path in [directory, *directory.rglob("*")]:
            path.chmod(0o700)
        shutil.rmtree(directory)


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing_half_written(directory: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    tier = DiskTier(directory, BUDGET)
    tier.put(entry_of(1))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr("kvloom.kv.entry_file.EntryImage.write_to", full)
        elif call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "rename", full)
        with pytest.raises(StoreFullError, match="no space is left"):
            tier.put(entry_of(2))
    assert files_in(directory) == [f"{entry_of(1).id}.kve"]
    tier.put(entry_of(2))
    assert same(tier.get(entry_of(2).id), entry_of(2))
    tier.close()


def test_a_file_size_limit_met_in_mid_write_is_a_full_store(directory: Path) -> None:
    child = SPAWN.Process(target=put_under_a_limit, args=(str(directory),))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert files_in(directory) == [f"{entry_of(1).id}.kve"]


def put_under_a_limit(directory: str) -> None:
    """In a child process: the system itself refuses to let the file grow."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tier = DiskTier(Path(directory), 1 << 30)
    tier.put(entry_of(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        tier.put(entry_of(2, 200))
    except StoreFullError:
        tier.close()
        return
    raise AssertionError("the limit was not met")


def test_errors_of_the_system_keep_their_meaning(tmp_path: Path) -> None:
    assert type(as_store_error(OSError(errno.EDQUOT, "x"), "writing", tmp_path)) is StoreFullError
    assert type(as_store_error(OSError(errno.EROFS, "x"), "writing", tmp_path)) is StoreReadOnlyError
    assert type(as_store_error(OSError(errno.EIO, "x"), "writing", tmp_path)) is StoreError


def test_a_file_that_cannot_be_read_for_now_is_no_corrupt_entry(tier: DiskTier) -> None:
    entry = entry_of(1)
    tier.path_of(entry.id).mkdir(parents=True)  # reading a folder fails for root, too
    with pytest.raises(StoreError) as caught:
        tier.get(entry.id)
    assert not isinstance(caught.value, EntryCorruptError)
    assert not tier.delete_corrupt(entry.id)
    assert tier.path_of(entry.id).exists()
