"""The FastAPI application: routes, the layers around them, errors in one shape, one OpenAPI schema. Opens no socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.routing import Match

from kvloom.config import ServerSettings
from kvloom.errors import KvloomError
from kvloom.server.auth import AuthMiddleware, KeyCheck, NoKeys, NoQuota, Quota
from kvloom.server.backend import Backend
from kvloom.server.errors import ApiError, to_api_error, validation_error
from kvloom.server.library_use import LibraryUse
from kvloom.server.limits import LimitMiddleware
from kvloom.server.logs import RequestLogMiddleware, log_failure, notes_of
from kvloom.server.measured import MeasureMiddleware
from kvloom.server.routes import (
    chat,
    completions,
    embeddings,
    health,
    kvloom_chunks,
    kvloom_libraries,
    kvloom_lookups,
    kvloom_profiles,
    kvloom_sessions,
    kvloom_states,
    kvloom_turns,
    metrics,
    models,
    responses,
    tokens,
)
from kvloom.server.service import Service
from kvloom.server.sessions_open import OpenSessions
from kvloom.server.wire import error_response

log = logging.getLogger(__name__)

_PROMPTS = {"/v1/completions": "prompt", "/v1/responses": "input", "/v1/embeddings": "input"}
"""What a prompt is called that does not fit; elsewhere it is `messages`."""

_ROUTES = (completions, chat, responses, embeddings, models, tokens, metrics)
_KVLOOM_ROUTES = (
    kvloom_chunks,
    kvloom_libraries,
    kvloom_lookups,
    kvloom_sessions,
    kvloom_turns,
    kvloom_states,
    kvloom_profiles,
)

DESCRIPTION = """OpenAI's API over local models. Parameters that are not supported are refused by name.

Beyond OpenAI's: `kvloom` in requests (overflow policy, fidelity) and in replies (what was reused, loaded, computed and
left out), and content parts `{"type": "kvloom_chunk", "id": "…"}` that stand for a chunk's text."""


def create_app(
    backend: Backend, settings: ServerSettings, *, keys: KeyCheck | None = None, quota: Quota | None = None
) -> FastAPI:
    """The server over a backend. Without `keys` it answers loopback names only, and everyone is the local tenant.

    Its lifespan starts the backend in the background (503 until then) and closes it. `app.state.service` drains it.
    """
    service = Service(backend, settings, quota or NoQuota())
    app = FastAPI(
        title="kvloom",
        version=version("kvloom"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,  # their pages come from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.open_sessions = OpenSessions(backend, settings.session_idle_s)
    app.state.library_use = LibraryUse()
    service.metrics.watch(service.admission, backend)
    service.before_close.append(app.state.open_sessions.close)
    bearer = Security(HTTPBearer(auto_error=False, description="a key of `kvloom keys add`; none without keys"))
    for module in (*_ROUTES, *_KVLOOM_ROUTES):
        app.include_router(module.routes, dependencies=[bearer])
    app.include_router(health.routes)
    app.add_exception_handler(KvloomError, _known_error)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(HTTPException, _http_error)
    # The last that is added is the outermost.
    app.add_middleware(AuthMiddleware, keys=keys or NoKeys())
    app.add_middleware(LimitMiddleware, limits=settings)
    app.add_middleware(RequestLogMiddleware)
    app.add_middleware(MeasureMiddleware, metrics=service.metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    starting = asyncio.create_task(service.start())
    try:
        yield
    finally:
        service.lifecycle.drain()
        starting.cancel()
        await asyncio.wait({starting})
        await service.close()


# --- errors ----------------------------------------------------------------------------------------------------------


async def _known_error(request: Request, error: Exception) -> Response:
    answer = to_api_error(error)
    if answer.code == "context_length_exceeded":
        answer.param = _PROMPTS.get(request.url.path, answer.param)
    log_failure(answer, error, notes_of(request))
    return error_response(answer)


async def _wrong_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    field = getattr(request.scope.get("route"), "body_field", None)
    model = field.field_info.annotation if field is not None else None
    answer = validation_error(error.errors(), error.body, model)
    log_failure(answer, answer, notes_of(request))
    return error_response(answer)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"allow": ", ".join(_methods_at(request))}
    codes = {404: "unknown_path", 405: "method_not_allowed"}
    messages = {
        404: "there is no such path; GET /openapi.json lists what there is",
        405: f"{request.method} is not offered here; this path takes {headers.get('allow', 'nothing')}",
    }
    answer = ApiError(
        error.status_code,
        messages.get(error.status_code, str(error.detail)),
        code=codes.get(error.status_code, "invalid_request"),
        headers=headers,
    )
    log_failure(answer, answer, notes_of(request))
    return error_response(answer)


def _methods_at(request: Request) -> list[str]:
    """The router tells those of the first route only, and a path has a route for each of its methods."""
    found = []
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.append(method)
    return found


# --- the schema ------------------------------------------------------------------------------------------------------


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
    return app.openapi_schema
