"""The numbered steps of a request as OpenTelemetry spans, below the span of its call."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import Span

from memserve.domain import Route, Usage
from memserve.tracing import attach, tracer


class StepSpans:
    """Of one request. Nothing happens where its call is not traced."""

    __slots__ = ("_call", "_span")

    def __init__(self, first: str, second: str) -> None:
        """first: the step that the edge has taken, since the call came. second: the one that begins now."""
        self._call = trace.get_current_span()
        self._span: Span | None = None
        """Of the step that the request is in."""
        if self._call.is_recording():
            tracer.start_span(first, start_time=getattr(self._call, "start_time", None)).end()
            self._begin(second)

    def step(self, name: str) -> None:
        """A step begins, and the one before it ends."""
        if self._span is not None:
            self._span.end()
            self._begin(name)

    def close(self) -> None:
        """The last step has ended."""
        if self._span is not None:
            self._span.end()
            attach(self._call)

    def routed(self, route: Route) -> None:
        if self._span is None:
            return
        self._call.update_name(f"chat {route.model}")
        self._call.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "memserve",
                "gen_ai.request.model": route.model,
                "gen_ai.response.id": route.request_id,
                "memserve.worker_id": route.worker_id,
                "memserve.routing_reason": route.reason,
                "memserve.recall_outcome": route.recall_outcome,
                "memserve.passages": len(route.passages),
                "memserve.modules": [f"{used.name}@{used.version}" for used in route.modules],
            }
        )

    def ended(self, usage: Usage) -> None:
        if self._span is None:
            return
        self._call.set_attributes(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached.total,
                "gen_ai.usage.cache_creation.input_tokens": usage.stored_tokens,
                "gen_ai.response.finish_reasons": [usage.finish_reason],
                "memserve.ttft_ms": usage.ttft_ms,
            }
        )

    def _begin(self, name: str) -> None:
        # What the step asks of stores and workers belongs to it, and the step to the call.
        attach(self._call)
        self._span = tracer.start_span(name)
        attach(self._span)
