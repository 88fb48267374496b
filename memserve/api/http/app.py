"""The routes of the HTTP port."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from memserve import __version__
from memserve.api.entry import Entry, require_admin
from memserve.api.http.bodies import Answering, Body, ChatBody, CompletionBody, EmbeddingBody, check_structure
from memserve.api.http.convert import BETWEEN, Reply, chat_request, completion_request, model_name
from memserve.api.http.errors import error_body, invalid, told
from memserve.api.http.openapi import TIMEOUT_HEADER, TIMEOUT_MAX_S, document
from memserve.api.http.overview import overview
from memserve.api.http.page import page_routes
from memserve.api.http.stream import CANCELLED, CallerGone, EventStream, chunks, connected
from memserve.api.http.tools import asked_tools
from memserve.api.rules import check_priority
from memserve.domain import GenerationRequest, Route, Tenant, TextDelta, Usage
from memserve.errors import InvalidField, ModelNotFound, QuotaExceeded
from memserve.gateway.access.callers import is_loopback
from memserve.gateway.assembly import GatewayParts, GatewayServices
from memserve.memory.texts.rules import TEXT_MAX_BYTES
from memserve.policy.tool_calls import CallReader

BODY_S = 30.0
"""A body must be here within this time."""
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
MODELS_MAX = 1000
B = TypeVar("B", bound=Body)
Handler = Callable[[Request, bytes, Tenant, contextlib.AsyncExitStack], Awaitable[Response]]


class HttpApi:
    """OpenAI's API for the tenants of a gateway."""

    def __init__(self, parts: GatewayParts, services: GatewayServices, entry: Entry) -> None:
        self._parts = parts
        self._pipeline = services.pipeline
        self._entry = entry
        self._base = parts.model.name

    @property
    def _embedding_model(self) -> str:
        """As people name it, without what it is good for."""
        return self._parts.texts.embedder.name.partition(" (")[0]

    def app(self) -> Starlette:
        post = ["POST"]
        return Starlette(
            routes=[
                Path("/v1/chat/completions", self._route("Generate", self._chat), methods=post),
                Path("/v1/completions", self._route("Generate", self._completion), methods=post),
                Path("/v1/embeddings", self._route("Search", self._embeddings), methods=post),
                Path("/v1/models", self._route("ListModules", self._models)),
                Path("/metrics", self._route("GetStatus", self._metrics)),
                Path("/health", self._keyless(self._health)),
                Path("/ready", self._keyless(self._ready)),
                Path("/version", self._keyless(self._version)),
                Path("/openapi.json", self._keyless(self._openapi)),
                *self._page_routes(),
            ],
            exception_handlers={HTTPException: self._not_here},
            middleware=self._for_web_pages(),
        )

    def _for_web_pages(self) -> list[Middleware]:
        """CORS, for the pages that the settings name."""
        if not (origins := self._parts.settings.http_cors_origins):
            return []
        return [
            Middleware(
                CORSMiddleware,
                allow_origins=[origin.strip() for origin in origins.split(",")],
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", TIMEOUT_HEADER, "traceparent", "tracestate"],
                expose_headers=["x-request-id", "x-memserve-worker", "retry-after", "x-memserve-reason"],
            )
        ]

    def _page_routes(self) -> list[Path]:
        if not self._parts.settings.page:
            return []
        files = [Path(route.path, self._keyless(route.endpoint)) for route in page_routes()]
        return [*files, Path("/v1/memserve/status", self._route("GetStatus", self._overview))]

    def _route(self, rpc: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """What every call does first and last. rpc: whose role, limits and pace hold."""

        async def answer(request: Request) -> Response:
            try:
                self._check_host(request)
                async with contextlib.AsyncExitStack() as held:
                    # The key first: nothing is kept of a body whose sender may not call.
                    declared_bytes = _declared_bytes(request)
                    tenant = await held.enter_async_context(
                        self._entry.call(rpc, request.headers, _peer(request), declared_bytes or 0)
                    )
                    self._check_size(declared_bytes or 0)
                    body = await self._body(request)
                    if declared_bytes is None and body:
                        await self._entry.limits.received(tenant.name, len(body))
                    async with connected(request.receive):
                        response = await handler(request, body, tenant, held)
            except (CallerGone, ClientDisconnect):
                self._entry.metrics.requests.labels(rpc, CANCELLED).inc()
                return Response(status_code=499)
            except Exception as error:
                response = self._failed(rpc, error)
            if not isinstance(response, EventStream):  # which counts its own end
                self._entry.metrics.requests.labels(rpc, f"HTTP_{response.status_code}").inc()
            return response

        return answer

    def _keyless(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A page that needs no key, at the pace of callers without one."""

        async def answer(request: Request) -> Response:
            try:
                await self._entry.strangers.turn(_peer(request))
            except QuotaExceeded as error:
                return self._failed("", error)
            return await handler(request)

        return answer

    def _check_host(self, request: Request) -> None:
        """While every caller on this machine is an administrator, a browser on it must not be made one by a
        web page whose name leads here (DNS rebinding). Raises InvalidField.
        """
        if self._entry.is_open and is_loopback(self._parts.settings.host):
            name = request.url.hostname or ""
            if not is_loopback(name) and not name.endswith(".localhost"):
                rule = "must be localhost or a loopback address while there are no API keys"
                raise InvalidField("host", rule)

    def _check_size(self, size_bytes: int) -> None:
        """Raises InvalidField."""
        most = self._parts.settings.max_message_bytes
        if size_bytes > most:
            raise InvalidField("body", f"at most {most} bytes (setting max_message_bytes)")

    async def _body(self, request: Request) -> bytes:
        parts, size_bytes = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    size_bytes += len(part)
                    self._check_size(size_bytes)
                    parts.append(part)
        except TimeoutError:
            raise InvalidField("body", f"was not here within {BODY_S:g} s") from None
        return b"".join(parts)

    def _failed(self, rpc: str, error: Exception) -> Response:
        status, body, headers = told(self._entry.failed(rpc, error))
        return JSONResponse(body, status, headers)

    async def _chat(
        self, request: Request, body: bytes, tenant: Tenant, held: contextlib.AsyncExitStack
    ) -> Response:
        asked = _read(ChatBody, request, body)
        tools = asked_tools(asked, self._parts.tokenizer.rules)
        wanted = chat_request(asked, self._base, tenant, tools)
        return await self._answer(request, asked, wanted, tenant, held, tools.reader())

    async def _completion(
        self, request: Request, body: bytes, tenant: Tenant, held: contextlib.AsyncExitStack
    ) -> Response:
        asked = _read(CompletionBody, request, body)
        wanted = completion_request(asked, self._base, tenant)
        return await self._answer(request, asked, wanted, tenant, held)

    async def _answer(
        self,
        request: Request,
        asked: Answering,
        wanted: GenerationRequest,
        tenant: Tenant,
        held: contextlib.AsyncExitStack,
        tools: CallReader | None = None,
    ) -> Response:
        if wanted.worker_id:
            require_admin(tenant, "memserve.worker_id")
        check_priority(wanted.priority, tenant)
        events = self._pipeline.generate(wanted, tenant, _deadline_s(request))
        await held.enter_async_context(contextlib.aclosing(events))
        # Nothing is sent before the first token: what is refused until then has a status of its own.
        event = await anext(events)
        while isinstance(event, Route):
            route, event = event, await anext(events)
        reply = Reply(
            route, asked.model or self._base, int(time.time()), wanted.sampling.logprobs,
            self._parts.tokenizer.token_text, isinstance(asked, ChatBody), tools=tools,
        )  # fmt: skip
        headers = {"x-request-id": route.request_id, "x-memserve-worker": route.worker_id}
        if asked.stream:
            options = asked.stream_options
            return EventStream(
                chunks(
                    reply,
                    event,
                    events,
                    include_usage=bool(options and options.include_usage),
                    usage_in_all=bool(options and options.continuous_usage_stats),
                ),
                held.pop_all(),
                headers,
                self._entry,
                self._parts.settings.write_timeout_s,
            )
        while isinstance(event, TextDelta):
            reply.add(event)
            event = await anext(events)
        assert isinstance(event, Usage)
        return JSONResponse(reply.whole(event), headers=headers)

    async def _embeddings(
        self, request: Request, body: bytes, tenant: Tenant, held: contextlib.AsyncExitStack
    ) -> Response:
        asked = _read(EmbeddingBody, request, body)
        texts, embedder = self._parts.texts, self._parts.texts.embedder
        if asked.model not in (self._embedding_model, embedder.name):
            raise ModelNotFound(asked.model, self._embedding_model)
        inputs = [asked.input] if isinstance(asked.input, str) else list(asked.input)
        for number, text in enumerate(inputs):
            if not text.strip() or len(text.encode()) > TEXT_MAX_BYTES:
                name = "input" if isinstance(asked.input, str) else f"input[{number}]"
                raise InvalidField(name, f"from 1 to {TEXT_MAX_BYTES} bytes")
        vectors, begun_s = [], time.monotonic()
        for number, text in enumerate(inputs):
            if number:
                await self._entry.limits.again("Search", tenant.name)
            vectors.append(await texts.embed(tenant.name, text, query=False))
        if asked.dimensions not in (None, len(vectors[0])):
            raise InvalidField("dimensions", f"is {len(vectors[0])} with this model")
        tokens = sum(map(embedder.tokens, inputs))
        self._parts.metrics.embedded(self._embedding_model, tokens, time.monotonic() - begun_s)
        return JSONResponse(
            {
                "object": "list",
                "model": asked.model,
                "data": [
                    {"object": "embedding", "index": number, "embedding": _vector(vector, asked)}
                    for number, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def _models(
        self, request: Request, body: bytes, tenant: Tenant, held: contextlib.AsyncExitStack
    ) -> Response:
        """The base model, every alias of the tenant's modules as a model of its own, and what embeds."""
        names, after = [self._base], ""
        while len(names) < MODELS_MAX:
            found, more_after = await self._parts.modules.store.modules(tenant.name, after=after, limit=100)
            names += [
                model_name(self._base, f"{module.name}@{alias.name}")
                for module in found
                for alias in module.aliases
            ]
            if not more_after:
                break
            after = more_after
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "created": 0, "owned_by": "memserve"}
                    | ({"parent": self._base} if name.startswith(self._base + BETWEEN) else {})
                    for name in (*names[:MODELS_MAX], self._embedding_model)
                ],
            }
        )

    async def _metrics(
        self, request: Request, body: bytes, tenant: Tenant, held: contextlib.AsyncExitStack
    ) -> Response:
        require_admin(tenant, "/metrics")
        return Response(generate_latest(self._parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _overview(
        self, request: Request, body: bytes, tenant: Tenant, held: contextlib.AsyncExitStack
    ) -> Response:
        now = await overview(self._parts, tenant)
        headers = {"cache-control": "no-store"}
        return Response(now.model_dump_json(), media_type="application/json", headers=headers)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        ready = len(self._parts.pool.ready(time.monotonic()))
        return JSONResponse({"ready_workers": ready}, 200 if ready else 503)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(document(page=self._parts.settings.page))

    async def _not_here(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, headers = HTTPStatus(error.status_code), error.headers
        asked = f"{request.method} {request.url.path}"
        message = f"{asked}: {error.detail.lower()}; /openapi.json has what there is"

        async def answer(_: Request) -> Response:
            return JSONResponse(error_body(status, message), status, headers)

        return await self._keyless(answer)(request)


def _peer(request: Request) -> str:
    """Address and port."""
    return "http:{}:{}".format(*(request.client or ("", 0)))


def _declared_bytes(request: Request) -> int | None:
    """Of the body, as its sender says. None: not said."""
    value = request.headers.get("content-length")
    return None if value is None else int(value)  # uvicorn's parser takes digits alone


def _read(kind: type[B], request: Request, body: bytes) -> B:
    """Raises InvalidField."""
    # Without it a browser would send a body of any web page's here, and not ask before.
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise InvalidField("content-type", "must be application/json")
    check_structure(body)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def _deadline_s(request: Request) -> float | None:
    """On the monotonic clock. Raises InvalidField."""
    value = request.headers.get(TIMEOUT_HEADER)
    if value is None:
        return None
    seconds = float(value) if SECONDS.fullmatch(value) else 0.0
    if not 0 < seconds <= TIMEOUT_MAX_S:
        raise InvalidField(TIMEOUT_HEADER, f"seconds, above 0 and at most {TIMEOUT_MAX_S}")
    return time.monotonic() + seconds


def _vector(vector: np.ndarray[Any, np.dtype[np.float32]], asked: EmbeddingBody) -> list[float] | str:
    if asked.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
