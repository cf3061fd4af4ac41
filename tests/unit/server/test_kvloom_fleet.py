"""Sessions over several models: each is opened with its own, and idle ones keep no model from making room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvloom.config import Settings
from kvloom.engine.fake import FakeEngine
from kvloom.server.app import create_app
from kvloom.session.loom import Loom
from kvloom.session.values import ProgressCallback
from tests.unit.server.fleets import fleet_of
from tests.unit.server.kvloom_api import CHUNKS, PLAIN, SESSIONS, Api
from tests.unit.server.scripted import client_of
from tests.unit.session.fakes import fake_loom

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two_models(folder: Path, num_models: float | None = None) -> AsyncIterator[Api]:
    fleet, openings, _ = fleet_of(folder, "ab", num_models)
    app = create_app(fleet, fleet._settings.server)
    async with client_of(app) as client:
        lease = await fleet.acquire("a", "local")
        api = Api(client, app, lease.loom)
        lease.release()
        assert openings.opened == ["a"]
        yield api


def models_in_use(api: Api) -> list[str]:
    return [opened.lease.info.id for opened in api.open_sessions._open.values()]


async def test_a_session_opens_again_with_the_model_that_it_was_held_with(tmp_path: Path) -> None:
    async with two_models(tmp_path) as api:
        path = await api.session(model="b")
        made = await api.do("GET", path)
        await api.open_sessions.close_idle()
        assert models_in_use(api) == []
        turn = await api.ask(path)
        assert models_in_use(api) == ["b"]
        aliased = await api.do("GET", f"{path}/usage?model=the-b")
        other = await api.do("GET", f"{path}/usage?model=a")
        assert models_in_use(api) == ["a"]
        unknown = await api.refused("GET", f"{path}/usage?model=c")
    assert made["model"] == "b" and turn["number"] == 1
    assert aliased["used"] > 0 and other["used"] > 0
    assert unknown == (404, "model_not_found")


async def test_chunks_and_sessions_are_the_same_under_every_model(tmp_path: Path) -> None:
    async with two_models(tmp_path) as api:
        chunk = await api.chunk(PLAIN, "plain")
        path = await api.session()
        shown = await api.do("GET", f"{CHUNKS}/{chunk}?model=b")
        listed = await api.do("GET", f"{SESSIONS}?model=b")
    assert shown["status"]["name"] == "plain"
    assert [f"{SESSIONS}/{one['id']}" for one in listed["data"]] == [path]


async def test_idle_sessions_give_their_model_back_where_another_needs_its_room(tmp_path: Path) -> None:
    async with two_models(tmp_path, num_models=1.5) as api:
        first = await api.session(model="a")
        await api.ask(first, "One?")
        second = await api.session(model="b")
        assert models_in_use(api) == ["b"]
        await api.ask(second, "Two?")
        again = await api.ask(first, "Three?")
        assert models_in_use(api) == ["a"]
    assert again["number"] == 2


def _entries(home: Path, looms: list[Loom]) -> set[str]:
    """What lies on disk, in the RAM of open looms and on their devices."""
    found = set[str]()
    for loom in looms:
        if not loom._closed:
            loom.flush()
            found.update(loom.store.ids())
            with loom.device.lock:
                found.update(resident.entry for _, resident in loom.device.residents())
    return {*found, *(path.stem for path in home.rglob("*.kve"))}


@pytest.mark.parametrize("num_models", [None, 1.5], ids=["all loaded", "one at a time"])
async def test_a_purge_reaches_every_model_and_what_requests_computed_behind_the_chunk(
    tmp_path: Path, num_models: float | None
) -> None:
    left: list[set[str]] = []
    for name, text in (("home", "the secret word is xylophone " * 8), ("other", "the secret word is marimbas. " * 8)):
        looms: list[Loom] = []

        def opened(model: str, settings: Settings, _: ProgressCallback, name: str = name) -> Loom:
            seed = 1 if Path(model).stem == "a" else 2
            looms.append(fake_loom(tmp_path / name, FakeEngine(2048, seed=seed), context=settings.context))  # noqa: B023
            return looms[-1]  # noqa: B023

        fleet, _, _ = fleet_of(tmp_path, "ab", num_models)
        fleet._open_model = opened
        app = create_app(fleet, fleet._settings.server)
        async with client_of(app) as client:
            lease = await fleet.acquire("a", "local")
            api = Api(client, app, lease.loom)
            lease.release()
            chunk = await api.chunk(text, "text")
            content = [{"type": "text", "text": "read"}, {"type": "kvloom_chunk", "id": chunk},
                       {"type": "text", "text": "and tell what it says " * 4}]  # fmt: skip
            for model in "ab":
                messages = [{"role": "system", "content": "Answer. " * 4}, {"role": "user", "content": content}]
                body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
                await api.do("POST", "/v1/chat/completions", body)
            before = _entries(tmp_path / name, looms)
            assert sum(not loom._closed for loom in looms) == (2 if num_models is None else 1)
            if name == "home":
                purged = await api.do("DELETE", f"{CHUNKS}/{chunk}?purge=true&model=b")
                assert purged["freed_bytes"] > len(text)
                after = _entries(tmp_path / name, looms)
            left.append(before)
    independent = left[0] & left[1]
    assert after == independent < left[0], "what the other text leaves as well owes nothing to this one"
