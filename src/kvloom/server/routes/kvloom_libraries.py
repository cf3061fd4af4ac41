"""`/v1/kvloom/libraries`: documents whose passages are found by questions. Sessions' own stand in `kvloom_lookups`.

A document comes as text or as a file's bytes, and its name is a label: nothing is ever read by it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query, Request, Response

from kvloom.config import ServerSettings
from kvloom.errors import IndexDamagedError
from kvloom.server.auth import Reservation
from kvloom.server.errors import ApiError, printable
from kvloom.server.library_use import LibraryUse
from kvloom.server.lifecycle import Phase
from kvloom.server.routes.base import caller_of, json_answer, notes, service_of
from kvloom.server.routes.kvloom_base import (
    PREFIX,
    Limit,
    ModelName,
    answer,
    is_of_this_machine,
    kvloom_router,
    loom_call,
    page,
    sessions_of,
)
from kvloom.server.schema.kvloom import Deleted
from kvloom.server.schema.kvloom_libraries import (
    DEFAULT_COMPUTED,
    MAX_DOCUMENTS,
    MAX_LIBRARIES,
    AddedDocument,
    DocumentPage,
    DocumentUpload,
    DocumentView,
    FoundList,
    FoundPassage,
    LibraryCreate,
    LibraryPage,
    LibraryView,
    PrecomputedView,
    PrecomputeRequest,
    RemovedDocument,
    SearchRequest,
)
from kvloom.server.service import Call
from kvloom.server.sessions_open import default_model, loom_of
from kvloom.server.uploads import Upload, read_upload
from kvloom.session.libraries import DocumentInfo, Library, ReadLimits, names_in
from kvloom.session.loom import Loom
from kvloom.session.precompute import Precomputed

routes = kvloom_router("libraries")

LIBRARIES = f"{PREFIX}/libraries"
LIBRARY = f"{LIBRARIES}/{{library}}"
DOCUMENTS = f"{LIBRARY}/documents"

DEFAULT_FOUND = 8
MAX_LIBRARY_BYTES = 1024**3
"""Of a library's index, some three times its texts: half a million passages."""
MAX_READING_S = 30.0
MAX_HTML_TAGS = 100_000
MAX_PDF_PAGES = 2_000
"""Below what the command line reads: here a stranger's file takes the server's time."""
FIELDS = ("file", "name")

T = TypeVar("T")

LibraryPath = Annotated[str, Path(max_length=256, description="a library's name", examples=["books"])]
DocumentPath = Annotated[str, Path(max_length=1024, description="a document's name", examples=["harbour.md"])]
AfterName = Annotated[str | None, Query(max_length=1024, description="list what follows the one of this name")]

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "a text, PDF or HTML file"},
        "name": {"type": "string", "description": "default: the file's own name"},
    },
}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DocumentUpload.model_json_schema()},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


# --- libraries -------------------------------------------------------------------------------------------------------


@routes.post(LIBRARIES, response_model=LibraryView)
async def create_library(body: LibraryCreate, request: Request, model: ModelName = None) -> Response:
    """A new library without documents."""
    is_free = is_of_this_machine(caller_of(request))  # the command line makes as many as it likes in the same home

    async def created() -> LibraryView:
        with use_of(request).alone((caller_of(request).tenant, body.name)):
            async with loom_call(request, model) as call:
                return await call.run(_create, call.loom, body.name, is_bounded=not is_free)

    return answer(await sessions_of(request).whole(created()))


@routes.get(LIBRARIES, response_model=LibraryPage)
async def list_libraries(
    request: Request, limit: Limit = 100, after: AfterName = None, model: ModelName = None
) -> Response:
    """The caller's libraries by name."""
    async with loom_call(request, model) as call:
        shown, has_more = page(await call.run(names_in, call.loom.home), str, limit, after)
        views = await call.run(_views, call.loom, shown)
    return answer(LibraryPage(data=views, has_more=has_more))


@routes.get(LIBRARY, response_model=LibraryView)
async def show_library(library: LibraryPath, request: Request, model: ModelName = None) -> Response:
    """How much is in a library."""
    return answer(await _used(request, library, model, lambda it: LibraryView.model_validate(it.info())))


@routes.delete(LIBRARY, response_model=Deleted)
async def delete_library(library: LibraryPath, request: Request, model: ModelName = None) -> Response:
    """A library and its index, gone for good. Passages that became chunks stay; sessions do not find it any more."""

    async def deleted() -> None:
        with use_of(request).alone((caller_of(request).tenant, library)):
            async with loom_call(request, model) as call:
                await call.run(_delete, call.loom, library)

    await sessions_of(request).whole(deleted())
    return answer(Deleted(id=library))


