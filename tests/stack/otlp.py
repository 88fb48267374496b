"""A real OTLP receiver: it takes spans over gRPC, and puts them together as trees."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc


@dataclass
class Received:
    """A span, with those below it by the time that they began."""

    name: str
    service: str
    span_id: str
    parent_id: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    below: list[Received] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9

    def walk(self) -> Iterator[Received]:
        yield self
        for span in self.below:
            yield from span.walk()

    def lines(self, depth: int = 0) -> Iterator[str]:
        """As a tree, with milliseconds."""
        yield f"{'  ' * depth}{self.name}  [{self.service}]  {self.seconds * 1000:.1f} ms"
        for span in self.below:
            yield from span.lines(depth + 1)


class OtlpReceiver(rpc.TraceServiceServicer):  # type: ignore[misc]
    """Listens while inside."""

    def __enter__(self) -> Self:
        self._spans: dict[str, list[Received]] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(2))
        rpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0)

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    self._spans.setdefault(span.trace_id.hex(), []).append(
                        Received(
                            span.name,
                            service,
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            _attributes(span.attributes),
                        )
                    )
        return pb.ExportTraceServiceResponse()

    def attributes(self) -> Iterator[str]:
        """Of every span that has come, each as text."""
        with self._lock:
            yield from (repr(span.attributes) for spans in self._spans.values() for span in spans)

    def tree(self, trace_id: str) -> Received | None:
        """The trace's uppermost span with all that has come below it. None: it has not come."""
        with self._lock:
            spans = sorted(self._spans.get(trace_id, ()), key=lambda span: span.began_ns)
        by_id = {span.span_id: span for span in spans}
        root = None
        for span in spans:
            span.below = []
        for span in spans:
            if span.parent_id in by_id:
                by_id[span.parent_id].below.append(span)
            else:
                root = span
        return root


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
