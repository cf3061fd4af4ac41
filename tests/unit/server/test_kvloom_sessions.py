"""Sessions over HTTP: created, listed, changed, forked, deleted; what they hold, edited and looked at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvloom.server.sessions_open import OpenSessions
from tests.unit.server.kvloom_api import CHUNKS, PLAIN, SECRET, SESSIONS, names, serving

pytestmark = pytest.mark.anyio

UNKNOWN = f"{SESSIONS}/{'0' * 16}"

EDITS: list[tuple[str, str, Any]] = [
    ("POST", "/activate", {"chunks": ["plain"]}),
    ("POST", "/deactivate", {"chunks": ["plain"]}),
    ("POST", "/move", {"chunk": "plain", "index": 0}),
    ("POST", "/pin", {"ref": "plain"}),
    ("POST", "/unpin", {"ref": "plain"}),
    ("POST", "/remove", {"chunk": "plain"}),
    ("POST", "/erase", {"chunk": "plain"}),
    ("POST", "/clear", {}),
    ("POST", "/recompute", None),
    ("POST", "/resize", {"window": 1024}),
    ("POST", "/undo", None),
    ("POST", "/recall", {"refs": ["plain"]}),
    ("POST", "/compress", {}),
    ("POST", "/retry", {}),
    ("POST", "/turns", {"text": "Hi"}),
    ("POST", "/cancel", None),
    ("POST", "/fork", {}),
    ("POST", "/snapshots", {}),
    ("POST", "/profile", {"name": "p"}),
    ("PATCH", "", {"name": "other"}),
    ("DELETE", "", None),
    ("POST", f"/snapshots/{'0' * 12}/restore", None),
    ("DELETE", f"/snapshots/{'0' * 12}", None),
]
LOOKS = ["", "/usage", "/history", "/messages", "/prompt", "/snapshots", "/ledger", f"/snapshots/{'0' * 12}/messages"]


async def test_an_unknown_session_is_not_found_and_a_wrong_id_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for method, end, body in [*EDITS, *(("GET", end, None) for end in LOOKS)]:
            assert await api.refused(method, f"{UNKNOWN}{end}", body) == (404, "session_not_found"), (method, end)
            for wrong in ("main", "0" * 15, "0" * 17, "%2e%2e"):
                refused = await api.refused(method, f"{SESSIONS}/{wrong}{end}", body)
                assert refused == (400, "invalid_value"), (method, end)


async def test_a_session_is_created_listed_changed_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.chunk(PLAIN, "plain")
        made = await api.do(
            "POST", SESSIONS, {"name": "one", "system": "Be brief.", "fidelity": "splice", "policy": "fifo",
                               "chunks": ["plain"]},
        )  # fmt: skip
        path = f"{SESSIONS}/{made['id']}"
        usage = await api.do("GET", f"{path}/usage")
        messages = await api.do("GET", f"{path}/messages")
        changed = await api.do("PATCH", path, {"name": "two", "policy": "stop", "fidelity": "exact", "system": "Hm."})
        after = await api.do("GET", f"{path}/usage")
        listed = await api.do("GET", SESSIONS)
        shown = await api.do("GET", path)
        deleted = await api.do("DELETE", path)
        gone = await api.refused("GET", path)
    assert made["name"] == "one" and made["model"] == "fake" and made["num_chunks"] == 1 and made["is_open"]
    assert (usage["fidelity"], usage["policy"]) == ("splice", "fifo") and names(usage) == ["plain"]
    assert usage["used"] + usage["free"] == usage["capacity"]
    assert messages["data"][0] == {"role": "system", "content": "Be brief.", "turn": 0}
    assert (after["fidelity"], after["policy"]) == ("exact", "stop")
    assert [one["id"] for one in listed["data"]] == [made["id"]] and shown["name"] == changed["name"] == "two"
    assert deleted["deleted"] and gone == (404, "session_not_found")


async def test_a_session_that_cannot_be_whole_is_not_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.session(name="one")
        await api.chunk("word " * 3000, "large")
        taken = await api.refused("POST", SESSIONS, {"name": "one"})
        unknown = await api.refused("POST", SESSIONS, {"chunks": ["none"]})
        large = await api.refused("POST", SESSIONS, {"chunks": ["large"]})
        wrong = [
            await api.refused("POST", SESSIONS, body)
            for body in ({"fidelity": "loose"}, {"policy": "none"}, {"name": "a\nb"}, {"home": "/"}, {"model": 1})
        ]
        model = await api.refused("POST", SESSIONS, {"model": "none"})
        listed = await api.do("GET", SESSIONS)
    assert taken == (409, "name_taken") and unknown == (404, "chunk_not_found")
    assert large == (400, "context_length_exceeded") and model == (404, "model_not_found")
    assert {status for status, _ in wrong} == {400}
    assert [one["name"] for one in listed["data"]] == ["one"]


async def test_two_requests_for_one_name_make_one_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        answers = await asyncio.gather(*(api.client.post(SESSIONS, json={"name": "one"}) for _ in range(6)))
        listed = await api.do("GET", SESSIONS)
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 5]
    assert len(listed["data"]) == 1


async def test_chunks_are_switched_moved_pinned_removed_and_erased(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.chunk(PLAIN, "plain")
        secret = await api.chunk(SECRET, "secret")
        path = await api.session()
        on = await api.do("POST", f"{path}/activate", {"chunks": ["plain", secret]})
        moved = await api.do("POST", f"{path}/move", {"chunk": "secret", "index": 0})
        pinned = await api.do("POST", f"{path}/pin", {"ref": "secret"})
        unpinned = await api.do("POST", f"{path}/unpin", {"ref": "secret"})
        off = await api.do("POST", f"{path}/deactivate", {"chunks": ["plain"]})
        removed = await api.do("POST", f"{path}/remove", {"chunk": "plain"})
        erased = await api.do("POST", f"{path}/erase", {"chunk": "secret"})
        listed = [one["name"] for one in (await api.do("GET", CHUNKS))["data"]]
        back = await api.do("POST", f"{path}/undo")
        listed_again = [one["name"] for one in (await api.do("GET", CHUNKS))["data"]]
    assert names(on) == ["plain", "secret"] and names(moved) == ["secret", "plain"]
    assert [one["is_pinned"] for one in pinned["segments"] if one["name"] == "secret"] == [True]
    assert not any(one["is_pinned"] for one in unpinned["segments"])
    assert names(off) == ["secret"] and names(off, active=False) == ["plain"]
    assert names(removed) == ["secret"] and names(erased) == []
    assert listed == ["plain"] and listed_again == ["plain", "secret"]
    assert back["undone"].startswith("erase") and names(back["usage"]) == ["secret"]


async def test_a_wrong_edit_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.chunk(PLAIN, "plain")
        await api.chunk("word " * 3000, "large")
        path = await api.session(chunks=["plain"])
        before = await api.do("GET", f"{path}/usage")
        found = [
            await api.refused("POST", f"{path}{end}", body)
            for end, body in (
                ("/activate", {"chunks": ["plain", "none"]}),
                ("/activate", {"chunks": ["large"]}),
                ("/activate", {"chunks": []}),
                ("/deactivate", {"chunks": ["large"]}),
                ("/move", {"chunk": "plain", "index": 5}),
                ("/move", {"chunk": "plain", "index": -1}),
                ("/pin", {"ref": "7"}),
                ("/remove", {"chunk": "large"}),
                ("/erase", {"chunk": "none"}),
                ("/clear", {"turns": [3]}),
                ("/resize", {"window": 16}),
                ("/resize", {}),
                ("/recall", {"refs": ["plain"]}),
                ("/compress", {"strategy": "magic"}),
                ("/compress", {}),
                ("/compress", {"dry_run": True}),
                ("/retry", {}),
                (f"/snapshots/{'0' * 12}/restore", None),
                ("/fork", {"snapshot": "0" * 12}),
                ("/profile", {"name": "none"}),
            )
        ]
        policy = await api.refused("PATCH", path, {"policy": "none"})
        after = await api.do("GET", f"{path}/usage")
        await api.do("POST", f"{path}/undo")  # the first activation: nothing else was logged
        first = await api.refused("POST", f"{path}/undo")
    statuses = [status for status, _ in found]
    assert statuses == [404, 400, 400, 400, 400, 400, 404, 400, 404, 400, 400, 400, 400, 400, 409, 409, 409, 404, 404,
                        404]  # fmt: skip
    assert found[1][1] == "context_length_exceeded" and found[-3][1] == found[-2][1] == "snapshot_not_found"
    assert policy[0] == 400 and first == (409, "nothing_to_undo")
    assert after == before


async def test_turns_can_be_pinned_cleared_and_recalled(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        first, second = await api.ask(path, "One?"), await api.ask(path, "Two?")
        pinned = await api.do("POST", f"{path}/pin", {"ref": "1"})
        history = await api.do("GET", f"{path}/history")
        cleared = await api.do("POST", f"{path}/clear", {"turns": [2]})
        ledger = await api.do("GET", f"{path}/ledger")
        back = await api.do("POST", f"{path}/recall", {"refs": [second["id"]]})
        messages = await api.do("GET", f"{path}/messages")
    assert [one["id"] for one in history["data"]] == [first["id"], second["id"]]
    assert [one["is_pinned"] for one in history["data"]] == [True, False]
    assert names(pinned) == ["turn 1", "turn 2"] == names(back) and names(cleared) == ["turn 1"]
    assert [(line["ref"], line["kind"]) for line in ledger["data"]] == [(second["id"], "turn")]
    assert [one["content"] for one in messages["data"] if one["role"] == "user"] == ["One?", "Two?"]


async def test_the_prompt_is_shown_as_the_model_sees_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.chunk(SECRET, "secret")
        path = await api.session(chunks=["secret"])
        shown = await api.do("GET", f"{path}/prompt")
        session = api.loom.session(id=path.rsplit("/", 1)[1])
        assert shown["tokens"] == session.tokens() and shown["prompt"] == session.prompt()
    assert SECRET in shown["prompt"] and shown["num_tokens"] == len(shown["tokens"])


async def test_a_trace_is_shown_and_recomputed(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        secret = await api.chunk(SECRET, "secret")
        path = await api.session(chunks=["secret"], fidelity="splice")
        await api.ask(path)
        await api.do("POST", f"{path}/deactivate", {"chunks": ["secret"]})
        traces = (await api.do("GET", f"{path}/history"))["data"][0]["traces"]
        recomputed = await api.do("POST", f"{path}/recompute")
        after = (await api.do("GET", f"{path}/history"))["data"][0]["traces"]
    assert traces == [secret] and recomputed == {"num_turns": 1} and after == []


async def test_a_window_is_resized(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        small = await api.do("POST", f"{path}/resize", {"window": 1024})
        usage = await api.do("GET", f"{path}/usage")
        auto = await api.do("POST", f"{path}/resize", {"window": None})
        beyond = await api.refused("POST", f"{path}/resize", {"window": 2**24})
    assert small == {"window": 1024} and usage["capacity"] == 1024 and auto["window"] >= 1024
    assert beyond == (400, "invalid_value")


async def test_a_fork_goes_its_own_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session(name="one")
        await api.ask(path, "One?")
        snapshot = await api.do("POST", f"{path}/snapshots", {"title": "after one"})
        await api.ask(path, "Two?")
        fork = await api.do("POST", f"{path}/fork", {"name": "fork"})
        earlier = await api.do("POST", f"{path}/fork", {"snapshot": snapshot["id"]})
        await api.ask(f"{SESSIONS}/{fork['id']}", "Three?")
        counts = [(await api.do("GET", one))["num_turns"] for one in
                  (path, f"{SESSIONS}/{fork['id']}", f"{SESSIONS}/{earlier['id']}")]  # fmt: skip
    assert counts == [2, 3, 1] and fork["name"] == "fork"


async def test_snapshots_are_listed_read_restored_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        await api.ask(path, "One?")
        taken = await api.do("POST", f"{path}/snapshots", {"title": "first"})
        await api.ask(path, "Two?")
        listed = await api.do("GET", f"{path}/snapshots")
        messages = await api.do("GET", f"{path}/snapshots/{taken['id']}/messages")
        usage = await api.do("POST", f"{path}/snapshots/{taken['id']}/restore")
        await api.do("DELETE", f"{path}/snapshots/{taken['id']}")
        gone = await api.refused("GET", f"{path}/snapshots/{taken['id']}/messages")
        wrong = await api.refused("DELETE", f"{path}/snapshots/first")
        undone = await api.do("POST", f"{path}/undo")
    assert taken["title"] == "first" and taken["num_turns"] == 1
    assert taken["id"] in [one["id"] for one in listed["data"]]
    assert [one["content"] for one in messages["data"] if one["role"] == "user"] == ["One?"]
    assert names(usage) == ["turn 1"] and names(undone["usage"]) == ["turn 1", "turn 2"]
    assert gone == (404, "snapshot_not_found") and wrong == (400, "invalid_value")


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.chunk(PLAIN, "plain")
        path = await api.session(name="one", chunks=["plain"])
        await api.ask(path, "One?")
        snapshot = await api.do("POST", f"{path}/snapshots", {})
        await api.do("POST", f"{path}/clear", {})
        before = [await api.do("GET", f"{path}{end}") for end in ("/messages", "/prompt", "/snapshots", "/ledger")]
    async with serving(tmp_path) as api:
        listed = await api.do("GET", SESSIONS)
        after = [await api.do("GET", f"{path}{end}") for end in ("/messages", "/prompt", "/snapshots", "/ledger")]
        usage = await api.do("POST", f"{path}/snapshots/{snapshot['id']}/restore")
    assert [one["name"] for one in listed["data"]] == ["one"] and not listed["data"][0]["is_open"]
    assert _timeless(after) == _timeless(before)
    assert names(usage) == ["plain", "turn 1"]


async def test_an_idle_session_is_closed_and_opens_again_by_itself(tmp_path: Path) -> None:
    async with serving(tmp_path, session_idle_s=0.2) as api:
        path = await api.session(name="one")
        await _until(lambda: not api.open_sessions.num_open and not api.loom.open_sessions())
        assert not (await api.do("GET", SESSIONS))["data"][0]["is_open"]
        await api.ask(path, "One?")
        assert (await api.do("GET", path))["num_turns"] == 1


async def test_the_longest_unused_session_makes_room_for_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        sessions = api.app.state.open_sessions = OpenSessions(api.app.state.service.backend, 300.0, max_open=2)
        paths = [await api.session(name=str(number)) for number in range(3)]
        listed = {one["name"]: one["is_open"] for one in (await api.do("GET", SESSIONS))["data"]}
        assert listed == {"0": False, "1": True, "2": True}
        answers = await asyncio.gather(*(api.client.get(f"{path}/usage") for path in paths * 4))
        # Where both that are open answer somebody at that moment, neither makes room.
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert any(answer.status_code == 200 for answer in answers)
        for path in paths:
            await api.do("GET", f"{path}/usage")
        assert sessions.num_open <= 2
        await sessions.close()


async def test_a_session_that_another_process_writes_is_busy(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        path = await api.session()
        session = path.rsplit("/", 1)[1]
        for opened in api.loom.open_sessions():
            opened.close()
        with api.loom.log.writer(api.loom.log.resolve(session)):  # as another process would
            busy = await api.refused("GET", f"{path}/usage")
            kept = await api.refused("DELETE", path)
        free = await api.do("GET", f"{path}/usage")
    assert busy == kept == (409, "session_busy") and free["used"] > 0


async def test_edits_at_once_are_all_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        chunks = [await api.chunk(f"text number {number}", f"{number}.txt") for number in range(8)]
        path = await api.session()
        await asyncio.gather(*(api.do("POST", f"{path}/activate", {"chunks": [chunk]}) for chunk in chunks))
        usage = await api.do("GET", f"{path}/usage")
    assert sorted(names(usage)) == [f"{number}.txt" for number in range(8)]


async def _until(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


def _timeless(values: list[Any]) -> list[Any]:
    """Without what is measured anew."""
    kept = ("restore_s", "tier")
    return [
        {**value, "data": [{k: v for k, v in one.items() if k not in kept} for one in value["data"]]}
        if "data" in value
        else value
        for value in values
    ]
