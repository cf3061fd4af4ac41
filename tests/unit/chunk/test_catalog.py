"""The catalog: what is loaded, found, renamed, erased and really gone."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from pathlib import Path

import pytest

from kvloom.chunk.catalog import Catalog, EntryRecord, Staleness
from kvloom.chunk.content import Encoding, read_file, read_text
from kvloom.chunk.database import Database
from kvloom.errors import AmbiguousChunkError, StoreError, UnknownChunkError, UsageError
from kvloom.types import ChunkId, EntryId, ModelFingerprint

MODEL = ModelFingerprint("m" * 64)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def colliding(num_digits: int) -> tuple[str, str]:
    """Two texts whose ids begin alike."""
    seen: dict[str, str] = {}
    for i in range(10**6):
        prefix = hashlib.sha256(f"text {i}".encode()).hexdigest()[:num_digits]
        if prefix in seen:
            return seen[prefix], f"text {i}"
        seen[prefix] = f"text {i}"
    raise AssertionError


def test_content_comes_back_byte_for_byte(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\xc3\xa9")
    content = read_file(path)
    added = catalog.add(content)
    stored = catalog.content(added.record.id)
    assert (stored.data, stored.text, stored.encoding) == (content.data, "a\r\né", Encoding.UTF8_BOM)


def test_equal_content_is_stored_once_under_all_its_names(catalog: Catalog, tmp_path: Path) -> None:
    one = catalog.add(read_file(write(tmp_path / "a.py", "same\n")))
    two = catalog.add(read_file(write(tmp_path / "b.py", "same\n")))
    assert (one.is_new, two.is_new) == (True, False)
    assert catalog.num_chunks() == 1
    assert catalog.get(one.record.id).names == ("a.py", "b.py")


def test_names_are_as_short_as_other_files_let_them_be(catalog: Catalog, tmp_path: Path) -> None:
    names = [
        catalog.add(read_file(write(tmp_path / folder / "utils.py", folder))).name for folder in ("x/a", "x/b", "y/b")
    ]
    assert names == ["utils.py", "b/utils.py", "y/b/utils.py"]
    again = catalog.add(read_file(write(tmp_path / "x/b/utils.py", "changed")))
    assert again.name == "b/utils.py"


def test_a_repaired_file_is_named_as_such(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes(b"caf\xe9")
    assert catalog.add(read_file(path, repair=True)).name == "old.txt (repaired)"
    assert catalog.add(read_file(path, repair=True)).name == "old.txt (repaired)"
    path.write_bytes("café".encode())
    assert catalog.add(read_file(path)).name == "old.txt"


def test_a_name_moves_to_changed_content_and_its_history_stays(catalog: Catalog, tmp_path: Path) -> None:
    path = write(tmp_path / "a.py", "one\n")
    first = catalog.add(read_file(path))
    second = catalog.add(read_file(write(path, "two\n")))
    assert second.replaced == (first.record.id,)
    assert catalog.resolve("a.py") == second.record.id
    assert catalog.name("a.py").former == (first.record.id,)
    assert catalog.text(first.record.id) == "one\n"
    assert catalog.get(first.record.id).name == first.record.id[:12]


def test_a_name_or_an_unambiguous_prefix_of_six_digits_finds_a_chunk(catalog: Catalog) -> None:
    chunk = catalog.add(read_text("hello"), "greeting").record.id
    for ref in ("greeting", chunk, chunk[:6], chunk[:12].upper(), f" {chunk[:9]} "):
        assert catalog.resolve(ref) == chunk
    with pytest.raises(UnknownChunkError, match="at least 6 hex digits"):
        catalog.resolve(chunk[:5])


def test_an_ambiguous_prefix_lists_its_candidates(catalog: Catalog) -> None:
    texts = colliding(6)
    ids = sorted(catalog.add(read_text(text), text).record.id for text in texts)
    with pytest.raises(AmbiguousChunkError, match="fits 2 chunks") as caught:
        catalog.resolve(ids[0][:6])
    assert [chunk for chunk, _ in caught.value.candidates] == ids
    assert {name for _, name in caught.value.candidates} == set(texts)
    assert all(text in str(caught.value) for text in texts)


def test_a_name_wins_over_a_prefix(catalog: Catalog) -> None:
    other = catalog.add(read_text("other")).record.id
    named = catalog.add(read_text("named"), other[:8]).record.id
    assert catalog.resolve(other[:8]) == named


def test_an_unknown_reference_suggests_near_names(catalog: Catalog) -> None:
    catalog.add(read_text("x"), "utils.py")
    with pytest.raises(UnknownChunkError, match=r"did you mean 'utils.py'"):
        catalog.resolve("util.py")
    with pytest.raises(UnknownChunkError):
        catalog.resolve("abcdef123456")
    for ref in ("", "é", "%", "zz" * 500):
        with pytest.raises(UnknownChunkError):
            catalog.resolve(ref)


def test_a_stale_name_is_found_by_content_and_not_by_time_alone(catalog: Catalog, tmp_path: Path) -> None:
    touched, changed, removed, same = (
        write(tmp_path / f"{n}.txt", n) for n in ("touched", "changed", "removed", "same")
    )
    for path in (touched, changed, removed, same):
        catalog.add(read_file(path))
    os.utime(touched, ns=(1, 1))
    write(changed, "CHANGED")
    os.utime(changed, ns=(2, 2))
    removed.unlink()
    found = {stale.name: stale.staleness for stale in catalog.stale()}
    assert found == {"changed.txt": Staleness.CHANGED, "removed.txt": Staleness.MISSING}
    assert [stale.name for stale in catalog.stale(["changed.txt", "same.txt"])] == ["changed.txt"]
    source = catalog.name("touched.txt").source
    assert source is not None
    assert source.mtime_ns == 1


def test_an_erased_chunk_is_hidden_and_comes_back(catalog: Catalog) -> None:
    chunk = catalog.add(read_text("x"), "x.txt").record.id
    catalog.erase(chunk)
    assert catalog.ls() == ()
    assert [record.id for record in catalog.ls(erased=True)] == [chunk]
    with pytest.raises(UnknownChunkError, match="erased"):
        catalog.resolve("x.txt")
    with pytest.raises(UnknownChunkError):
        catalog.resolve(chunk[:8])
    catalog.restore(chunk)
    assert catalog.resolve("x.txt") == chunk
    assert catalog.text(chunk) == "x"


def test_loading_an_erased_chunk_brings_it_back(catalog: Catalog) -> None:
    chunk = catalog.add(read_text("x"), "x.txt").record.id
    catalog.erase(chunk)
    assert catalog.add(read_text("x"), "x.txt").record.id == chunk
    assert catalog.resolve("x.txt") == chunk


@pytest.mark.parametrize("size", [40, 200_000])
def test_a_purged_chunk_leaves_no_byte_in_any_file(catalog: Catalog, home: Path, size: int) -> None:
    secret = "purple-elephant-4711 " + "".join(f"{i * 7919 % 104729:x}" for i in range(size // 5))
    kept = catalog.add(read_text("kept"), "kept.txt").record.id
    added = catalog.add(read_text(secret), "confidential-name.txt")
    catalog.set_metadata(added.record.id, "note", "confidential-note")
    catalog.record_entry(added.record.id, 0, EntryId("e" * 64), MODEL)
    packed = catalog._db.rows("SELECT data FROM chunks WHERE id = ?", (added.record.id,))[0][0]
    needles = [packed[:24], packed[-24:], b"confidential-name", b"confidential-note", added.record.id.encode()]
    assert all(any(needle in path.read_bytes() for path in home.iterdir()) for needle in needles)
    assert catalog.purge(added.record.id)
    for path in home.iterdir():
        assert not any(needle in path.read_bytes() for needle in needles), path.name
    assert catalog.entries_of(added.record.id) == ()
    for look in (catalog.get, catalog.content, catalog.purge, catalog.erase, catalog.restore):
        with pytest.raises(UnknownChunkError):
            look(added.record.id)
    assert catalog.text(kept) == "kept"


def test_damaged_content_is_never_handed_out(catalog: Catalog, database: Database) -> None:
    chunk = catalog.add(read_text("a longer text, so that it is packed " * 50)).record.id
    other = catalog.add(read_text("other")).record.id
    database.execute("UPDATE chunks SET data = (SELECT data FROM chunks WHERE id = ?) WHERE id = ?", (other, chunk))
    with pytest.raises(StoreError, match="not what was stored"):
        catalog.content(chunk)
    database.execute("UPDATE chunks SET data = x'00ff' WHERE id = ?", (chunk,))
    with pytest.raises(StoreError, match="damaged"):
        catalog.content(chunk)


def test_metadata_is_set_changed_and_removed(catalog: Catalog) -> None:
    chunk = catalog.add(read_text("x")).record.id
    catalog.set_metadata(chunk, "author", "me")
    catalog.set_metadata(chunk, "topic", "é")
    catalog.set_metadata(chunk, "author", "you")
    assert catalog.metadata(chunk) == {"author": "you", "topic": "é"}
    catalog.set_metadata(chunk, "author", "")
    assert catalog.metadata(chunk) == {"topic": "é"}
    with pytest.raises(UsageError):
        catalog.set_metadata(chunk, "", "x")
    with pytest.raises(UnknownChunkError):
        catalog.set_metadata(ChunkId("0" * 64), "a", "b")


def test_token_counts_are_kept_per_model(catalog: Catalog) -> None:
    one, two = (catalog.add(read_text(text)).record.id for text in ("one", "two"))
    catalog.set_num_tokens(one, MODEL, 5)
    catalog.set_num_tokens(one, MODEL, 6)
    catalog.set_num_tokens(one, ModelFingerprint("other"), 9)
    assert catalog.num_tokens(MODEL) == {one: 6}
    assert catalog.num_tokens(MODEL, [one, two]) == {one: 6}


def test_entries_are_found_by_chunk_and_by_entry(catalog: Catalog) -> None:
    one, two = (catalog.add(read_text(text)).record.id for text in ("one", "two"))
    first, second = EntryId("a" * 64), EntryId("b" * 64)
    catalog.record_entries([EntryRecord(one, MODEL, 0, first), EntryRecord(one, MODEL, 1, second)])
    catalog.record_entry(one, 0, first, MODEL)
    catalog.record_entry(two, 0, first, MODEL)
    assert [record.entry_id for record in catalog.entries_of(one)] == [first, second]
    assert catalog.entries_of(one, ModelFingerprint("other")) == ()
    assert {record.chunk_id for record in catalog.chunks_of(first)} == {one, two}
    catalog.forget_entries([first])
    assert [record.entry_id for record in catalog.entries_of(one)] == [second]


@pytest.mark.parametrize("name", ["two\nlines", " "])
def test_a_name_must_be_one_line(catalog: Catalog, name: str) -> None:
    with pytest.raises(UsageError):
        catalog.add(read_text("x"), name)
    assert catalog.ls() == ()


def test_everything_is_there_again_after_reopening(home: Path) -> None:
    database = Database(home)
    chunk = Catalog(database).add(read_text("kept"), "k").record.id
    database.close()
    again = Database(home)
    assert Catalog(again).resolve("k") == chunk
    assert Catalog(again).text(chunk) == "kept"
    again.close()


def test_ten_thousand_chunks_do_not_slow_a_look_up(database: Database) -> None:
    catalog = Catalog(database)
    with database.transaction():
        ids = [catalog.add(read_text(f"chunk {i}"), f"name-{i}").record.id for i in range(10_000)]
    wanted = ids[::500]
    times = []
    for _ in range(7):
        start = time.thread_time()
        assert catalog.resolve("name-5000") == ids[5000]
        assert catalog.resolve(ids[77][:12]) == ids[77]
        assert len(catalog.get_many(wanted)) == len(wanted)
        catalog.num_tokens(MODEL, wanted)
        catalog.stale(["name-1", "name-2"])
        times.append(time.thread_time() - start)
    assert statistics.median(times) < 0.02  # 5 ms on a quiet machine; it takes about 0.3
    assert len(catalog.ls()) == 10_000
