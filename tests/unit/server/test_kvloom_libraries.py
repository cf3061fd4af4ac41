"""Libraries over HTTP: filled, searched, computed ahead, attached to sessions; apart for tenants; refused in words."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvloom.config import ServerSettings
from kvloom.engine.base import Run
from kvloom.engine.fake import FakeEngine
from kvloom.server.auth import Caller
from kvloom.server.lifecycle import Phase
from kvloom.server.routes import kvloom_libraries
from kvloom.server.run import listen
from kvloom.types import F32Array
from tests.unit.read.pdf_files import pdf_of, slow_pdf
from tests.unit.server.drawn import Drawn
from tests.unit.server.kvloom_api import GREEDY, SESSIONS, Api, app_of, serving
from tests.unit.server.live import PATIENCE_S, Live
from tests.unit.server.test_chat import events_of
from tests.unit.server.test_kvloom_tenants import two_tenants
from tests.unit.session.fakes import RecurrentEngine

pytestmark = pytest.mark.anyio

LIBRARIES = "/v1/kvloom/libraries"
BOOKS = f"{LIBRARIES}/books"
LOOM = {"context": 4096}

FILLER = "The market sells bread and fish and the square is full of people who talk about the weather. "
KEEPER = "Who is the lighthouse keeper of Varnholm?"
HARBOUR = f"# Varnholm\n\n{FILLER}\nThe lighthouse keeper of Varnholm is called Ottokar Brimblewick.\n"
GEESE = f"# Oldenmoor\n\n{FILLER}\nEleven grey geese live behind the smithy of Oldenmoor.\n"


async def fill(api: Api, *, key: str = "", **texts: str) -> None:
    """The library `books`, with these texts."""
    await api.do("POST", LIBRARIES, {"name": "books"}, key=key)
    for name, text in (texts or {"harbour.md": HARBOUR, "geese.md": GEESE}).items():
        await api.do("POST", f"{BOOKS}/documents", {"name": name, "text": text}, key=key)


async def upload(api: Api, data: bytes, file_name: str, **fields: str) -> httpx.Response:
    return await api.client.post(f"{BOOKS}/documents", files={"file": (file_name, data)}, data=fields)


async def search(api: Api, question: str = KEEPER, *, key: str = "", **fields: Any) -> list[dict[str, Any]]:
    found = await api.do("POST", f"{BOOKS}/search", {"question": question, **fields}, key=key)
    return list(found["data"])


async def test_a_library_is_made_shown_listed_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        made = await api.do("POST", LIBRARIES, {"name": "books"})
        await api.do("POST", LIBRARIES, {"name": "Bücher, alte"})
        taken = await api.refused("POST", LIBRARIES, {"name": "books"})
        listed = await api.do("GET", LIBRARIES)
        first = await api.do("GET", f"{LIBRARIES}?limit=1")
        rest = await api.do("GET", f"{LIBRARIES}?after={first['data'][0]['name']}")
        shown = await api.do("GET", f"{LIBRARIES}/B%C3%BCcher%2C%20alte")
        deleted = await api.do("DELETE", BOOKS)
        gone = [await api.refused(method, BOOKS) for method in ("GET", "DELETE")]
        left = await api.do("GET", LIBRARIES)
        again = await api.do("POST", LIBRARIES, {"name": "books"})
    assert made["num_documents"] == made["num_passages"] == again["num_documents"] == 0
    assert taken == (409, "name_taken")
    assert [one["name"] for one in listed["data"]] == ["Bücher, alte", "books"] and not listed["has_more"]
    assert first["has_more"] and [one["name"] for one in rest["data"]] == ["books"]
    assert shown["name"] == "Bücher, alte" and deleted["id"] == "books"
    assert gone == [(404, "library_not_found")] * 2 and [one["name"] for one in left["data"]] == ["Bücher, alte"]


async def test_documents_are_added_changed_listed_found_and_removed(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        added = await api.do("POST", f"{BOOKS}/documents", {"name": "a/b.txt", "text": FILLER})
        same = await api.do("POST", f"{BOOKS}/documents", {"name": "a/b.txt", "text": FILLER})
        changed = await api.do("POST", f"{BOOKS}/documents", {"name": "a/b.txt", "text": "Nothing of it.\n"})
        listed = await api.do("GET", f"{BOOKS}/documents")
        second = await api.do("GET", f"{BOOKS}/documents?limit=1&after=a/b.txt")
        found = await search(api)
        limited = await search(api, "market bread fish", limit=1)
        nothing = await search(api, "Xylophone?")
        removed = await api.do("DELETE", f"{BOOKS}/documents/a/b.txt")
        await api.do("DELETE", f"{BOOKS}/documents/harbour.md")
        gone = await api.refused("DELETE", f"{BOOKS}/documents/harbour.md")
        after = await search(api)
        shown = await api.do("GET", BOOKS)
    assert (added["is_new"], same["is_new"], same["is_changed"], changed["is_changed"]) == (True, False, False, True)
    assert [one["name"] for one in listed["data"]] == ["a/b.txt", "geese.md", "harbour.md"]
    assert [one["name"] for one in second["data"]] == ["geese.md"] and second["has_more"]
    assert listed["data"][0]["digest"] == changed["document"]["digest"] != added["document"]["digest"]
    assert found[0]["document"] == "harbour.md" and "Ottokar" in found[0]["text"]
    assert (found[0]["first_line"], found[0]["words"][0]) == (1, "lighthouse")
    assert len(limited) == 1 and nothing == []
    assert removed == {"library": "books", "name": "a/b.txt", "deleted": True}
    assert gone == (404, "document_not_found")
    assert all(one["document"] != "harbour.md" for one in after) and shown["num_documents"] == 1


async def test_files_are_read_by_their_kind_and_their_names_are_labels(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("of the server")
    page = f"<html><body><h1>Varnholm</h1><script>x()</script><p>{HARBOUR}</p></body></html>".encode()
    async with serving(tmp_path / "home", loom=LOOM) as api:
        await api.do("POST", LIBRARIES, {"name": "books"})
        kinds = [
            (await upload(api, data, name, **fields)).json()["document"]
            for data, name, fields in (
                (pdf_of([["The lighthouse keeper", "of Varnholm"]]), "report.pdf", {}),
                (page, "../../page.html", {}),
                (HARBOUR.encode("utf-16"), str(outside), {}),
                (GEESE.encode(), "x", {"name": "geese.md"}),
            )
        ]
        named = await api.do("POST", f"{BOOKS}/documents", {"name": str(outside), "text": GEESE})
        found = await search(api, limit=4)
        assert api.loom.library("books").refresh().num_removed == 0
        everything = await api.do("GET", f"{BOOKS}/documents")
    assert [(one["name"], one["kind"]) for one in kinds] == [
        ("report.pdf", "pdf"), ("page.html", "html"), ("outside.txt", "prose"), ("geese.md", "markdown"),
    ]  # fmt: skip
    assert kinds[2]["note"] == "read as UTF-16" and named["document"]["digest"] == kinds[3]["digest"]
    assert {one["document"] for one in found} >= {"report.pdf", "page.html", "outside.txt"}
    assert not any("x()" in one["text"] for one in found)
    assert outside.read_text() == "of the server" and len(everything["data"]) == 5


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b""), ("a.txt", b"  \n"), ("a.txt", b"a\0b"), ("a.png", b"\x89PNG\r\n\x1a\n\0\0"),
        ("a.pdf", b"%PDF-1.7"), ("a.pdf", b"no pdf\0"), ("a.html", b"<script>x()</script>"),
        ("a.html", b"<" * 100_001), ("a.pdf", pdf_of([[]])),
    ],
)  # fmt: skip
async def test_what_gives_no_text_is_refused_and_what_stood_stays(tmp_path: Path, name: str, data: bytes) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api, **{name: HARBOUR})
        answer = await upload(api, data, name)
        found = await search(api)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_content"), answer.text
    assert found[0]["document"] == name


async def test_an_upload_of_a_wrong_form_or_size_is_refused(tmp_path: Path) -> None:
    path = f"{BOOKS}/documents"
    async with serving(tmp_path, loom=LOOM, max_upload_bytes=64) as api:
        await api.do("POST", LIBRARIES, {"name": "books"})
        large = await upload(api, b"x" * 65, "a.txt")
        large_json = await api.refused("POST", path, {"name": "a", "text": "x" * 65})
        two = await api.client.post(path, files=[("file", ("a", b"a")), ("file", ("b", b"b"))])
        repair = await upload(api, b"text", "a.txt", repair="true")
        spaced = await upload(api, b"text", " a.txt")
        plain = await api.client.post(path, content=b"text", headers={"content-type": "text/plain"})
        bodies: list[Any] = [
                None, [], {}, {"name": "a"}, {"text": "a"}, {"name": "", "text": "a"}, {"name": "a\n", "text": "a"},
                {"name": "x" * 257, "text": "a"}, {"name": 1, "text": "a"}, {"name": "a", "text": ""},
                {"name": "a", "text": "a", "path": "/etc/passwd"}, {"name": "a", "text": "a", "metadata": {}},
        ]  # fmt: skip
        refused = [await api.refused("POST", path, body) for body in bodies]
        listed = await api.do("GET", path)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "upload_too_large") == large_json
    assert [one.status_code for one in (two, repair, spaced, plain)] == [400, 400, 400, 415]
    assert repair.json()["error"]["param"] == "repair"
    assert {status for status, _ in refused[1:]} == {400} and refused[0][0] in (400, 415)
    assert listed["data"] == []


BAD_NAMES = ["", " ", " a", "a\nb", "a\0", "x" * 65, "a/b", "..", ".", "é" * 64, "\u2028", 1, None, ["a"]]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_what_cannot_be_a_name_is_refused(tmp_path: Path, name: object) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        status, _ = await api.refused("POST", LIBRARIES, {"name": name})
        listed = await api.do("GET", LIBRARIES)
    assert status == 400 and listed["data"] == []


async def test_a_library_that_is_not_there_is_not_found_and_not_made(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        session = await api.session()
        asked: list[tuple[str, str, Any]] = [
            ("GET", BOOKS, None), ("DELETE", BOOKS, None), ("GET", f"{BOOKS}/documents", None),
            ("POST", f"{BOOKS}/documents", {"name": "a", "text": "a"}), ("DELETE", f"{BOOKS}/documents/a", None),
            ("POST", f"{BOOKS}/search", {"question": "a"}), ("POST", f"{BOOKS}/precompute", {}),
            ("POST", f"{session}/libraries", {"libraries": ["books"]}), ("DELETE", f"{session}/libraries/books", None),
        ]  # fmt: skip
        for method, path, body in asked:
            assert await api.refused(method, path, body) == (404, "library_not_found"), (method, path)
            for wrong in ("x" * 256, "%00", "%20", "a%0Ab", "%2e%2e"):
                status, _ = await api.refused(method, path.replace("/books", f"/{wrong}"), body)
                assert status in (400, 404), (method, path)
        assert (await api.do("GET", LIBRARIES))["data"] == []
    assert not list(tmp_path.rglob("libraries/*"))


@pytest.mark.parametrize(
    ("end", "body"),
    [
        ("search", {}), ("search", {"question": ""}), ("search", {"question": "x" * 8193}), ("search", {"question": 1}),
        ("search", {"question": "a", "limit": 0}), ("search", {"question": "a", "limit": 51}),
        ("search", {"question": "a", "limit": "8"}), ("search", {"question": "a", "more": 1}),
        ("precompute", {"max_tokens": 0}), ("precompute", {"max_tokens": 1_000_001}),
        ("precompute", {"max_tokens": True}), ("precompute", []),
    ],
)  # fmt: skip
async def test_a_wrong_body_is_refused(tmp_path: Path, end: str, body: object) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        assert (await api.refused("POST", f"{BOOKS}/{end}", body))[0] == 400


async def test_no_question_breaks_a_search(tmp_path: Path) -> None:
    questions = ['"', "'", "a AND", "NEAR(", "*", "heading:x", "💡", "🏴" * 99, "lighthouse " * 700, "\0", "東京", "-x"]
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        for question in questions:
            await search(api, question)


async def test_more_than_the_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvloom_libraries, "MAX_DOCUMENTS", 2)
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        full = await api.refused("POST", f"{BOOKS}/documents", {"name": "third.md", "text": "a"})
        await api.do("POST", f"{BOOKS}/documents", {"name": "geese.md", "text": "a known one may change"})
        monkeypatch.setattr(kvloom_libraries, "MAX_LIBRARY_BYTES", 1)
        large = await api.refused("POST", f"{BOOKS}/documents", {"name": "geese.md", "text": "b"})
    assert full == large == (409, "library_full")


async def test_a_key_has_so_many_libraries_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvloom_libraries, "MAX_LIBRARIES", 2)
    async with two_tenants(tmp_path, loom=LOOM) as (api, one, other):
        for name in ("a", "b"):
            await api.do("POST", LIBRARIES, {"name": name}, key=one)
        many = await api.refused("POST", LIBRARIES, {"name": "c"}, key=one)
        await api.do("POST", LIBRARIES, {"name": "c"}, key=other)
        await api.do("DELETE", f"{LIBRARIES}/a", key=one)
        await api.do("POST", LIBRARIES, {"name": "c"}, key=one)
    assert many == (409, "too_many_libraries")


async def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvloom_libraries, "MAX_READING_S", 1.0)
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        answer = await upload(api, slow_pdf(), "slow.pdf")
        listed = await api.do("GET", f"{BOOKS}/documents")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_content")
    assert "within 1 s" in answer.json()["error"]["message"] and len(listed["data"]) == 2


async def test_a_damaged_library_is_told_and_can_be_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        api.loom._close_libraries()
        for file in tmp_path.rglob("libraries/*"):
            file.unlink() if file.suffix != ".sqlite3" else file.write_bytes(b"no database at all" * 100)
        listed = await api.do("GET", LIBRARIES)
        refused = [
            await api.refused("POST", f"{BOOKS}/search", {"question": "a"}),
            await api.refused("POST", f"{BOOKS}/precompute", {}),
            await api.refused("GET", BOOKS),
        ]
        await api.do("DELETE", BOOKS)
        await fill(api)
        assert await search(api)
    assert listed["data"][0]["is_damaged"] and refused == [(409, "library_damaged")] * 3


async def test_a_chunk_is_purged_beside_a_damaged_library_and_the_answer_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        session = await api.session(fidelity="splice")
        await api.do("POST", f"{session}/libraries", {"libraries": ["books"]})
        chunk = (await api.ask(session, KEEPER))["sources"][0]["chunk"]
        api.loom._close_libraries()
        for file in tmp_path.rglob("libraries/*"):
            file.unlink() if file.suffix != ".sqlite3" else file.write_bytes(b"no database at all" * 100)
        purged = [await api.refused("DELETE", f"/v1/kvloom/chunks/{chunk}?purge=true", None) for _ in range(2)]
    assert purged == [(409, "purge_incomplete"), (404, "chunk_not_found")]


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_a_turn_reads_what_its_libraries_have_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        session = await api.session(fidelity="splice")
        attached = await api.do("POST", f"{session}/libraries", {"libraries": ["books"]})
        turn = await api.ask(session, KEEPER)
        usage = await api.do("GET", f"{session}/usage")
        prompt = await api.do("GET", f"{session}/prompt")
        body = {"text": "How many geese live behind the smithy?", **GREEDY, "stream": True}
        streamed = events_of((await api.client.post(f"{session}/turns", json=body)).text)
        off = await api.do("PATCH", f"{session}/libraries", {"recalls": False})
        silent = await api.ask(session, KEEPER)
        on = await api.do("PATCH", f"{session}/libraries", {"recalls": True})
        detached = await api.do("DELETE", f"{session}/libraries/books")
        again = await api.refused("DELETE", f"{session}/libraries/books")
        shown = await api.do("GET", f"{session}/libraries")
    assert attached == {"session": session.rsplit("/", 1)[1], "libraries": ["books"], "recalls": True}
    source = turn["sources"][0]
    assert (source["library"], source["document"], source["tier"]) == ("books", "harbour.md", "none")
    assert source["chunk"] in {segment["ref"] for segment in usage["segments"]}
    assert source["num_tokens"] > 0 and "lighthouse" in source["words"] and "Ottokar" in prompt["prompt"]
    assert [one["document"] for one in streamed[-1]["turn"]["sources"]][:1] == ["geese.md"]
    assert silent["sources"] == [] and (off["recalls"], on["recalls"]) == (False, True)
    assert detached["libraries"] == shown["libraries"] == [] and again == (404, "library_not_found")


async def test_nothing_relevant_is_said_and_nothing_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        session = await api.session()
        await api.do("POST", f"{session}/libraries", {"libraries": ["books"]})
        turn = await api.ask(session, "Xylophone?")
        await api.do("DELETE", BOOKS)
        gone = await api.ask(session, KEEPER)
    assert turn["sources"] == gone["sources"] == []
    assert any("nothing relevant" in notice for notice in turn["notices"])
    assert any("books" in notice for notice in gone["notices"])


async def test_all_libraries_are_attached_or_none(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        await fill(api)
        session = await api.session()
        unknown = await api.refused("POST", f"{session}/libraries", {"libraries": ["books", "none"]})
        wrong = [
            await api.refused("POST", f"{session}/libraries", {"libraries": some})
            for some in ([], ["a"] * 33, [""], ["a\n"], "books", [1])
        ]
        shown = await api.do("GET", f"{session}/libraries")
        nobody = await api.refused("POST", f"{SESSIONS}/{'0' * 16}/libraries", {"libraries": ["books"]})
        wrong_id = await api.refused("GET", f"{SESSIONS}/main/libraries")
    assert unknown == (404, "library_not_found") and {status for status, _ in wrong} == {400}
    assert shown["libraries"] == [] and nobody == (404, "session_not_found") and wrong_id == (400, "invalid_value")


# --- tenants ---------------------------------------------------------------------------------------------------------


async def test_nobody_reaches_a_library_of_another_tenant(tmp_path: Path) -> None:
    """The answer is word for word that for a library which never was."""
    async with two_tenants(tmp_path, loom=LOOM) as (api, one, other):
        await fill(api, key=one)
        mine = await api.session(key=other)
        asked: list[tuple[str, str, Any]] = [
            ("GET", f"{LIBRARIES}/NAME", None), ("DELETE", f"{LIBRARIES}/NAME", None),
            ("GET", f"{LIBRARIES}/NAME/documents", None), ("DELETE", f"{LIBRARIES}/NAME/documents/harbour.md", None),
            ("POST", f"{LIBRARIES}/NAME/documents", {"name": "a", "text": "a"}),
            ("POST", f"{LIBRARIES}/NAME/search", {"question": KEEPER}), ("POST", f"{LIBRARIES}/NAME/precompute", {}),
            ("POST", f"{mine}/libraries", {"libraries": ["NAME"]}),
        ]  # fmt: skip
        for method, path, body in asked:
            answers = [
                await api.client.request(
                    method,
                    path.replace("NAME", name),
                    json=json.loads(json.dumps(body).replace("NAME", name)),
                    headers={"authorization": f"Bearer {other}"},
                )
                for name in ("books", "never")
            ]
            assert [answer.status_code for answer in answers] == [404, 404], (method, path)
            assert answers[0].text.replace("books", "never") == answers[1].text
        listed = await api.do("GET", LIBRARIES, key=other)
        without = await api.refused("GET", LIBRARIES)
        await fill(api, key=other, **{"own.md": GEESE})
        theirs = await search(api, key=other)
        await api.do("DELETE", BOOKS, key=other)
        kept = await search(api, key=one)
    assert listed["data"] == [] and without == (401, "invalid_api_key")
    assert all("Ottokar" not in found["text"] for found in theirs)
    assert kept[0]["document"] == "harbour.md"


async def test_a_tenants_turn_finds_only_its_own_library_of_a_name(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, loom=LOOM) as (api, one, other):
        await fill(api, key=one)
        await fill(api, key=other, **{"own.md": GEESE})
        turns = []
        for key in (one, other):
            session = await api.session(key=key)
            await api.do("POST", f"{session}/libraries", {"libraries": ["books"]}, key=key)
            turns.append(await api.ask(session, "lighthouse keeper Varnholm geese smithy Oldenmoor?", key=key))
        chunks = await api.do("GET", "/v1/kvloom/chunks", key=other)
    documents = [{source["document"] for source in turn["sources"]} for turn in turns]
    assert documents == [{"harbour.md", "geese.md"}, {"own.md"}] and len(chunks["data"]) == 1


# --- computing ahead -------------------------------------------------------------------------------------------------


class HeldEngine(FakeEngine):
    """Each step that computes takes one permit, where a test gives them; `stepped` counts those that began."""

    def __init__(self) -> None:
        super().__init__(num_cells=8192)
        self.pace: threading.Semaphore | None = None
        self.stepped = threading.Semaphore(0)

    def decode(self, runs: Sequence[Run]) -> list[F32Array | None]:
        if self.pace is not None:
            self.stepped.release()
            self.pace.acquire()
        return super().decode(runs)


class SeenQuota:
    """Without limits; remembers what was reserved and settled."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    async def reserve(self, caller: Caller, num_tokens: int, request_id: str) -> Any:
        self.seen.append(("reserved", num_tokens))
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {"x-ratelimit-remaining-tokens": "7"}

    async def settle(self, used_tokens: int) -> None:
        self.seen.append(("settled", used_tokens))

    async def release(self) -> None:
        self.seen.append(("released", 0))


