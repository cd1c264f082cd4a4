"""GET /v1/models and /v1/models/{id}: what is served here."""

from __future__ import annotations

from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai.replies import ModelCard, ModelList
from octavo.server.services import Services


async def list_models(services: Services, exchange: Exchange) -> Reply:
    """All names of the model."""
    return json_reply(ModelList(data=[_card(services, name) for name in services.names.served]))


async def show_model(services: Services, exchange: Exchange) -> Reply:
    """One of them; 404 for another."""
    name = exchange.path_params["model"]
    services.names.check(name)
    return json_reply(_card(services, name))


def _card(services: Services, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=services.started_at,
        root=services.names.first,
        max_model_len=services.llm.info.get("max_model_len"),
    )
