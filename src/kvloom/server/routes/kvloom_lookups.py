"""`/v1/kvloom/sessions/{id}/libraries`: the libraries that every question of a session is looked up in."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request, Response

from kvloom.server.errors import ApiError, printable
from kvloom.server.routes.kvloom_base import ModelName, SessionPath, answer, edit, kvloom_router, look
from kvloom.server.routes.kvloom_libraries import LibraryPath, unknown_library
from kvloom.server.routes.kvloom_sessions import SESSION
from kvloom.server.schema.kvloom_libraries import AttachedLibraries, LibraryRefs, LookupChange
from kvloom.session.session import Session

routes = kvloom_router("libraries")

ATTACHED = f"{SESSION}/libraries"


@routes.post(ATTACHED, response_model=AttachedLibraries)
async def attach_libraries(
    session: SessionPath, body: LibraryRefs, request: Request, model: ModelName = None
) -> Response:
    """Look every question of a session up in these libraries, too. All of them are attached, or none."""
    return answer(await edit(request, session, model, lambda it: _attach(it, body.libraries)))


@routes.get(ATTACHED, response_model=AttachedLibraries)
async def attached_libraries(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """The libraries of a session, in the order in which they were attached."""
    return answer(await look(request, session, model, _attached))


@routes.patch(ATTACHED, response_model=AttachedLibraries)
async def change_lookup(
    session: SessionPath, body: LookupChange, request: Request, model: ModelName = None
) -> Response:
    """Stop looking questions up, or do so again. Off, what the libraries brought in leaves the context."""

    def changed(it: Session) -> AttachedLibraries:
        it.set_recall(body.recalls)
        return _attached(it)

    return answer(await edit(request, session, model, changed))


@routes.delete(f"{ATTACHED}/{{library}}", response_model=AttachedLibraries)
async def detach_library(
    session: SessionPath, library: LibraryPath, request: Request, model: ModelName = None
) -> Response:
    """A library of a session is not looked at any more, and what it brought in leaves."""
    return answer(await edit(request, session, model, lambda it: _detach(it, library)))


def _attach(session: Session, names: list[str]) -> AttachedLibraries:
    unknown = next((name for name in names if not session.loom.has_library(name)), None)
    if unknown is not None:
        raise unknown_library(unknown)
    session.attach(*names)
    return _attached(session)


def _detach(session: Session, name: str) -> AttachedLibraries:
    if name not in session.libraries:
        message = f"library {printable(name)!r} is not attached to this session; GET …/libraries lists what is"
        raise ApiError(HTTPStatus.NOT_FOUND, message, code="library_not_found")
    session.detach(name)
    return _attached(session)


def _attached(session: Session) -> AttachedLibraries:
    return AttachedLibraries(session=session.id, libraries=list(session.libraries), recalls=session.is_recalling)