# --- documents -------------------------------------------------------------------------------------------------------


@routes.post(DOCUMENTS, response_model=AddedDocument, openapi_extra=_UPLOAD)
async def add_document(library: LibraryPath, request: Request, model: ModelName = None) -> Response:
    """Add a document, as a file of a form (text, PDF, HTML) or as text in JSON. A known name gets the new content.

    What is not changed in it is not indexed or computed again.
    """
    settings = service_of(request).settings
    upload = await read_upload(request, settings, DocumentUpload, FIELDS)
    has_left = threading.Event()

    async def added() -> AddedDocument:
        async with use_of(request).reading:
            work = partial(_add, upload=upload, limits=_read_limits(settings), is_cancelled=has_left.is_set)
            return await _used(request, library, model, work)

    try:
        return answer(await sessions_of(request).whole(added()))
    except asyncio.CancelledError:
        has_left.set()  # a document is added whole or not at all
        raise


@routes.get(DOCUMENTS, response_model=DocumentPage)
async def list_documents(
    library: LibraryPath, request: Request, limit: Limit = 100, after: AfterName = None, model: ModelName = None
) -> Response:
    """A library's documents by name."""
    found = await _used(request, library, model, Library.documents)
    shown, has_more = page(found, lambda one: one.name, limit, after)
    return answer(DocumentPage(data=[DocumentView.model_validate(one) for one in shown], has_more=has_more))


@routes.delete(f"{DOCUMENTS}/{{document:path}}", response_model=RemovedDocument)
async def remove_document(
    library: LibraryPath, document: DocumentPath, request: Request, model: ModelName = None
) -> Response:
    """A document out of a library; a file of a folder that the command line added comes back with its `refresh`."""
    await _used(request, library, model, lambda it: _remove(it, document))
    return answer(RemovedDocument(library=library, name=document))


# --- searching and computing -----------------------------------------------------------------------------------------


@routes.post(f"{LIBRARY}/search", response_model=FoundList)
async def search_library(
    library: LibraryPath, body: SearchRequest, request: Request, model: ModelName = None
) -> Response:
    """The passages that have most to do with a question. No model is asked, and no context changes."""
    found = await _used(request, library, model, lambda it: it.search(body.question, body.limit or DEFAULT_FOUND))
    return answer(FoundList(data=[FoundPassage.model_validate(one) for one in found]))


@routes.post(f"{LIBRARY}/precompute", response_model=PrecomputedView)
async def precompute_library(
    library: LibraryPath, body: PrecomputeRequest, request: Request, model: ModelName = None
) -> Response:
    """Compute passages ahead, as many as `max_tokens` allow, so that no question waits for them.

    It waits for a slot and counts what it computes, as a reply does. It ends within one step of the model when the
    client leaves or the server drains, and the next call goes on behind it.
    """
    service, caller = service_of(request), caller_of(request)
    has_left = threading.Event()

    def is_cancelled() -> bool:
        return has_left.is_set() or service.lifecycle.phase is Phase.DRAINING

    async def computed() -> tuple[Precomputed, dict[str, str]]:
        name = model or default_model(service.backend)
        with use_of(request).using((caller.tenant, library)):
            async with use_of(request).computing(caller.tenant), service.call(name, caller, notes(request)) as call:
                found = await sessions_of(request).run(_known, loom_of(call.lease), library)
                most = body.max_tokens or DEFAULT_COMPUTED
                done = await _in_slot(
                    call, await call.reserve(most), partial(found.precompute, None, is_cancelled, max_tokens=most)
                )
                return done, call.headers

    task = service.lifecycle.run(computed())
    try:
        done, headers = await asyncio.shield(task)
    except asyncio.CancelledError:
        has_left.set()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise
    except IndexDamagedError as exc:
        raise _damaged(library) from exc
    return json_answer(PrecomputedView.model_validate(done).to_json(), headers)


async def _in_slot(call: Call, reservation: Reservation, work: Callable[..., Precomputed]) -> Precomputed:
    computed: list[int] = []  # also where it ends with an error: what was computed until then is kept, and counts
    try:
        (ticket,) = call.service.admission.enter(call.caller.tenant)
        try:
            await ticket.admitted()
            return await call.service.in_slot(partial(work, on_computed=computed.append))
        finally:
            ticket.leave()
    finally:
        try:
            call.notes.tell(prompt_tokens=sum(computed))
            if sum(computed):
                await reservation.settle(sum(computed))
        finally:
            await reservation.release()  # changes nothing where it was settled


# --- inside ----------------------------------------------------------------------------------------------------------


def use_of(request: Request) -> LibraryUse:
    found = request.app.state.library_use
    assert isinstance(found, LibraryUse)
    return found


