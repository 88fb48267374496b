"""The OpenAPI document says what is answered, so that clients can be made from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.routing import Route

from memserve.api.entry import entry_of
from memserve.api.http.app import HttpApi
from memserve.api.http.errors import STATUS
from memserve.api.http.replies import (
    ChatChunk,
    ChatReply,
    CompletionReply,
    EmbeddingReply,
    ErrorReply,
    HealthReply,
    ModelsReply,
    ReadyReply,
    ReplyBody,
    VersionReply,
)
from memserve.gateway.assembly import services_of
from tests.api.http.fixtures import CHAT, Http

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_replies_and_the_document_have_the_same_fields(http: Http) -> None:
    embedder = http.gateway.parts.texts.embedder.name
    asked: list[tuple[str, dict[str, Any], type[ReplyBody]]] = [
        (CHAT, http.body(max_tokens=2, logprobs=True), ChatReply),
        (
            "/v1/completions",
            {"model": http.model, "prompt": "a", "max_tokens": 2, "logprobs": 0},
            CompletionReply,
        ),
        ("/v1/embeddings", {"model": embedder, "input": ["a"]}, EmbeddingReply),
    ]
    for path, body, kind in asked:
        assert unknown(kind.model_validate((await http.client.post(path, json=body)).json())) == []
    streamed = {"max_tokens": 2, "logprobs": True, "stream_options": {"include_usage": True}}
    for event in await http.events(**streamed):
        assert unknown(ChatChunk.model_validate(event)) == []
    gets: dict[str, type[ReplyBody]] = {
        "/v1/models": ModelsReply, "/health": HealthReply, "/ready": ReadyReply, "/version": VersionReply,
    }  # fmt: skip
    for path, kind in gets.items():
        assert unknown(kind.model_validate((await http.client.get(path)).json())) == []
    refused = (await http.client.post(CHAT, json={})).json()
    assert unknown(ErrorReply.model_validate(refused)) == []


def unknown(reply: object) -> list[str]:
    """Fields of a reply that the document does not have."""
    if isinstance(reply, list | tuple):
        return [name for each in reply for name in unknown(each)]
    if not isinstance(reply, ReplyBody):
        return []
    values = [getattr(reply, name) for name in type(reply).model_fields]
    return [*(reply.model_extra or ()), *unknown(values)]


async def test_the_document_has_every_route_and_every_status(http: Http) -> None:
    document = (await http.client.get("/openapi.json")).json()
    parts, access = http.gateway.parts, http.gateway.access
    app = HttpApi(parts, services_of(parts, access), entry_of(parts, access)).app()
    assert document["paths"].keys() == {
        route.path for route in app.routes if isinstance(route, Route) and not route.path.startswith("/page/")
    }
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    refusals = {
        str(int(status)) for fact, status in STATUS.items() if fact.__module__ == "memserve.errors.answers"
    }
    assert refusals <= document["paths"][CHAT]["post"]["responses"].keys()


async def test_the_document_has_every_field_of_the_bodies(http: Http) -> None:
    document = (await http.client.get("/openapi.json")).json()
    chat = document["components"]["schemas"]["ChatBody"]["properties"]
    assert {"messages", "max_completion_tokens", "response_format", "memserve"} <= chat.keys()
    assert json.dumps(document).count("$ref") > 5
    assert document["components"]["schemas"]["ChatBody"]["additionalProperties"] is False
    module = document["components"]["schemas"]["MemserveBody"]["properties"]["module"]
    assert module["description"].startswith("A LoRA"), "the bodies say what a field means"