async def test_what_is_computed_ahead_is_counted_and_bounded_and_not_computed_again(tmp_path: Path) -> None:
    quota = SeenQuota()
    async with serving(tmp_path, loom=LOOM, quota=quota) as api:
        await fill(api, **{f"{n}.md": f"Number {n}. {FILLER * 6}{HARBOUR}" for n in range(5)})
        runs: list[Any] = []
        while not runs or not runs[-1]["is_complete"]:
            assert len(runs) < 20
            runs.append(await api.do("POST", f"{BOOKS}/precompute", {"max_tokens": 2048}))
        known = await api.do("POST", f"{BOOKS}/precompute", {})
        headers = (await api.client.post(f"{BOOKS}/precompute", json={})).headers
        session = await api.session(fidelity="splice")
        await api.do("POST", f"{session}/libraries", {"libraries": ["books"]})
        turn = await api.ask(session, KEEPER)
    assert len(runs) > 1 and sum(run["num_computed"] for run in runs) == known["num_known"] == known["num_passages"]
    assert known["computed_tokens"] == 0 and known["is_complete"]
    assert all(0 < run["computed_tokens"] <= 2048 for run in runs)
    assert quota.seen[:2] == [("reserved", 2048), ("settled", runs[0]["computed_tokens"])]
    assert headers["x-ratelimit-remaining-tokens"] == "7"
    assert turn["sources"] and all(source["tier"] != "none" for source in turn["sources"])


