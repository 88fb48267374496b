"""The three phases of an answer in a worker as spans: queue, prefill and decode."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from opentelemetry.trace import Span

from memserve.domain.worker_calls import AnswerPart, WorkerRequest
from memserve.tracing import failed, remote_context, tracer


class Phases:
    """Of one answer. The queue begins with it. Nothing happens where the gateway has sent no context."""

    def __init__(self, request: WorkerRequest, headers: Mapping[str, Any]) -> None:
        self._context = remote_context(headers)
        self._tokens = 0
        self._span: Span | None = None
        self._begin("worker queue", {"memserve.prompt_tokens": len(request.token_ids)})

    @contextlib.asynccontextmanager
    async def queued(self, turn: contextlib.AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """The turn in the waiting room. When it comes, prefill begins."""
        async with turn:
            self._begin("worker prefill", {})
            yield

    def see(self, part: AnswerPart) -> None:
        """A part of the answer has come."""
        if self._span is None:
            return
        if not self._tokens:
            self._begin("worker decode", {})
        self._tokens += len(part.token_ids)
        if part.cached is not None:
            tiers = {"device": part.cached.device, "host": part.cached.host, "redis": part.cached.redis}
            self._span.set_attributes(
                {f"memserve.cached_tokens.{tier}": tokens for tier, tokens in tiers.items()}
            )
        if part.finish_reason is not None:
            self._end()  # not when the call has ended: on a busy machine the gateway's span ends before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._span is not None:
            if kind is not None:
                failed(self._span, kind.__name__)
            self._end()

    def _end(self) -> None:
        if self._span is not None:
            self._span.set_attribute("memserve.output_tokens", self._tokens)
            self._span.end()
            self._span = None

    def _begin(self, name: str, attributes: Mapping[str, Any]) -> None:
        if self._context is None:
            return
        if self._span is not None:
            self._span.end()
        self._span = tracer.start_span(name, self._context, attributes=dict(attributes))
