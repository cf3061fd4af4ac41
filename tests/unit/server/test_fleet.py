"""The fleet: models come when they are asked for, go when memory or patience ends, and never under a request."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from kvloom.config import load_settings
from kvloom.engine.cores import CORES
from kvloom.errors import ConfigError, EngineMemoryError, ModelFormatError, ModelNotFoundError
from kvloom.server.app import create_app
from kvloom.server.auth import LOCAL_TENANT
from kvloom.server.errors import ApiError, to_api_error
from kvloom.server.fleet import Fleet, FleetLease, make_fleet
from kvloom.server.registry_file import ModelEntry, Registry, ServedModel
from kvloom.session.requests import RawPrompt, Request
from kvloom.types import SamplingParams
from tests.unit.server.fleets import (
    CONTEXT,
    NO_GUARD,
    Openings,
    fleet_of,
    needed_bytes,
    served,
    settings_for,
    tiny,
)
from tests.unit.server.scripted import client_of

pytestmark = pytest.mark.anyio

LOG = "kvloom.server.models"


async def lease_of(fleet: Fleet, model: str, tenant: str = LOCAL_TENANT) -> FleetLease:
    return await fleet.acquire(model, tenant)


async def asked(fleet: Fleet, model: str) -> None:
    """A request that comes and goes."""
    (await lease_of(fleet, model)).release()


def loaded(fleet: Fleet) -> set[str]:
    return {info.id for info in fleet.models() if info.is_loaded}


async def test_nothing_is_loaded_before_it_is_asked_for_and_then_once(tmp_path: Path) -> None:
    fleet, openings, _ = fleet_of(tmp_path, "ab")
    await fleet.start()
    assert loaded(fleet) == set()
    leases = await asyncio.gather(lease_of(fleet, "a"), lease_of(fleet, "the-a"), lease_of(fleet, "a"))
    assert loaded(fleet) == {"a"}
    assert openings.opened == ["a"]
    assert {lease.loom for lease in leases} == {openings.looms[0]}
    await fleet.close()


async def test_what_is_known_of_a_model_before_it_is_loaded_comes_from_its_header(tmp_path: Path) -> None:
    settings = load_settings({"guard": NO_GUARD, "context_target": 100_000})
    entries = (ModelEntry(id="auto"), ModelEntry(id="held", max_position_embeddings=1024))
    registry = Registry(tuple(ServedModel(entry, str(tiny(tmp_path, "x", context=2048))) for entry in entries))
    fleet = Fleet(registry, settings, tmp_path / "home", open_model=Openings(tmp_path))
    await fleet.start()
    assert [info.window for info in fleet.models()] == [2048, 1024]
    assert [info.is_loaded for info in fleet.models()] == [False, False]
    assert [info.has_embeddings for info in fleet.models()] == [True, True]
    await fleet.close()


async def test_a_model_that_is_marked_is_there_from_the_beginning(tmp_path: Path) -> None:
    openings = Openings(tmp_path / "home")
    fleet = Fleet(served(tmp_path, "a", preload=True), settings_for(), tmp_path / "home", open_model=openings)
    await fleet.start()
    assert loaded(fleet) == {"a"}
    await fleet.close()
    assert loaded(fleet) == set()


async def test_an_unknown_model_is_told_with_the_known_ones_and_the_nearest(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab")
    with pytest.raises(ModelNotFoundError, match=r"did you mean `the-a`\?; known: a, b") as caught:
        await fleet.acquire("tha-a", LOCAL_TENANT)
    answer = to_api_error(caught.value)
    assert (answer.status, answer.code, answer.param) == (404, "model_not_found", "model")


async def test_the_model_that_was_used_longest_ago_goes_for_another_one(tmp_path: Path) -> None:
    fleet, openings, clock = fleet_of(tmp_path, "abc", num_models=2.5)
    for name in "aba":
        clock.now_s += 1
        await asked(fleet, name)
    assert loaded(fleet) == {"a", "b"}
    await asked(fleet, "c")
    assert loaded(fleet) == {"a", "c"}
    await asked(fleet, "b")
    assert openings.opened == ["a", "b", "c", "b"]
    await fleet.close()


async def test_a_model_in_use_is_not_unloaded_and_the_other_gets_503_with_a_time(tmp_path: Path) -> None:
    fleet, openings, _ = fleet_of(tmp_path, "ab", num_models=1.5)
    lease = await lease_of(fleet, "a")
    with pytest.raises(ApiError, match="no memory for the model b beside the models in use") as caught:
        await fleet.acquire("b", LOCAL_TENANT)
    assert (caught.value.status, caught.value.code) == (503, "model_no_room")
    assert int(caught.value.headers["retry-after"]) > 0
    assert "(a)" in str(caught.value)
    assert openings.num_open == 1
    lease.release()
    await asked(fleet, "b")
    assert loaded(fleet) == {"b"}
    assert openings.num_open == 1
    await fleet.close()


async def test_a_model_that_never_fits_gets_507_and_nobody_is_unloaded_for_it(tmp_path: Path) -> None:
    entries = (ModelEntry(id="a", context=CONTEXT), ModelEntry(id="big", context=8 * CONTEXT))
    registry = Registry(tuple(ServedModel(entry, str(tiny(tmp_path, "a"))) for entry in entries))
    openings = Openings(tmp_path / "home")
    fleet = Fleet(registry, settings_for(1.2, tmp_path), tmp_path / "home", open_model=openings)
    await asked(fleet, "a")
    with pytest.raises(ApiError, match="the model big is larger than the memory") as caught:
        await fleet.acquire("big", LOCAL_TENANT)
    assert (caught.value.status, caught.value.code) == (507, "model_too_large")
    assert loaded(fleet) == {"a"}
    await fleet.close()


async def test_whoever_keeps_a_lease_for_nothing_is_asked_for_it_before_a_model_is_refused(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab", num_models=1.5)
    kept = [await lease_of(fleet, "a")]

    async def give_back() -> None:
        while kept:
            kept.pop().release()

    fleet.keepers.append(give_back)
    await asked(fleet, "b")
    assert loaded(fleet) == {"b"}
    in_use = await lease_of(fleet, "b")
    with pytest.raises(ApiError):
        await fleet.acquire("a", LOCAL_TENANT)
    in_use.release()
    await fleet.close()


async def test_a_models_sessions_are_found_under_its_id_and_no_path_is_shown(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab")
    lease = await lease_of(fleet, "a")
    session = lease.loom.session(name="notes")
    assert lease.loom.session_info(session.id).model == "a"
    assert str(tmp_path) not in lease.loom.status().model
    session.close()
    lease.release()
    await fleet.close()


async def test_an_automatic_window_takes_what_the_others_leave(tmp_path: Path) -> None:
    openings, settings = Openings(tmp_path / "home"), settings_for(1, tmp_path)
    budget = needed_bytes(tmp_path, 512) + needed_bytes(tmp_path, 1024)
    settings = load_settings(
        {"guard": NO_GUARD, "context_min": 256, "server": {"models_memory_bytes": budget}}, home=tmp_path
    )
    fleet = Fleet(served(tmp_path, "a", "b", context=None), settings, tmp_path / "home", open_model=openings)
    first = await lease_of(fleet, "a")  # takes all but too little for another
    with pytest.raises(ApiError):
        await fleet.acquire("b", LOCAL_TENANT)
    first.release()
    await asked(fleet, "b")
    assert (openings.settings[-1].context or 0) >= 1024
    await fleet.close()


async def test_memory_that_fails_while_loading_takes_an_idle_model_with_it(tmp_path: Path) -> None:
    fleet, openings, _ = fleet_of(tmp_path, "ab")
    await asked(fleet, "a")
    openings.faults = [EngineMemoryError("malloc said no")]
    await asked(fleet, "b")
    assert loaded(fleet) == {"b"}
    assert openings.opened == ["a", "b", "b"]
    await fleet.close()


async def test_a_model_that_cannot_be_loaded_is_503_without_its_path_and_may_be_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, openings, _ = fleet_of(tmp_path, "a")
    openings.faults = [ModelFormatError(f"{tmp_path}/secret.gguf is damaged")]
    with caplog.at_level(logging.ERROR, LOG), pytest.raises(ApiError) as caught:
        await fleet.acquire("a", LOCAL_TENANT)
    assert (caught.value.status, caught.value.code) == (503, "model_unavailable")
    assert str(tmp_path) not in str(caught.value)
    assert "secret.gguf is damaged" in caplog.text
    await asked(fleet, "a")
    assert loaded(fleet) == {"a"}
    await fleet.close()


async def test_a_model_file_that_is_gone_is_no_404(tmp_path: Path) -> None:
    registry = Registry((ServedModel(ModelEntry(id="a"), str(tmp_path / "gone.gguf")),))
    fleet = Fleet(registry, settings_for(), tmp_path / "home", open_model=Openings(tmp_path))
    await fleet.start()
    with pytest.raises(ApiError) as caught:
        await fleet.acquire("a", LOCAL_TENANT)
    assert caught.value.status == 503


async def test_the_server_does_not_begin_without_a_model_that_is_to_be_there(tmp_path: Path) -> None:
    openings = Openings(tmp_path / "home")
    openings.faults = [ModelFormatError("damaged")]
    fleet = Fleet(served(tmp_path, "a", preload=True), settings_for(), tmp_path / "home", open_model=openings)
    with pytest.raises(ModelFormatError, match="damaged"):
        await fleet.start()


async def test_models_that_are_to_be_there_and_do_not_fit_together_are_told_with_the_numbers(tmp_path: Path) -> None:
    openings = Openings(tmp_path / "home")
    registry, settings = served(tmp_path, "a", "b", preload=True), settings_for(1.5, tmp_path)
    fleet = Fleet(registry, settings, tmp_path / "home", open_model=openings)
    with pytest.raises(EngineMemoryError, match=r"512 tokens needs .* MiB; .* MiB are left"):
        await fleet.start()
    assert openings.opened == ["a"]
    await fleet.close()
    assert openings.num_open == 0


async def test_limits_that_no_window_fits_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    fleet = Fleet(served(tmp_path, "a", max_ram_mb=1), settings_for(), tmp_path / "home")
    with pytest.raises(ConfigError, match=r"512 tokens needs .* MiB in RAM.* 1 MiB \(max_ram_mb\)"):
        await fleet.start()


# --- idle ------------------------------------------------------------------------------------------------------------


async def test_idle_models_are_unloaded_after_their_time_and_those_in_use_stay(tmp_path: Path) -> None:
    fleet, openings, clock = fleet_of(tmp_path, "abc", idle_unload_s=60)
    lease = await lease_of(fleet, "a")
    await asked(fleet, "b")
    clock.now_s += 30
    await asked(fleet, "c")
    assert await fleet.unload_idle() == []
    clock.now_s += 31
    assert await fleet.unload_idle() == ["b"]
    assert loaded(fleet) == {"a", "c"}
    lease.release()
    clock.now_s += 59
    assert await fleet.unload_idle() == ["c"]
    clock.now_s += 2
    assert await fleet.unload_idle() == ["a"]
    assert all(loom._closed for loom in openings.looms)
    await fleet.close()


async def test_the_fleet_looks_for_idle_models_by_itself(tmp_path: Path) -> None:
    fleet, _, clock = fleet_of(tmp_path, "ab", idle_unload_s=0.1)
    await fleet.start()
    await asked(fleet, "a")
    clock.now_s += 1
    async with asyncio.timeout(20):
        while loaded(fleet):
            await asyncio.sleep(0.01)
    await fleet.close()


async def test_zero_seconds_keep_idle_models_for_good(tmp_path: Path) -> None:
    fleet, _, clock = fleet_of(tmp_path, "ab", idle_unload_s=0)
    await asked(fleet, "a")
    clock.now_s += 1e9
    assert await fleet.unload_idle() == []
    await fleet.close()


async def test_a_lease_is_given_back_once_and_from_any_thread(tmp_path: Path) -> None:
    fleet, _, clock = fleet_of(tmp_path, "ab", idle_unload_s=60)
    one, other = await lease_of(fleet, "a"), await lease_of(fleet, "a")
    threads = [threading.Thread(target=one.release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now_s += 100
    assert await fleet.unload_idle() == []
    other.release()
    clock.now_s += 100
    assert await fleet.unload_idle() == ["a"]
    await fleet.close()


# --- many at once ----------------------------------------------------------------------------------------------------


async def test_a_waiter_that_leaves_does_not_end_the_load_and_holds_nothing(tmp_path: Path) -> None:
    fleet, openings, clock = fleet_of(tmp_path, "ab", idle_unload_s=60)
    gate, waits = threading.Event(), threading.Event()

    def slow(name: str, settings: object, progress: object) -> object:
        waits.set()
        assert gate.wait(20)
        return openings(name, settings, progress)  # type: ignore[arg-type]

    fleet._open_model = slow  # type: ignore[assignment]
    waiter = asyncio.create_task(lease_of(fleet, "a"))
    assert await asyncio.to_thread(waits.wait, 20)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    gate.set()
    await asked(fleet, "a")
    assert openings.opened == ["a"]
    clock.now_s += 100
    assert await fleet.unload_idle() == ["a"]
    await fleet.close()


async def test_a_model_that_is_being_loaded_as_the_server_ends_is_closed_too(tmp_path: Path) -> None:
    fleet, openings, _ = fleet_of(tmp_path, "ab")
    gate, waits = threading.Event(), threading.Event()

    def slow(name: str, settings: object, progress: object) -> object:
        waits.set()
        assert gate.wait(20)
        return openings(name, settings, progress)  # type: ignore[arg-type]

    fleet._open_model = slow  # type: ignore[assignment]
    waiter = asyncio.create_task(lease_of(fleet, "a"))
    assert await asyncio.to_thread(waits.wait, 20)
    closing = asyncio.create_task(fleet.close())
    await asyncio.sleep(0)
    gate.set()
    await closing
    await asyncio.wait({waiter})
    assert openings.num_open == 0


async def test_two_models_over_one_home_share_chunks_and_sessions(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab")
    one, other = await lease_of(fleet, "a"), await lease_of(fleet, "b")
    chunk = one.loom.load_text("The harbour has two piers.", name="harbour.txt")
    assert other.loom.resolve("harbour.txt") == chunk.id
    session = one.loom.session(name="notes")
    session.close()
    again = other.loom.session(id=session.id)
    again.close()
    for lease in (one, other):
        lease.release()
    await fleet.close()


async def test_two_models_that_do_not_fit_together_are_both_served_in_the_end(tmp_path: Path) -> None:
    fleet, openings, _ = fleet_of(tmp_path, "ab", num_models=1.5)

    refusals: list[str] = []

    async def patient(name: str) -> None:
        while True:
            try:
                return await asked(fleet, name)
            except ApiError as error:
                refusals.append(error.code)
                await asyncio.sleep(0)

    async with asyncio.timeout(60):
        await asyncio.gather(*(patient("ab"[i % 2]) for i in range(20)))
    assert set(refusals) <= {"model_no_room"}
    open_now = [loom for loom in openings.looms if not loom._closed]
    assert len(open_now) == 1
    await fleet.close()
    assert all(loom._closed for loom in openings.looms)


async def test_tenants_have_looms_of_their_own_over_one_loaded_model(tmp_path: Path) -> None:
    fleet, openings, clock = fleet_of(tmp_path, "ab", idle_unload_s=60)
    mine, yours = await lease_of(fleet, "a", "mine"), await lease_of(fleet, "a", "yours")
    again = await lease_of(fleet, "a", "mine")
    assert openings.opened == ["a"]
    assert mine.loom is again.loom
    assert mine.loom is not yours.loom
    assert mine.loom.home != yours.loom.home
    for lease in (mine, yours, again):
        lease.release()
    clock.now_s += 100
    assert await fleet.unload_idle() == ["a"]
    later = await lease_of(fleet, "a", "mine")
    assert not later.loom._closed
    later.release()
    await fleet.close()


async def test_a_request_through_a_lease_gives_a_reply(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab")
    lease = await lease_of(fleet, "b")
    request = Request(RawPrompt(text="Hello there"), max_tokens=4, sampling=SamplingParams(temperature=0.0))
    stream = lease.complete(lease.prepare(request), 1)
    assert "".join(delta.text for delta in stream) == stream.result.text
    lease.release()
    await fleet.close()


async def test_several_models_take_turns_at_the_cores_and_one_alone_does_not(tmp_path: Path) -> None:
    several, openings, _ = fleet_of(tmp_path, "ab")
    await asked(several, "a")
    assert openings.looms[0].device.batcher.cores is CORES
    await several.close()
    one, openings, _ = fleet_of(tmp_path, "a")
    await asked(one, "a")
    assert openings.looms[0].device.batcher.cores is None
    await one.close()


# --- with the edge around it -----------------------------------------------------------------------------------------


async def test_an_idle_session_gives_its_model_back_for_another_one(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab", num_models=1.5)
    app = create_app(fleet, settings_for().server)
    async with client_of(app, timeout=30) as client:
        made = await client.post("/v1/kvloom/sessions", json={"model": "a", "name": "notes"})
        assert made.status_code in (200, 201), made.text
        assert app.state.open_sessions.num_open == 1
        answer = await client.post("/v1/completions", json={"model": "b", "prompt": "Hello", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        assert loaded(fleet) == {"b"}
        assert app.state.open_sessions.num_open == 0
        found = await client.get(f"/v1/kvloom/sessions/{made.json()['id']}")
        assert found.status_code == 200, found.text
        assert found.json()["model"] == "a"


async def test_no_room_and_an_unknown_model_are_answers_in_openais_shape(tmp_path: Path) -> None:
    fleet, _, _ = fleet_of(tmp_path, "ab", num_models=1.5)
    async with client_of(create_app(fleet, settings_for().server), timeout=30) as client:
        lease = await lease_of(fleet, "a")
        body = {"prompt": "Hello", "max_tokens": 2}
        busy = await client.post("/v1/completions", json={"model": "b", **body})
        unknown = await client.post("/v1/completions", json={"model": "c", **body})
        lease.release()
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "model_no_room")
    assert int(busy.headers["retry-after"]) > 0
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


# -- models that are elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/v1#other", "ollama:llama3"])
def test_a_model_behind_an_endpoint_is_refused_with_what_to_do_instead(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"runs behind an endpoint") as told:
        make_fleet(load_settings({"model": address}), tmp_path)
    assert address in str(told.value)
    assert "kvloom chat" in str(told.value)
    file = tmp_path / "models.yaml"
    file.write_text(f"models:\n  - id: here\n    model: {address}\n")
    with pytest.raises(ConfigError, match=r"models\.yaml"):
        make_fleet(load_settings({"server": {"models": str(file)}}), tmp_path)
