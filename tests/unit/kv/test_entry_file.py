"""An entry file comes back as it was written, or not at all."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvloom.errors import EntryCorruptError
from kvloom.kv import entry_file
from kvloom.kv.codec import Codec
from kvloom.types import Entry, EntryId, KVType, LayerRope, Lineage, ModelFingerprint, RopePairing, RopeSpec
from tests.unit.kv.entries import ROPE, entry_of, same
from tests.unit.kv.rows import layout_of, rope_of

LOSSLESS = [Codec.OFF, Codec.LOSSLESS]


def write(path: Path, entry: Entry, codec: Codec = Codec.OFF) -> Path:
    with path.open("wb") as file:
        entry_file.build(entry, codec, rope=ROPE).write_to(file)
    return path


def reason_of(path: Path, expected: EntryId) -> str:
    """The reason why it is refused; both ways of reading must refuse it alike."""
    with pytest.raises(EntryCorruptError) as first:
        entry_file.check(path, expected)
    with pytest.raises(EntryCorruptError) as second:
        entry_file.read(path, expected)
    assert first.value.reason == second.value.reason
    assert path.name in str(first.value)
    return first.value.reason


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("kv_type", list(KVType))
@pytest.mark.parametrize("lineage", ["alone", "cd" * 32])
def test_an_entry_comes_back_with_its_key_position_and_every_byte(
    tmp_path: Path, codec: Codec, kv_type: KVType, lineage: str
) -> None:
    layout = layout_of(kv_type, KVType.F16, hadamard=kv_type is not KVType.F16)
    entry = entry_of(1, 33, layout=layout, lineage=Lineage(lineage))
    path = tmp_path / "one"
    with path.open("wb") as file:
        entry_file.build(entry, codec, provenance={"engine": "llama.cpp 1"}).write_to(file)
    again = entry_file.read(path, entry.id)
    assert same(again, entry)
    assert again.rows.layout == layout
    assert not again.is_lossy
    info = entry_file.check(path, entry.id)
    assert info.provenance == {"engine": "llama.cpp 1"}
    assert info.file_bytes == path.stat().st_size
    assert info.key == entry.key


@pytest.mark.parametrize("codec", [Codec.Q8_0, Codec.LOW4])
def test_a_lossy_file_says_so_and_carries_the_rope_it_needs(tmp_path: Path, codec: Codec) -> None:
    entry = entry_of(1, 64)
    again = entry_file.read(write(tmp_path / "one", entry, codec), entry.id)
    assert again.is_lossy
    assert again.key == entry.key
    assert entry_file.check(tmp_path / "one", entry.id).codec is codec


def test_a_rope_of_numpy_floats_is_stored_like_any_other(tmp_path: Path) -> None:
    frequencies = tuple(10000.0 ** -np.arange(0, 1, 1 / 32))  # np.float64 is a float to the type checker
    rope = RopeSpec((LayerRope(RopePairing.NEOX, frequencies),) * 3)
    entry = entry_of(1, 64, rope=rope)
    with (tmp_path / "one").open("wb") as file:
        entry_file.build(entry, Codec.LOW4, rope=rope).write_to(file)
    assert entry_file.read(tmp_path / "one", entry.id).is_lossy


def test_an_entry_that_was_lossy_before_stays_marked_in_a_lossless_file(tmp_path: Path) -> None:
    entry = replace(entry_of(1), is_lossy=True)
    assert entry_file.read(write(tmp_path / "one", entry, Codec.LOSSLESS), entry.id).is_lossy


def test_equal_entries_give_equal_bytes() -> None:
    one, two = (entry_file.build(entry_of(3), Codec.LOW4, rope=ROPE) for _ in range(2))
    assert (one.head, bytes(one.payload), one.digest) == (two.head, bytes(two.payload), two.digest)


def test_the_payload_begins_on_a_page(tmp_path: Path) -> None:
    entry = entry_of(2)
    data = write(tmp_path / "one", entry).read_bytes()
    assert data[4096 : 4096 + entry.rows.nbytes] == entry.rows.data.tobytes()


@pytest.fixture(scope="module")
def small() -> Entry:
    return entry_of(5, 2)


@pytest.fixture(scope="module")
def image(small: Entry, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("image") / "one", small).read_bytes()


def test_every_single_byte_that_is_changed_is_found(tmp_path: Path, small: Entry, image: bytes) -> None:
    path = tmp_path / "one"
    path.write_bytes(image)
    rng = np.random.default_rng(3)
    with path.open("r+b") as file:
        for at in range(len(image)):
            flip = int(rng.integers(1, 256))
            file.seek(at)
            file.write(bytes([image[at] ^ flip]))
            file.flush()
            with pytest.raises(EntryCorruptError):
                entry_file.check(path, small.id)
            file.seek(at)
            file.write(image[at : at + 1])
        file.flush()
    assert same(entry_file.read(path, small.id), small)


def test_every_truncation_is_found(tmp_path: Path, small: Entry, image: bytes) -> None:
    path = tmp_path / "one"
    path.write_bytes(image)
    for length in range(len(image) - 1, -1, -7):
        with path.open("r+b") as file:
            file.truncate(length)
        assert reason_of(path, small.id) == "truncated"
    path.write_bytes(b"")
    assert reason_of(path, small.id) == "truncated"


@given(tail=st.binary(min_size=1, max_size=5000))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_appended_bytes_are_found(tmp_path: Path, small: Entry, image: bytes, tail: bytes) -> None:
    path = tmp_path / "one"
    path.write_bytes(image + tail)
    assert reason_of(path, small.id) == "length"


@given(data=st.binary(max_size=9000))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_never_an_entry(tmp_path: Path, small: Entry, image: bytes, data: bytes) -> None:
    path = tmp_path / "one"
    for content in (data, image[:64] + data, image[:8] + data):
        path.write_bytes(content)
        assert reason_of(path, small.id)


def test_two_swapped_pages_are_found(tmp_path: Path) -> None:
    entry = entry_of(5, 16)
    data = write(tmp_path / "one", entry).read_bytes()
    (tmp_path / "one").write_bytes(data[:4096] + data[8192:12288] + data[4096:8192] + data[12288:])
    assert reason_of(tmp_path / "one", entry.id) == "checksum"


@pytest.mark.parametrize("field_at", [12, 16, 24, 32, 40])
@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_sizes_are_found_before_anything_is_allocated(
    tmp_path: Path, small: Entry, image: bytes, field_at: int, value: int
) -> None:
    broken = bytearray(image)
    struct.pack_into("<I" if field_at == 12 else "<Q", broken, field_at, value)
    (tmp_path / "one").write_bytes(broken)
    allowed = {"sizes", "truncated", "length"} | ({"checksum"} if value <= 1 else set())
    assert reason_of(tmp_path / "one", small.id) in allowed


def sealed(data: bytearray) -> bytes:
    """The same file with a checksum that fits: damage that a checksum cannot find."""
    return bytes(data[:-16]) + xxhash.xxh3_128(bytes(data[:-16])).digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"k_type":"f16"', b'"k_type":"q80"'),
        (b'"num_tokens":2', b'"num_tokens":3'),
        (b'"key_version":2', b'"key_version":9'),
        (b'"rows_bytes":3072', b'"rows_bytes":3073'),
        (b'"lineage":"alone"', b'"lineage":"alonf"'),
        (b'"model":"abab', b'"model":"abac'),
        (b'"hadamard_k":false', b'"hadamard_k":true '),
        (b'"is_lossy":false', b'"is_bossy":false'),
        (b'"codec":"off"', b'"codec":"zip"'),
        (b'"k_head_dim":64', b'"k_head_dim":32'),
        (b'{"key', b'["key'),
        (b'"alone"', b'"\xff\xff\xff\xff\xff"'),
    ],
)
def test_a_header_that_contradicts_key_or_payload_is_refused_even_with_a_fitting_checksum(
    tmp_path: Path, small: Entry, image: bytes, old: bytes, new: bytes
) -> None:
    assert image.count(old) >= 1
    broken = bytearray(image.replace(old, new, 1))
    assert len(broken) == len(image)
    (tmp_path / "one").write_bytes(sealed(broken))
    assert reason_of(tmp_path / "one", small.id) in {"header", "foreign", "version"}


@pytest.mark.parametrize(
    "foreign",
    [
        entry_of(6, 2),
        entry_of(5, 2, model=ModelFingerprint("cd" * 32)),
        entry_of(5, 2, layout=layout_of(KVType.Q8_0)),
        entry_of(5, 2, layout=layout_of(KVType.Q8_0, KVType.Q8_0, hadamard=True)),
        entry_of(5, 2, lineage=Lineage("ef" * 32)),
        entry_of(5, 2, rope=rope_of(layout_of(), base=1e6)),
    ],
    ids=["other tokens", "other model", "other KV type", "other Hadamard turn", "other lineage", "other RoPE"],
)
def test_a_whole_file_of_another_entry_under_this_name_is_refused(tmp_path: Path, small: Entry, foreign: Entry) -> None:
    path = tmp_path / "one"
    with path.open("wb") as file:
        entry_file.build(foreign).write_to(file)
    assert reason_of(path, small.id) == "foreign"


def test_a_newer_format_is_refused_as_such(tmp_path: Path, small: Entry, image: bytes) -> None:
    broken = bytearray(image)
    struct.pack_into("<I", broken, 8, 2)
    (tmp_path / "one").write_bytes(sealed(broken))
    assert reason_of(tmp_path / "one", small.id) == "version"


def test_a_key_that_does_not_fit_its_rows_is_never_written(small: Entry) -> None:
    with pytest.raises(ValueError, match="does not fit its rows"):
        entry_file.build(replace(small, key=replace(small.key, tokens=(1, 2, 3))))
    with pytest.raises(ValueError, match="RoPE"):
        entry_file.build(small, Codec.LOW4, rope=rope_of(layout_of(), base=1e6))


def test_the_file_is_what_the_byte_table_in_the_docs_says(tmp_path: Path) -> None:
    """Read with nothing but the table: a change of the format must change its version and this test."""
    entry = entry_of(7, 5)
    data = write(tmp_path / "one", entry).read_bytes()
    assert data[:8] == bytes.fromhex("896B766C6F6F6D0A")
    version, header_bytes = struct.unpack_from("<II", data, 8)
    tokens_bytes, payload_at, payload_bytes, file_bytes = struct.unpack_from("<QQQQ", data, 16)
    assert version == 1
    assert data[48:64] == bytes(16)
    assert tokens_bytes == 4 * 5
    assert payload_at == 4096
    assert file_bytes == len(data) == payload_at + payload_bytes + 16
    header = json.loads(data[64 : 64 + header_bytes])
    assert header == {
        "key_version": 2,
        "model": entry.key.model,
        "lineage": "alone",
        "rope": entry.key.rope.hex(),
        "k_type": "f16",
        "v_type": "f16",
        "hadamard_k": False,
        "hadamard_v": False,
        "layers": [{"num_heads": 2, "k_head_dim": 64, "v_head_dim": 64}] * 3,
        "num_tokens": 5,
        "first_position": 1,
        "codec": "off",
        "is_lossy": False,
        "rows_bytes": entry.rows.nbytes,
        "ropes": [],
        "provenance": {},
    }
    at = 64 + header_bytes
    assert struct.unpack_from("<5i", data, at) == entry.key.tokens
    assert not any(data[at + tokens_bytes : payload_at])
    assert data[payload_at:-16] == entry.rows.data.tobytes()
    assert data[-16:] == xxhash.xxh3_128(data[:-16]).digest()
