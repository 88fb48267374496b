"""OpenTelemetry: spans of requests, and the W3C context that carries them from process to process.

Without the setting `traces_endpoint` there is no provider, and OpenTelemetry's API then does nothing. A
context that a caller sends is passed on in any case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from memserve import __version__

HEADERS = ("traceparent", "tracestate")
_W3C = TraceContextTextMapPropagator()
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()

tracer = trace.get_tracer("memserve", __version__)


@contextlib.contextmanager
def call_span(name: str, headers: Mapping[str, Any]) -> Iterator[Span]:
    """The span of a call that has come in; the caller's own where it sends one is its parent.

    headers: with names in lower case.
    """
    span = tracer.start_span(name, _sent(headers), SpanKind.SERVER)
    attach(span)
    try:
        yield span
    finally:
        span.end()


def attach(span: Span) -> None:
    """What this task begins from now on belongs to the span. It is of the call's own task, which ends with
    the call: nothing detaches it.
    """
    context.attach(trace.set_span_in_context(span))


def failed(span: Span, what: str) -> None:
    span.set_status(StatusCode.ERROR, what)


def child_span(name: str, attributes: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """A call to a store, as a part of what this task does for a request. Nothing outside of traced requests.

    attributes: by OpenTelemetry's conventions.
    """
    if not trace.get_current_span().is_recording():
        return _NOTHING
    return tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def sent_headers() -> tuple[tuple[str, str], ...]:
    """What carries this task's context to another process."""
    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    carrier: MutableMapping[str, str] = {}
    _W3C.inject(carrier)
    return tuple(carrier.items())


def _sent(headers: Mapping[str, Any]) -> Context | None:
    carrier = {name: headers[name] for name in HEADERS if isinstance(headers.get(name), str)}
    return _W3C.extract(carrier) if carrier else Context()


def remote_context(headers: Mapping[str, Any]) -> Context | None:
    """The context that another process has sent, or None."""
    return _sent(headers) if headers.get(HEADERS[0]) else None
