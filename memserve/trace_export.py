"""Sends this process's spans to an OTLP receiver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from memserve import __version__
from memserve.config import Settings

TIMEOUT_S = 3
"""A receiver that takes longer loses the batch. No request waits for it."""
QUEUE_SPANS, DELAY_MS = 4096, 1000
"""Spans that wait beyond this are dropped. They are sent once a second."""


@contextlib.contextmanager
def exported(settings: Settings, service: str, instance: str) -> Iterator[None]:
    """Send spans to the settings' receiver while inside. Nothing where there is none.

    service, instance: as traces name this process.
    """
    if not settings.traces_endpoint:
        yield
        return
    resource = Resource.create(
        {SERVICE_NAME: service, SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: instance}
    )
    provider = TracerProvider(
        resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.traces_sample))
    )
    exporter = OTLPSpanExporter(
        endpoint=settings.traces_endpoint,
        insecure=settings.traces_endpoint.startswith("http://"),
        timeout=TIMEOUT_S,
    )
    batches = BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS, schedule_delay_millis=DELAY_MS)
    provider.add_span_processor(batches)
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