async def test_a_model_that_cannot_place_kv_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path, engine=RecurrentEngine(num_cells=8192), loom=LOOM) as api:
        await fill(api)
        assert await api.refused("POST", f"{BOOKS}/precompute", {}) == (400, "unsupported_value")
        assert await search(api)


def test_a_client_that_leaves_ends_the_computing_and_the_next_goes_on(tmp_path: Path) -> None:
    engine = HeldEngine()
    with running(tmp_path, engine) as server:
        filled(server, 6)
        engine.pace = threading.Semaphore(1)
        raw = server.send({}, f"{BOOKS}/precompute")
        for _ in range(2):
            assert engine.stepped.acquire(timeout=PATIENCE_S)
        busy = httpx.post(f"{server.url}{BOOKS}/precompute", json={})
        deleted = httpx.delete(f"{server.url}{BOOKS}")
        found = httpx.post(f"{server.url}{BOOKS}/search", json={"question": KEEPER}).json()["data"]
        raw.close()
        service = server.app.state.service
        let_go(engine.pace, lambda: service.lifecycle.num_running == 0)
        engine.pace = None
        whole = httpx.post(f"{server.url}{BOOKS}/precompute", json={"max_tokens": 100_000}, timeout=PATIENCE_S).json()
    assert [(one.status_code, one.json()["error"]["code"]) for one in (busy, deleted)] == [(409, "library_busy")] * 2
    assert found and whole["is_complete"] and 0 < whole["num_computed"] <= whole["num_passages"]