async def _used(request: Request, library: str, model: str | None, work: Callable[[Library], T]) -> T:
    """What `work` makes of a library, in a thread; it goes on to its end even where the client leaves."""

    async def used() -> T:
        with use_of(request).using((caller_of(request).tenant, library)):
            async with loom_call(request, model) as call:
                return await call.run(lambda: work(_known(call.loom, library)))

    try:
        return await sessions_of(request).whole(used())
    except IndexDamagedError as exc:
        raise _damaged(library) from exc


def _known(loom: Loom, name: str) -> Library:
    """Raises ApiError (404) where there is none; one is never made by asking for it."""
    if not loom.has_library(name):
        raise unknown_library(name)
    return loom.library(name)


def _create(loom: Loom, name: str, *, is_bounded: bool) -> LibraryView:
    if loom.has_library(name):
        message = f"there is a library {name!r} already: add to it, or choose another name"
        raise ApiError(HTTPStatus.CONFLICT, message, code="name_taken", param="name")
    if is_bounded and len(names_in(loom.home)) >= MAX_LIBRARIES:
        message = f"there are {MAX_LIBRARIES} libraries, the most that are kept over HTTP: delete one first"
        raise ApiError(HTTPStatus.CONFLICT, message, code="too_many_libraries")
    return LibraryView.model_validate(loom.library(name).info())


def _views(loom: Loom, names: list[str]) -> list[LibraryView]:
    found = []
    for name in names:
        try:
            if loom.has_library(name):  # not deleted since it was listed
                found.append(LibraryView.model_validate(loom.library(name).info()))
        except IndexDamagedError:
            found.append(
                LibraryView(name=name, num_documents=0, num_passages=0, size_bytes=0, is_adhoc=False, is_damaged=True)
            )
    return found


def _delete(loom: Loom, name: str) -> None:
    if not loom.has_library(name):
        raise unknown_library(name)
    loom.delete_library(name)


def _add(library: Library, *, upload: Upload, limits: ReadLimits, is_cancelled: Callable[[], bool]) -> AddedDocument:
    info = library.info()
    if info.size_bytes > MAX_LIBRARY_BYTES:
        raise _full(f"its index has {info.size_bytes:,} bytes, and {MAX_LIBRARY_BYTES:,} are the most")
    if info.num_documents >= MAX_DOCUMENTS and _document(library, upload.name) is None:
        raise _full(f"it has {info.num_documents:,} documents, and {MAX_DOCUMENTS:,} are the most")
    if upload.is_file:
        contents = {upload.name: upload.data}
        updated = library.add_bytes(contents, is_cancelled, limits=limits, apart_s=MAX_READING_S)
    else:
        updated = library.add_texts({upload.name: upload.data.decode()}, is_cancelled, limits=limits)
    document = _document(library, upload.name)
    if document is None:  # its client has left, or somebody removed it at once
        raise _unknown_document(library.name, upload.name)
    return AddedDocument(
        library=library.name,
        document=DocumentView.model_validate(document),
        is_new=updated.num_added > 0,
        is_changed=updated.num_changed > 0,
        num_passages_added=updated.num_passages_added,
        num_passages_kept=updated.num_passages_kept,
        num_passages_removed=updated.num_passages_removed,
    )


def _read_limits(settings: ServerSettings) -> ReadLimits:
    most = int(settings.max_upload_bytes)
    return ReadLimits(
        max_file_bytes=most,
        max_html_bytes=most,
        max_pdf_bytes=most,
        max_html_tags=MAX_HTML_TAGS,
        max_pdf_pages=MAX_PDF_PAGES,
    )


def _document(library: Library, name: str) -> DocumentInfo | None:
    return next((one for one in library.documents() if one.name == name), None)


def _remove(library: Library, name: str) -> None:
    if _document(library, name) is None:
        raise _unknown_document(library.name, name)
    library.remove(name)


def unknown_library(name: str) -> ApiError:
    message = f"there is no library {printable(name)!r}; GET {LIBRARIES} lists them, POST makes one"
    return ApiError(HTTPStatus.NOT_FOUND, message, code="library_not_found")


def _unknown_document(library: str, name: str) -> ApiError:
    message = f"library {library!r} has no document {printable(name)!r}; GET …/documents lists them"
    return ApiError(HTTPStatus.NOT_FOUND, message, code="document_not_found")


def _full(why: str) -> ApiError:
    return ApiError(HTTPStatus.CONFLICT, f"the library is full: {why}; make another one", code="library_full")


def _damaged(name: str) -> ApiError:
    message = f"the index of library {printable(name)!r} is damaged: delete it, and add its documents again"
    return ApiError(HTTPStatus.CONFLICT, message, code="library_damaged")
