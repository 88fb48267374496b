"""The OpenAPI document of the HTTP port, made from the bodies."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from memserve import __version__
from memserve.api.http.bodies import Body, ChatBody, CompletionBody, EmbeddingBody
from memserve.api.http.overview import Overview

REF = "#/components/schemas/{model}"
POSTS: dict[str, tuple[type[Body], str]] = {
    "/v1/chat/completions": (ChatBody, "An answer to a conversation, whole or as server-sent events."),
    "/v1/completions": (CompletionBody, "How a text goes on: no chat template, no system message."),
    "/v1/embeddings": (EmbeddingBody, "Vectors of texts, by the model that embeds memories."),
}
GETS = {
    "/v1/models": ("The base model, and the tenant's module aliases as models of their own.", True),
    "/metrics": ("The gateway's metrics, as Prometheus has them. For administrators.", True),
    "/health": ("Whether the process is alive.", False),
    "/ready": ("200 while a worker is ready, else 503.", False),
    "/version": ("Of memserve.", False),
    "/openapi.json": ("This document.", False),
}
PAGE = {
    "/": ("A page for people: workers, memories, requests and a question.", False),
    "/v1/memserve/status": (
        "What the page shows: workers, the tenant's memories and its requests with their steps.",
        True,
    ),
}
KINDS = {"/metrics": "text/plain", "/": "text/html"}
FAILURES = {
    "400": "The body breaks a rule; `error.param` names the field.",
    "401": "No valid key.",
    "403": "The key's role or priority does not allow it.",
    "404": "No such model or module.",
    "409": "The module is not in a state to answer.",
    "429": "Too much: `retry-after` and `x-memserve-reason` say when to come again, and why.",
    "503": "Nobody can answer now.",
    "504": "The deadline of `x-request-timeout-s` has passed.",
}


@cache
def document(*, page: bool) -> dict[str, Any]:
    """OpenAPI 3.1. page: whether the page is served."""
    models: list[Any] = [(body, "validation") for body, _ in POSTS.values()]
    gets, answers = GETS, {}
    if page:
        models.append((Overview, "serialization"))
        gets, answers = GETS | PAGE, {"/v1/memserve/status": {"$ref": REF.format(model=Overview.__name__)}}
    _, schemas = models_json_schema(models, ref_template=REF)
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }
    paths: dict[str, Any] = {}
    for path, (body, what) in POSTS.items():
        schema = {"$ref": REF.format(model=body.__name__)}
        streams: dict[str, Any] = {"text/event-stream": {}} if body is not EmbeddingBody else {}
        paths[path] = {
            "post": {
                "summary": what,
                "security": [{"key": []}, {}],
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                "responses": _responses({"application/json": {"schema": {"type": "object"}}, **streams}),
            }
        }
    for path, (what, keyed) in gets.items():
        content = {"schema": answers[path]} if path in answers else {}
        paths[path] = {
            "get": {
                "summary": what,
                "security": [{"key": []}, {}] if keyed else [],
                "responses": _responses({KINDS.get(path, "application/json"): content}),
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "memserve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}
    return {"200": {"description": "OK", "content": content}} | {
        code: {"description": what, "content": error} for code, what in FAILURES.items()
    }
