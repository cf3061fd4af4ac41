"""Sessions over several models: each is opened with its own, and idle ones keep no model from making room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvloom.server.app import create_app
from tests.unit.server.fleets import fleet_of
from tests.unit.server.kvloom_api import CHUNKS, PLAIN, SESSIONS, Api
from tests.unit.server.scripted import client_of

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
