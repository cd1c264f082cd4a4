"""GET /v1/models and /v1/models/{id}: what is served here, in the form of the protocol that the client speaks."""

from __future__ import annotations

from datetime import UTC, datetime

from octavo.server.anthropic.replies import ModelInfo, ModelPage
from octavo.server.exchange import Exchange, Reply, json_reply
from octavo.server.openai import models
from octavo.server.services import Services

VERSION = b"anthropic-version"
"""The header that each request of Anthropic's protocol carries, and none of OpenAI's."""


async def list_models(services: Services, exchange: Exchange) -> Reply:
    """All names of the model: one page."""
    if exchange.header(VERSION) is None:
        return await models.list_models(services, exchange)
    names = services.names.served
    page = ModelPage(data=[_info(services, name) for name in names], first_id=names[0], last_id=names[-1])
    return json_reply(page)


async def show_model(services: Services, exchange: Exchange) -> Reply:
    """One of them; 404 for another."""
    if exchange.header(VERSION) is None:
        return await models.show_model(services, exchange)
    name = exchange.path_params["model"]
    services.names.check(name)
    return json_reply(_info(services, name))


def _info(services: Services, name: str) -> ModelInfo:
    longest = services.llm.info.get("max_model_len")
    return ModelInfo(
        id=name,
        display_name=name,
        created_at=datetime.fromtimestamp(services.started_at, UTC),
        max_input_tokens=longest,
        max_tokens=longest,
    )
