"""`/v1/kvloom/profiles` and `/v1/kvloom/status`: sets of chunks under a name, and how the caller's part of it stands.

Profiles that the command line made may name files of the server: over HTTP no file is opened by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from fastapi import Path, Request, Response

from kvloom.errors import UnknownChunkError, UsageError
from kvloom.server.errors import ApiError
from kvloom.server.routes.base import caller_of
from kvloom.server.routes.kvloom_base import (
    PREFIX,
    ModelName,
    SessionPath,
    answer,
    edit,
    is_of_this_machine,
    kvloom_router,
    loom_call,
)
from kvloom.server.routes.kvloom_sessions import SESSION, usage_of
from kvloom.server.schema.kvloom import (
    Deleted,
    GuardView,
    OwnUse,
    ProfileList,
    ProfileSave,
    ProfileUse,
    ProfileView,
    ServerView,
    StatusView,
    TierView,
)
from kvloom.server.schema.kvloom_sessions import UsageView
from kvloom.session.loom import Loom
from kvloom.session.session import Session

routes = kvloom_router("profiles")

PROFILES = f"{PREFIX}/profiles"
FIDELITY = "fidelity"

_CHUNK_ID = re.compile(r"[0-9a-f]{64}")
_SLOT = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")

ProfilePath = Annotated[str, Path(max_length=64, description="a profile's name", examples=["review"])]


@routes.get(PROFILES, response_model=ProfileList)
async def list_profiles(request: Request, model: ModelName = None) -> Response:
    """The caller's profiles by name."""
    async with loom_call(request, model) as call:
        found = await call.run(_profiles, call.loom)
    return answer(ProfileList(data=found))


@routes.put(f"{PROFILES}/{{name}}", response_model=ProfileView)
async def save_profile(name: ProfilePath, body: ProfileSave, request: Request, model: ModelName = None) -> Response:
    """A session's chunks, system prompt and fidelity under a name, in place of what had it."""
    return answer(await edit(request, body.session, model, partial(_save, name, body.chunks)))


@routes.delete(f"{PROFILES}/{{name}}", response_model=Deleted)
async def delete_profile(name: ProfilePath, request: Request, model: ModelName = None) -> Response:
    async with loom_call(request, model) as call:
        _the(name, await call.run(_profiles, call.loom))
        await call.run(call.loom.delete_profile, name)
    return answer(Deleted(id=name))


@routes.post(f"{SESSION}/profile", response_model=UsageView)
async def use_profile(session: SessionPath, body: ProfileUse, request: Request, model: ModelName = None) -> Response:
    """Bring a profile's chunks, system prompt and fidelity into a session. All of its chunks, or nothing."""
    return answer(await edit(request, session, model, partial(_use, body.name, body.slots or {})))


@routes.get(f"{PREFIX}/status", response_model=StatusView)
async def show_status(request: Request, model: ModelName = None) -> Response:
    """The loaded model, the memory guard, and what the caller has here."""
    async with loom_call(request, model) as call:
        return answer(await call.run(_status, call.loom, is_free=is_of_this_machine(caller_of(request))))


# --- profiles --------------------------------------------------------------------------------------------------------


def _profiles(loom: Loom) -> list[ProfileView]:
    views = []
    for profile in loom.profiles():
        chunks = [source for source in profile.sources if _is_plain(source)]
        fidelity = profile.settings.get(FIDELITY)
        views.append(
            ProfileView.model_validate(
                {
                    "name": profile.name,
                    "chunks": chunks,
                    "num_files": len(profile.sources) - len(chunks),
                    "system": profile.system,
                    "fidelity": fidelity if fidelity in ("exact", "blend", "splice") else None,
                    "slots": profile.slots,
                }
            )
        )
    return views


def _is_plain(source: str) -> bool:
    """Whether a source is a chunk's id, or a slot for one. Everything else may be a path of this machine."""
    return _CHUNK_ID.fullmatch(source) is not None or _SLOT.fullmatch(source) is not None


def _the(name: str, views: Sequence[ProfileView]) -> ProfileView:
    found = next((view for view in views if view.name == name), None)
    if found is None:
        raise ApiError(404, "there is no profile of this name; GET /v1/kvloom/profiles lists them",
                       code="profile_not_found")  # fmt: skip
    return found


def _save(name: str, chunks: Sequence[str] | None, session: Session) -> ProfileView:
    loom = session.loom
    refs = session.manifest.active_chunk_ids if chunks is None else chunks
    sources = [ref if _SLOT.fullmatch(ref) else loom.resolve(ref) for ref in refs]
    loom.save_profile(name, session, sources)
    return _the(name, _profiles(loom))


def _use(name: str, slots: Mapping[str, str], session: Session) -> UsageView:
    loom = session.loom
    view = _the(name, _profiles(loom))
    if view.num_files:
        raise UsageError(
            f"profile {name!r} names {view.num_files} files of the server, which its command line reads only: save it "
            "anew with PUT /v1/kvloom/profiles/NAME"
        )
    filled = next(profile for profile in loom.profiles() if profile.name == name).fill(slots)
    try:
        chunks = [loom.resolve(source) for source in filled.sources]
    except UnknownChunkError as exc:
        raise UnknownChunkError(f"a chunk of profile {name!r} is not there: {exc}") from exc
    if chunks:
        session.activate(*chunks)
    if filled.system != session.system:
        session.set_system(filled.system)
    if FIDELITY in filled.settings:
        session.set_fidelity(filled.settings[FIDELITY])
    return usage_of(session)


# --- status ----------------------------------------------------------------------------------------------------------


def _status(loom: Loom, *, is_free: bool) -> StatusView:
    status = loom.status()
    chunks, sessions = loom.chunks(), loom.sessions()
    kv_bytes = {tier: sum(one.kv_bytes for one in chunks if one.tier is tier) for tier in {one.tier for one in chunks}}
    whole = ServerView(
        num_cells=status.num_cells,
        used_cells=status.used_cells,
        tiers=[TierView.model_validate(tier) for tier in status.tiers],
        faults=dict(status.faults),
    )
    return StatusView(
        model=status.model,
        fingerprint=status.fingerprint,
        engine=status.engine,
        kv_type=status.kv_type,
        window=status.window,
        train_context=status.train_context,
        fidelity=status.fidelity.value,
        can_move_kv=status.can_move_kv,
        can_rotate=status.can_rotate,
        why_not=status.why_not,
        guard=GuardView(level=loom.guard.level.value, is_refusing=loom.guard.is_refusing),
        own=OwnUse(
            num_chunks=len(chunks),
            num_sessions=len(sessions),
            num_open_sessions=sum(one.is_open for one in sessions),
            kv_bytes=kv_bytes,
        ),
        server=whole if is_free else None,
    )
