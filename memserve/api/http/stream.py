"""Answers as server-sent events, and callers that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from memserve.api.entry import Entry
from memserve.api.http.convert import Reply, finish, receipt, usage_body
from memserve.api.http.errors import told
from memserve.api.http.tools import calls_body
from memserve.domain import TextDelta, Usage

log = logging.getLogger("memserve.gateway")
DONE = b"data: [DONE]\n\n"
RPC = "Generate"
CANCELLED = "CANCELLED"
"""How a call ended that its caller left, as gRPC names it."""


class CallerGone(Exception):
    """The caller has closed its connection. Nobody reads what would be answered."""


@contextlib.asynccontextmanager
async def connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels what is inside as soon as the caller closes its connection, and raises CallerGone then.

    receive: of a request whose body has been read.
    """
    task, gone = asyncio.current_task(), False
    assert task is not None

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal gone
        gone = True
        task.cancel()

    watch = asyncio.create_task(_closed(receive))
    watch.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        if not gone or task.uncancel() > 0:
            raise
        raise CallerGone from None
    finally:
        watch.remove_done_callback(leave)
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def chunks(
    reply: Reply,
    first: TextDelta | Usage,
    rest: AsyncIterator[Any],
    *,
    include_usage: bool,
    usage_in_all: bool,
) -> AsyncGenerator[bytes, None]:
    """The answer's events, as OpenAI's API has them. usage_in_all: as vLLM's continuous_usage_stats."""
    head = reply.head
    if reply.chat:
        head["object"] = "chat.completion.chunk"
    prompt_tokens, output_tokens = reply.route.prompt_tokens, 0
    shared = {"usage": None} if include_usage else {}

    def chunk(delta: dict[str, Any], logprobs: Any, ended: str | None) -> dict[str, Any]:
        choice = {"index": 0, **delta, "logprobs": logprobs, "finish_reason": ended}
        body = head | {"choices": [choice]} | shared
        if usage_in_all:
            body["usage"] = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": prompt_tokens + output_tokens,
            }
        return body

    if reply.chat:
        yield event(chunk({"delta": {"role": "assistant", "content": ""}}, None, None))
    # A chunk without log-probabilities differs in its text only.
    mark = "\0"
    before, _, after = event(chunk(_delta(reply, mark), None, None)).partition(json.dumps(mark).encode())
    item = first
    while isinstance(item, TextDelta):
        output_tokens += len(item.token_ids)
        if reply.logprobs or usage_in_all:
            logprobs = None
            if reply.logprobs:
                logprobs = reply.logprobs_of([*zip(item.token_ids, item.logprobs, strict=True)])
            yield event(chunk(_delta(reply, reply.shown(item.text)), logprobs, None))
        elif text := reply.shown(item.text):
            yield before + json.dumps(text, ensure_ascii=False).encode() + after
        item = await anext(rest)
    text, calls = reply.ended()
    if text:
        yield event(chunk(_delta(reply, text), None, None))
    if calls:
        yield event(chunk({"delta": {"tool_calls": calls_body(calls, streamed=True)}}, None, None))
    ended = chunk({"delta": {}} if reply.chat else {"text": ""}, None, finish(item.finish_reason, calls))
    yield event(ended | {"memserve": receipt(reply.route, item)})
    if include_usage:
        yield event(head | {"choices": [], "usage": usage_body(item)})
    yield DONE


def _delta(reply: Reply, text: str) -> dict[str, Any]:
    return {"delta": {"content": text}} if reply.chat else {"text": text}


class EventStream(Response):
    """Sends events as they come, until they end, or the caller goes away or stops reading."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        held: contextlib.AsyncExitStack,
        headers: Mapping[str, str],
        entry: Entry,
        write_timeout_s: float,
    ) -> None:
        """held: closed when the stream has ended. entry: counts how it ended."""
        super().__init__(headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._held = held
        self._entry = entry
        self._write_timeout_s = write_timeout_s
        self._code = CANCELLED
        """Until the stream has ended otherwise."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._held, contextlib.aclosing(self._events):
                with contextlib.suppress(CallerGone):
                    async with connected(receive):
                        await self._send(send)
        finally:
            self._entry.metrics.requests.labels(RPC, self._code).inc()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        status, last = HTTPStatus(self.status_code), b""
        try:
            async for content in self._events:
                await self._write(send, content)
        except CallerGone:
            raise
        except Exception as error:
            status, body, _ = told(self._entry.failed(RPC, error))
            last = event(body)
        if last:
            await self._write(send, last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._code = f"HTTP_{status.value}"

    async def _write(self, send: Send, content: bytes) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": content, "more_body": True})
        except TimeoutError:
            log.warning("a stream ends: its caller has not read for %g s", self._write_timeout_s)
            self._entry.metrics.unread_streams.inc()
            raise CallerGone from None
