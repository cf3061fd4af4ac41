"""Chunks over HTTP: uploaded in two forms, listed, looked at, moved, erased; refused where they are no text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from kvloom.server.uploads import label_of
from tests.unit.server.kvloom_api import CHUNKS, PLAIN, SECRET, Api, serving

pytestmark = pytest.mark.anyio

UNKNOWN = "0" * 64


async def upload(api: Api, data: bytes, name: str = "notes.txt", **fields: str) -> Any:
    return await api.client.post(CHUNKS, files={"file": (name, data)}, data=fields)


async def test_a_text_is_the_same_chunk_in_both_forms(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        as_json = await api.do("POST", CHUNKS, {"name": "notes.txt", "text": PLAIN, "metadata": {"project": "atlas"}})
        as_form = (await upload(api, PLAIN.encode())).json()
        detail = await api.do("GET", f"{CHUNKS}/{as_json['id']}")
    assert as_json["id"] == as_form["id"] == hashlib.sha256(PLAIN.encode()).hexdigest()
    assert (as_json["is_new"], as_form["is_new"]) == (True, False)
    assert as_json["num_tokens"] > 0 and as_json["name"] == "notes.txt"
    assert detail["metadata"] == {"project": "atlas"}
    assert detail["status"]["tier"] == "none" and detail["parts"]


async def test_a_file_name_is_a_label_and_no_file_is_touched(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("of the server")
    async with serving(tmp_path / "home") as api:
        found = [
            (await upload(api, PLAIN.encode(), name)).json()
            for name in (str(outside), "../../outside.txt", "C:\\files\\outside.txt")
        ]
        page = await api.do("GET", CHUNKS)
        named = await api.do("POST", CHUNKS, {"name": str(outside), "text": SECRET})
    assert {one["name"] for one in found} == {"outside.txt"}
    assert all(one["id"] == hashlib.sha256(PLAIN.encode()).hexdigest() for one in found)
    assert len(page["data"]) == 1
    assert named["id"] == hashlib.sha256(SECRET.encode()).hexdigest()
    assert outside.read_text() == "of the server"
    assert str(tmp_path) not in str(page)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x89PNG\r\n\x1a\n....", "invalid_content"),
        (b"text\x00with NUL", "invalid_content"),
        (b"caf\xe9", "invalid_content"),
        (b"  \n ", "invalid_content"),
        (b"", "invalid_content"),
        (b"%PDF-1.7", "invalid_content"),
    ],
)
async def test_what_is_no_text_is_refused_as_on_the_command_line(tmp_path: Path, data: bytes, code: str) -> None:
    async with serving(tmp_path) as api:
        answer = await upload(api, data)
        listed = await api.do("GET", CHUNKS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert listed["data"] == []


async def test_a_text_of_another_encoding_can_be_repaired(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        repaired = await upload(api, b"caf\xe9", repair="true")
        wrong = await upload(api, b"caf\xe9", repair="perhaps")
    assert repaired.json()["id"] == hashlib.sha256("caf\ufffd".encode()).hexdigest()
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "repair")


async def test_an_upload_of_a_wrong_form_or_size_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, max_upload_bytes=64) as api:
        large = await upload(api, b"x" * 65)
        large_json = await api.refused("POST", CHUNKS, {"name": "a", "text": "x" * 65})
        two = await api.client.post(CHUNKS, files=[("file", ("a", b"a")), ("file", ("b", b"b"))])
        none = await api.client.post(CHUNKS, files={"other": ("a", b"a")})
        field = await api.client.post(CHUNKS, files={"file": (None, b"text without a file name")})
        plain = await api.client.post(CHUNKS, content=b"text", headers={"content-type": "text/plain"})
        broken = await api.client.post(
            CHUNKS, content=b"--x\r\nrubbish", headers={"content-type": "multipart/form-data; boundary=x"}
        )
        control = await api.client.post(CHUNKS, files={"file": ("a", b"a")}, data={"name": "a\nb"})
        unknown = await api.client.post(CHUNKS, files={"file": ("a", b"a")}, data={"path": "/etc/passwd"})
        missing = await api.refused("POST", CHUNKS, {"name": "a"})
        extra = await api.refused("POST", CHUNKS, {"name": "a", "text": "b", "path": "/etc/passwd"})
        fits = await upload(api, b"x" * 64)
    codes = [(one.status_code, one.json()["error"]["code"]) for one in (large, two, none, field, plain, broken)]
    assert codes[0] == (413, "upload_too_large") == large_json
    assert codes[1][0] == codes[2][0] == codes[3][0] == codes[5][0] == 400
    assert codes[4] == (415, "unsupported_media_type")
    assert (control.status_code, control.json()["error"]["param"]) == (400, "name")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_parameter")
    assert missing == (400, "missing_required_parameter") and extra == (400, "unknown_parameter")
    assert fits.status_code == 200


async def test_a_list_comes_in_pages_and_by_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        ids = [await api.chunk(f"text {number}", f"{number}.txt") for number in range(5)]
        first = await api.do("GET", f"{CHUNKS}?limit=2")
        second = await api.do("GET", f"{CHUNKS}?limit=3&after={ids[1]}")
        named = await api.do("GET", f"{CHUNKS}?name=3.txt")
        wrong = [await api.refused("GET", f"{CHUNKS}?{query}") for query in ("limit=0", "limit=x", "after=none")]
    assert [one["id"] for one in first["data"]] == ids[:2] and first["has_more"]
    assert [one["id"] for one in second["data"]] == ids[2:] and not second["has_more"]
    assert [one["id"] for one in named["data"]] == [ids[3]]
    assert {status for status, _ in wrong} == {400}


async def test_metadata_is_set_and_taken_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = f"{CHUNKS}/{await api.chunk(PLAIN, 'plain')}"
        await api.do("PATCH", path, {"metadata": {"a": "1", "b": "2"}})
        detail = await api.do("PATCH", path, {"metadata": {"a": None, "c": "3"}})
        many = await api.refused("PATCH", path, {"metadata": {str(number): "x" for number in range(31)}})
        wrong = await api.refused("PATCH", path, {"metadata": {"a": 1}})
        after = await api.do("GET", path)
    assert detail["metadata"] == after["metadata"] == {"b": "2", "c": "3"}
    assert many == (400, "invalid_value") and wrong[0] == 400


async def test_an_erased_chunk_is_gone_until_it_is_restored_and_a_purged_one_for_good(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = f"{CHUNKS}/{await api.chunk(SECRET, 'secret')}"
        erased = await api.do("DELETE", path)
        hidden = await api.refused("GET", path)
        listed = await api.do("GET", f"{CHUNKS}?erased=true")
        again = await api.refused("DELETE", path)
        await api.do("POST", f"{path}/restore")
        await api.do("GET", path)
        await api.do("DELETE", path)
        purged = await api.do("DELETE", f"{path}?purge=true")
        gone = await api.refused("POST", f"{path}/restore")
    assert (erased["is_erased"], erased["is_purged"]) == (True, False)
    assert hidden == again == gone == (404, "chunk_not_found")
    assert [one["is_erased"] for one in listed["data"]] == [True]
    assert purged["freed_bytes"] >= len(SECRET)


async def test_a_chunks_kv_moves_between_the_tiers_and_is_checked(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        chunk = await api.chunk(PLAIN * 20, "plain")
        path = f"{CHUNKS}/{chunk}"
        session = await api.session(chunks=["plain"], fidelity="splice")
        await api.ask(session)
        used = await api.do("GET", path)
        saved = await api.do("POST", f"{path}/save")
        offloaded = await api.do("POST", f"{path}/offload")
        cold = await api.do("GET", path)
        restored = await api.do("POST", f"{path}/restore")
        check = await api.do("POST", f"{path}/verify")
        entry = check["entries"][0]["entry"]
        stored = next(file for file in tmp_path.rglob(f"{entry}*") if file.is_file())
        data = bytearray(stored.read_bytes())
        data[-1] ^= 1
        stored.write_bytes(bytes(data))
        damaged = await api.do("POST", f"{path}/verify")
    assert used["status"]["tier"] == "device" and used["num_references"] == 1
    assert saved["moved_bytes"] > 0 and offloaded["moved_bytes"] > 0 and restored["moved_bytes"] > 0
    assert cold["status"]["tier"] == "disk"
    assert check["is_whole"] and not check["entries"][0]["fault"]
    assert not damaged["is_whole"] and damaged["entries"][0]["fault"]


async def test_an_unknown_chunk_is_not_found_and_a_wrong_id_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for method, end in (
            ("GET", ""), ("DELETE", ""), ("DELETE", "?purge=true"),
            *(("POST", f"/{verb}") for verb in ("restore", "offload", "save", "verify")),
        ):  # fmt: skip
            assert await api.refused(method, f"{CHUNKS}/{UNKNOWN}{end}") == (404, "chunk_not_found"), (method, end)
            for text in ("notes.txt", "ABC", "0" * 63, "%2e%2e"):
                assert await api.refused(method, f"{CHUNKS}/{text}{end}") == (400, "invalid_value"), (method, end)


async def test_metadata_of_an_unknown_chunk_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        assert await api.refused("PATCH", f"{CHUNKS}/{UNKNOWN}", {"metadata": {}}) == (404, "chunk_not_found")


async def test_an_unknown_model_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        assert await api.refused("GET", f"{CHUNKS}?model=none") == (404, "model_not_found")


def test_a_label_is_the_last_part_of_any_systems_path() -> None:
    assert [label_of(name) for name in ("a.txt", "/b/a.txt", "b\\a.txt", "..", "")] == ["a.txt"] * 3 + ["..", ""]
