"""The typed Python client. `Client` for ordinary code, `AsyncClient` for asyncio; both need only grpcio and
protobuf.
"""

from memserve.client.clients import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    Answer,
    AsyncClient,
    CallFailed,
    Client,
    Event,
    Message,
    Role,
    Route,
    Sampling,
    Slo,
    Status,
    TextDelta,
    Usage,
    UsageError,
    WorkerStatus,
    wait_until_ready,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_TIMEOUT_S",
    "Answer",
    "AsyncClient",
    "CallFailed",
    "Client",
    "Event",
    "Message",
    "Role",
    "Route",
    "Sampling",
    "Slo",
    "Status",
    "TextDelta",
    "Usage",
    "UsageError",
    "WorkerStatus",
    "wait_until_ready",
]
