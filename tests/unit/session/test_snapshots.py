"""The store of snapshots: cleaning up by number and age, clocks that jump, damage, versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvloom.chunk.database import Database
from kvloom.errors import SnapshotError, UnknownSnapshotError, UsageError
from kvloom.session.log import ManifestId, SessionLog
from kvloom.session.snapshots import SnapshotMeta, SnapshotRecord, SnapshotStore, StoredMessage
from kvloom.types import SessionId

META = SnapshotMeta("title", "", "", 10, 1, 0, 512, "model", "f" * 64, 1.0)
MESSAGES = [StoredMessage("user", "häßliche Zeichen ✓", 1), StoredMessage("assistant", "x" * 5000, 1)]
DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """A store over a log with one session of several manifests."""

    def __init__(self, home: Path) -> None:
        self.database = Database(home)
        self.clock = Clock()
        self.log = SessionLog(self.database)
        self.session: SessionId = self.log.create("model")
        self.store = SnapshotStore(self.database, self.clock)
        with self.log.writer(self.session) as writer:
            self.manifests = [writer.append(f"op {number}", b"body") for number in range(12)]

    def take(self, number: int, *, is_auto: bool = True, title: str = "title") -> SnapshotRecord:
        meta = msgspec.structs.replace(META, title=title)
        return self.store.add(self.session, self.manifests[number], meta, MESSAGES, is_auto=is_auto)

    def titles(self) -> list[str]:
        return [record.meta.title for record in self.store.of(self.session)]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    opened = Kept(tmp_path / "home")
    yield opened
    opened.database.close()


def test_what_was_stored_comes_back_as_it_was(kept: Kept) -> None:
    taken = kept.take(0)
    assert kept.store.get(kept.session, taken.id[:6]) == taken
    assert kept.store.get(kept.session, "title") == taken
    assert kept.store.messages(taken) == MESSAGES


def test_only_automatic_ones_that_nothing_needs_are_cleaned_up(kept: Kept) -> None:
    for number in range(8):
        kept.take(number, is_auto=number != 3, title=f"t{number}")
    needed: set[ManifestId] = {kept.manifests[1]}
    assert kept.store.clean_up(kept.session, 2, None, needed) == 4
    assert kept.titles() == ["t7", "t6", "t3", "t1"]


def test_old_ones_go_by_age(kept: Kept) -> None:
    kept.take(0, title="old")
    kept.clock.now += 3 * DAY_S
    kept.take(1, title="new")
    assert kept.store.clean_up(kept.session, 100, 2.0, set()) == 1
    assert kept.titles() == ["new"]


def test_a_clock_that_jumps_back_loses_nothing_and_keeps_the_order(kept: Kept) -> None:
    kept.take(0, title="first")
    kept.clock.now -= 400 * DAY_S
    kept.take(1, title="second")
    assert kept.titles() == ["second", "first"], "the order is that of the numbers"
    assert kept.store.clean_up(kept.session, 100, 2.0, set()) == 0


@pytest.mark.parametrize("column", ["meta", "messages", "checksum", "manifest_id"])
def test_damage_in_any_part_is_found_and_the_others_are_still_listed(kept: Kept, column: str) -> None:
    bad, good = kept.take(0, title="bad"), kept.take(1, title="good")
    change = {
        "meta": "replace(meta, 'model', 'nodel')",
        "messages": "x'00'",
        "checksum": "x'00'",
        "manifest_id": str(kept.manifests[5]),
    }[column]
    kept.database.execute(f"UPDATE snapshots SET {column} = {change} WHERE id = ?", (bad.id,))
    assert kept.titles() == ["good"]
    with pytest.raises(SnapshotError, match="damaged"):
        kept.store.get(kept.session, bad.id)
    assert kept.store.get(kept.session, good.id) == good


def test_one_of_a_newer_version_says_so(kept: Kept) -> None:
    meta = msgspec.structs.replace(META, version=99)
    taken = kept.store.add(kept.session, kept.manifests[0], meta, [], is_auto=False)
    with pytest.raises(SnapshotError, match="version 99"):
        kept.store.get(kept.session, taken.id)


def test_one_of_a_newer_version_with_other_fields_says_so_and_the_others_are_still_listed(kept: Kept) -> None:
    newer, good = kept.take(0, title="newer"), kept.take(1, title="good")
    rewrite_meta(kept, newer, b'{"title":"newer","version":99,"turns":["a","b"]}')
    assert kept.titles() == ["good"]
    assert kept.store.faults(kept.session) == [
        f"snapshot {newer.id} is of version 99, and this kvloom reads up to 1: use the newer kvloom that wrote it, or "
        "delete it"
    ]
    with pytest.raises(SnapshotError, match="version 99"):
        kept.store.get(kept.session, newer.id)
    assert kept.store.get(kept.session, good.id) == good
    with pytest.raises(UnknownSnapshotError):
        kept.store.get(kept.session, "neither")


@pytest.mark.parametrize("meta", [b"{}", b"[1]", b"no json", b'{"version":"one"}'])
def test_whole_bytes_that_are_no_snapshot_are_damage(kept: Kept, meta: bytes) -> None:
    taken = kept.take(0)
    rewrite_meta(kept, taken, meta)
    with pytest.raises(SnapshotError, match="damaged"):
        kept.store.get(kept.session, taken.id)
    assert len(kept.store.faults(kept.session)) == 1


def test_what_cannot_be_read_can_be_deleted(kept: Kept) -> None:
    bad, good = kept.take(0, title="bad"), kept.take(1, title="good")
    kept.database.execute("UPDATE snapshots SET messages = x'00' WHERE id = ?", (bad.id,))
    found = kept.store.get_even_damaged(kept.session, bad.id[:6])
    assert (found.id, found.manifest, found.meta.title) == (bad.id, bad.manifest, "")
    kept.store.delete(found)
    assert kept.store.faults(kept.session) == []
    assert kept.store.get_even_damaged(kept.session, "good") == good
    with pytest.raises(UnknownSnapshotError):
        kept.store.get_even_damaged(kept.session, bad.id)


def rewrite_meta(kept: Kept, taken: SnapshotRecord, meta: bytes) -> None:
    """As another version would have written it: whole, with its checksum."""
    packed = kept.database.rows("SELECT messages FROM snapshots WHERE id = ?", (taken.id,))[0][0]
    checksum = hashlib.sha256(b"%d\0%s\0%s" % (taken.manifest, meta, packed)).digest()
    kept.database.execute(
        "UPDATE snapshots SET meta = ?, checksum = ? WHERE id = ?", (meta.decode(), checksum, taken.id)
    )


def test_unknown_and_ambiguous_ones_are_named(kept: Kept) -> None:
    with pytest.raises(UnknownSnapshotError, match="it has none"):
        kept.store.get(kept.session, "abcdef")
    taken = kept.take(0)
    with pytest.raises(UnknownSnapshotError, match=taken.id):
        kept.store.get(kept.session, "zzzzzz")
    for _ in range(2):
        other = kept.take(1)
        kept.database.execute("UPDATE snapshots SET id = 'abcdef' || substr(id, 7) WHERE id = ?", (other.id,))
    with pytest.raises(UsageError, match="fits 2 snapshots"):
        kept.store.get(kept.session, "abcdef")


def test_deleting_the_session_deletes_its_snapshots(kept: Kept) -> None:
    kept.take(0)
    kept.log.delete(kept.session)
    assert kept.database.rows("SELECT count(*) FROM snapshots") == [(0,)]
