"""`/v1/kvloom/sessions/{id}/snapshots`, `undo`, `ledger`, `recall`: a session's states, and the way back to them."""

from __future__ import annotations

from fastapi import Request, Response

from kvloom.server.routes.kvloom_base import (
    ModelName,
    SessionPath,
    SnapshotPath,
    answer,
    edit,
    kvloom_router,
    look,
    snapshot_id,
)
from kvloom.server.routes.kvloom_sessions import SESSION, usage_of
from kvloom.server.schema.kvloom import Deleted
from kvloom.server.schema.kvloom_sessions import (
    LedgerLineView,
    LedgerView,
    MessageList,
    MessageView,
    RecallRequest,
    SnapshotCreate,
    SnapshotList,
    SnapshotView,
    UndoneView,
    UsageView,
)
from kvloom.session.session import Session

routes = kvloom_router("states")

SNAPSHOTS = f"{SESSION}/snapshots"
SNAPSHOT = f"{SNAPSHOTS}/{{snapshot}}"


@routes.post(f"{SESSION}/undo", response_model=UndoneView)
async def undo(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """Take the last change back, a whole turn included."""

    def undone(it: Session) -> UndoneView:
        return UndoneView(undone=it.undo(), usage=usage_of(it))

    return answer(await edit(request, session, model, undone))


@routes.get(f"{SESSION}/ledger", response_model=LedgerView)
async def show_ledger(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """What was ever given to this session and is not in its prompt, and why; the oldest first."""
    lines = await edit(request, session, model, Session.ledger)  # it waits for its turn as an edit does
    return answer(LedgerView(data=[LedgerLineView.model_validate(line) for line in lines]))


@routes.post(f"{SESSION}/recall", response_model=UsageView)
async def recall(session: SessionPath, body: RecallRequest, request: Request, model: ModelName = None) -> Response:
    """Turns and chunks of the ledger back into the context, in their old order."""

    def recalled(it: Session) -> UsageView:
        it.recall(*body.refs)
        return usage_of(it)

    return answer(await edit(request, session, model, recalled))


@routes.post(SNAPSHOTS, response_model=SnapshotView)
async def create_snapshot(
    session: SessionPath, body: SnapshotCreate, request: Request, model: ModelName = None
) -> Response:
    """The present state under an id; durable when this returns, with nothing computed."""
    taken = await edit(request, session, model, lambda it: it.snapshot(body.title or ""))
    return answer(SnapshotView.model_validate(taken))


@routes.get(SNAPSHOTS, response_model=SnapshotList)
async def list_snapshots(session: SessionPath, request: Request, model: ModelName = None) -> Response:
    """A session's snapshots, the newest first."""
    found = await look(request, session, model, Session.snapshots)
    return answer(SnapshotList(data=[SnapshotView.model_validate(one) for one in found]))


@routes.post(f"{SNAPSHOT}/restore", response_model=UsageView)
async def restore_snapshot(
    session: SessionPath, snapshot: SnapshotPath, request: Request, model: ModelName = None
) -> Response:
    """Back to a snapshot, with its KV. Undo takes it back."""
    wanted = snapshot_id(snapshot)

    def restored(it: Session) -> UsageView:
        it.restore(wanted)
        return usage_of(it)

    return answer(await edit(request, session, model, restored))


@routes.delete(SNAPSHOT, response_model=Deleted)
async def delete_snapshot(
    session: SessionPath, snapshot: SnapshotPath, request: Request, model: ModelName = None
) -> Response:
    wanted = snapshot_id(snapshot)
    await edit(request, session, model, lambda it: it.delete_snapshot(wanted))
    return answer(Deleted(id=wanted))


@routes.get(f"{SNAPSHOT}/messages", response_model=MessageList)
async def snapshot_messages(
    session: SessionPath, snapshot: SnapshotPath, request: Request, model: ModelName = None
) -> Response:
    """The messages of a snapshot as they were, without restoring it."""
    wanted = snapshot_id(snapshot)
    messages = await look(request, session, model, lambda it: it.snapshot_messages(wanted))
    return answer(MessageList(data=[MessageView.model_validate(message) for message in messages]))