def test_a_draining_server_ends_the_computing_and_says_how_far_it_came(tmp_path: Path) -> None:
    engine = HeldEngine()
    with running(tmp_path, engine) as server:
        filled(server, 6)
        engine.pace = threading.Semaphore(1)
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}{BOOKS}/precompute", json={}, timeout=PATIENCE_S))
        )
        asking.start()
        for _ in range(2):
            assert engine.stepped.acquire(timeout=PATIENCE_S)
        server.server.stop()
        until = time.monotonic() + PATIENCE_S
        while server.app.state.service.lifecycle.phase is not Phase.DRAINING:
            assert time.monotonic() < until
            time.sleep(0.002)
        let_go(engine.pace, server.ended.is_set)
        asking.join(PATIENCE_S)
    assert answers[0].status_code == 200 and not answers[0].json()["is_complete"]


@contextmanager
def running(home: Path, engine: FakeEngine, **options: Any) -> Iterator[Live]:
    app, _ = app_of(home, engine, loom=LOOM, **options)
    server = Live(app, ServerSettings(**options), listen("127.0.0.1", 0))
    server.start()
    try:
        yield server
    finally:
        if isinstance(engine, HeldEngine) and engine.pace is not None:
            pace, engine.pace = engine.pace, None
            pace.release(10_000)
        server.stop()


