"""The OpenAPI document of the HTTP port, made from the bodies of requests and replies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from memserve import __version__
from memserve.api.http.bodies import Body, ChatBody, CompletionBody, EmbeddingBody
from memserve.api.http.overview import Overview
from memserve.api.http.replies import (
    ChatChunk,
    ChatReply,
    CompletionReply,
    EmbeddingReply,
    ErrorReply,
    HealthReply,
    ModelsReply,
    ReadyReply,
    VersionReply,
)

TIMEOUT_HEADER = "x-request-timeout-s"
TIMEOUT_MAX_S = 86_400
REF = "#/components/schemas/{model}"
KEYED: list[dict[str, list[str]]] = [{"key": []}, {}]
"""Without keys, no caller needs one."""
FAILURES = {
    "400": "The request breaks a rule; `error.param` names the field.",
    "401": "No valid key or token.",
    "403": "The key's role or priority does not allow it.",
    "404": "No such model or module.",
    "409": "The module is not in a state to answer.",
    "429": "Too much: `retry-after` and `x-memserve-reason` say when to come again, and why.",
    "500": "A fault of memserve's own. The gateway's log has it under the id in the message.",
    "502": "The worker was lost in the answer.",
    "503": "Nobody can answer now.",
    "504": "The deadline of `x-request-timeout-s` has passed.",
}
KEYLESS_FAILURES = ("429", "503")


@dataclass(frozen=True, slots=True)
class Operation:
    """What may be done with a path. reply: None where it is text. streamed: an event of its streamed form."""

    path: str
    name: str
    summary: str
    reply: type[BaseModel] | None
    body: type[Body] | None = None
    streamed: type[BaseModel] | None = None
    needs_key: bool = True
    answers: bool = False
    """Whether a worker answers it."""
    text: str = "text/plain"
    """The media type where it is text."""


OPERATIONS = (
    Operation(
        "/v1/chat/completions", "createChatCompletion",
        "An answer to a conversation, whole or as server-sent events.",
        ChatReply, ChatBody, ChatChunk, answers=True,
    ),
    Operation(
        "/v1/completions", "createCompletion",
        "How a text goes on: no chat template, no system message.",
        CompletionReply, CompletionBody, CompletionReply, answers=True,
    ),
    Operation(
        "/v1/embeddings", "createEmbedding",
        "Vectors of texts, by the model that embeds memories.",
        EmbeddingReply, EmbeddingBody,
    ),
    Operation(
        "/v1/models", "listModels",
        "The base model, the tenant's module aliases as models of their own, and the embedding model.",
        ModelsReply,
    ),
    Operation(
        "/metrics", "getMetrics", "The gateway's metrics, as Prometheus has them. For administrators.", None
    ),
    Operation("/health", "getHealth", "Whether the process is alive.", HealthReply, needs_key=False),
    Operation(
        "/ready", "getReadiness", "200 while a worker is ready and the gateway does not stop, else 503.",
        ReadyReply, needs_key=False,
    ),
    Operation("/version", "getVersion", "Of memserve.", VersionReply, needs_key=False),
)  # fmt: skip
PAGE = (
    Operation(
        "/", "getPage", "A page for people: workers, memories, requests and a question.", None,
        needs_key=False, text="text/html",
    ),
    Operation(
        "/v1/memserve/status", "getOverview",
        "What the page shows: workers, the tenant's memories and its requests with their steps.", Overview,
    ),
)  # fmt: skip


@cache
def document(*, page: bool) -> dict[str, Any]:
    """OpenAPI 3.1. page: whether the page is served."""
    models: set[tuple[Any, Any]] = {(ErrorReply, "serialization")}
    paths: dict[str, Any] = {}
    for operation in (*OPERATIONS, *(PAGE if page else ())):
        models |= {
            (model, mode)
            for model, mode in (
                (operation.body, "validation"),
                (operation.reply, "serialization"),
                (operation.streamed, "serialization"),
            )
            if model is not None
        }
        paths[operation.path] = {"post" if operation.body else "get": _operation(operation)}
    paths["/openapi.json"] = {"get": _of_this_document()}
    _, schemas = models_json_schema(sorted(models, key=lambda each: each[0].__name__), ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "memserve",
            "version": __version__,
            "summary": "OpenAI's API over language models with memories.",
            "description": "What only memserve has is in the object `memserve` of bodies and replies.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    text = {operation.text: {"schema": {"type": "string"}}}
    content = _json(operation.reply) if operation.reply else text
    if operation.streamed:
        content["text/event-stream"] = {"itemSchema": _event(operation.streamed)}
    said: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": KEYED if operation.needs_key else [],
    }
    if operation.body:
        said["requestBody"] = {"required": True, "content": _json(operation.body)}
    success: dict[str, Any] = {"description": "OK", "content": content}
    if operation.answers:
        said["parameters"] = [_timeout_header()]
        said["description"] = (
            f"With `stream`, the data of each event is a {_name(operation.streamed)}, or an ErrorReply that"
            " ends the stream; `[DONE]` comes last."
        )
        success["headers"] = {
            "x-request-id": _header("For `memserve explain`."),
            "x-memserve-worker": _header("Which worker answered."),
        }
    failures = FAILURES if operation.needs_key else {code: FAILURES[code] for code in KEYLESS_FAILURES}
    said["responses"] = {"200": success} | {code: _failure(code, what) for code, what in failures.items()}
    if operation.path == "/ready":
        # Where nobody is ready, and where the gateway has only begun to start.
        either = {"anyOf": [_ref(ReadyReply), _ref(ErrorReply)]}
        said["responses"]["503"]["content"] = {"application/json": {"schema": either}}
    return said


def _event(chunk: type[BaseModel]) -> dict[str, Any]:
    """A server-sent event, as OpenAPI 3.2 says it."""
    parsed = {"anyOf": [_ref(chunk), _ref(ErrorReply)]}
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": parsed}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"anyOf": [text, {"const": "[DONE]"}]}},
    }


def _of_this_document() -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {
        "operationId": "getOpenApi",
        "summary": "This document.",
        "security": [],
        "responses": {"200": {"description": "OK", "content": content}}
        | {code: _failure(code, FAILURES[code]) for code in KEYLESS_FAILURES},
    }


def _timeout_header() -> dict[str, Any]:
    return {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Seconds that the whole answer may take.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": TIMEOUT_MAX_S},
    }


def _failure(code: str, what: str) -> dict[str, Any]:
    failure: dict[str, Any] = {"description": what, "content": _json(ErrorReply)}
    if code in ("429", "503"):
        failure["headers"] = {
            "retry-after": _header("Seconds.", "integer"),
            "retry-after-ms": _header("The same in milliseconds.", "integer"),
            "x-memserve-reason": _header("Why, in one word."),
        }
    return failure


def _header(what: str, kind: str = "string") -> dict[str, Any]:
    return {"description": what, "schema": {"type": kind}}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=_name(model))}


def _name(model: type[BaseModel] | None) -> str:
    return model.__name__ if model else ""
