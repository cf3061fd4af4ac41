"""`GET /v1/models`: what can be asked for."""

from __future__ import annotations

from fastapi import Request, Response

from kvloom.errors import ModelNotFoundError
from kvloom.server.backend import ModelInfo
from kvloom.server.errors import printable
from kvloom.server.routes.base import json_answer, router, service_of
from kvloom.server.schema.lists import ModelCard, ModelList

routes = router("models")


@routes.get("/v1/models", response_model=ModelList)
async def list_models(request: Request) -> Response:
    """Every model of this server, loaded or not."""
    cards = [_card(info) for info in service_of(request).backend.models()]
    return json_answer(ModelList(object="list", data=cards).to_json(), {})


@routes.get("/v1/models/{model:path}", response_model=ModelCard)
async def retrieve_model(model: str, request: Request) -> Response:
    """One model, by its id or an alias."""
    infos = service_of(request).backend.models()
    found = next((info for info in infos if model == info.id or model in info.aliases), None)
    if found is None:
        known = ", ".join(info.id for info in infos)
        raise ModelNotFoundError(f"there is no model `{printable(model)}` here; known: {known}")
    return json_answer(_card(found).to_json(), {})


def _card(info: ModelInfo) -> ModelCard:
    return ModelCard(
        id=info.id,
        object="model",
        created=info.created_s,
        owned_by=info.owned_by,
        aliases=list(info.aliases),
        max_model_len=info.window or None,
        is_loaded=info.is_loaded,
        has_embeddings=info.has_embeddings,
        tool_form=info.tool_form or None,
    )