def filled(server: Live, num_documents: int) -> None:
    httpx.post(f"{server.url}{LIBRARIES}", json={"name": "books"}).raise_for_status()
    for number in range(num_documents):
        document = {"name": f"{number}.md", "text": f"Number {number}. {FILLER * 6}{HARBOUR}"}
        httpx.post(f"{server.url}{BOOKS}/documents", json=document, timeout=PATIENCE_S).raise_for_status()


def let_go(pace: threading.Semaphore, is_over: Callable[[], bool]) -> None:
    """Step by step, so that what was cancelled has its chance after each."""
    until = time.monotonic() + PATIENCE_S
    while not is_over():
        assert time.monotonic() < until
        pace.release()
        pause = time.monotonic() + 0.25
        while not is_over() and time.monotonic() < pause:
            time.sleep(0.002)


# --- the schema ------------------------------------------------------------------------------------------------------

NUM_EXAMPLES = 8
"""For each operation: the whole test takes some seconds."""


async def test_the_examples_of_the_schema_are_accepted(tmp_path: Path) -> None:
    async with serving(tmp_path, loom=LOOM) as api:
        session = await api.session()
        schema = (await api.client.get("/openapi.json")).json()
        tried = []
        ours = [path for path in schema["paths"] if "/libraries" in path]
        for path in sorted(ours, key=lambda path: (not path.startswith(LIBRARIES), len(path))):
            for method in ("post", "patch"):
                body = schema["paths"][path].get(method, {}).get("requestBody")
                if body is None:
                    continue
                shape = body["content"]["application/json"]["schema"]
                shape = schema["components"]["schemas"][shape["$ref"].rsplit("/", 1)[1]] if "$ref" in shape else shape
                for example in shape["examples"]:
                    place = path.replace("{library}", "books").replace(f"{SESSIONS}/{{session}}", session)
                    await api.do(method.upper(), place, example)
                    tried.append(place)
    assert len(tried) == 6


def test_nothing_made_from_the_schema_is_a_server_error(tmp_path: Path) -> None:
    with running(tmp_path, FakeEngine(num_cells=8192)) as server:
        filled(server, 2)
        session = httpx.post(f"{server.url}{SESSIONS}", json={}).json()["id"]

        def prepare(case: Any) -> None:
            case.query.pop("model", None) if case.query else None  # or it would never come further than to the name
            if case.method != "DELETE" or "session" in case.path_parameters:
                known = {"library": "books", "session": session}
                case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})

        drawn = Drawn(server.url, PATIENCE_S)
        drawn.ask(NUM_EXAMPLES, lambda path: "/libraries" in path, prepare)
        assert httpx.get(f"{server.url}/health").json()["running"] == 0
    assert len(drawn.labels) == 13 and drawn.statuses[200] > 20 and len(drawn.codes) >= 5, vars(drawn)
