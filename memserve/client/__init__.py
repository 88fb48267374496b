"""The typed Python client: `Client` for ordinary code, `AsyncClient` for asyncio.

    with Client("127.0.0.1:50051") as client:
        print(client.generate("What is the code of Amber Lantern?", namespaces="notes").text)

Everything that a caller uses is exported here. Of memserve's dependencies the client needs only grpcio and
protobuf.
"""

from memserve.client._async.activation import AsyncActivationCalls
from memserve.client._async.client import AsyncClient, async_wait_until_ready
from memserve.client._async.modules import AsyncModuleCalls
from memserve.client._sync.activation import ActivationCalls
from memserve.client._sync.client import Client, wait_until_ready
from memserve.client._sync.modules import ModuleCalls
from memserve.client.endpoint import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, TlsFiles
from memserve.client.errors import CallFailed
from memserve.client.values import (
    Answer,
    CachedPrefix,
    CacheUsage,
    Conversation,
    Event,
    Evicted,
    Progress,
    Status,
    WorkerStatus,
    collect,
)
from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    CachedTokens,
    ExcludedWorker,
    Expert,
    Explanation,
    FinishReason,
    GateFigure,
    GateReport,
    HeldPrefix,
    Memory,
    Message,
    Module,
    ModuleKind,
    ModulePlace,
    ModuleUse,
    ModuleVersion,
    Priority,
    RecallOutcome,
    RefusalReason,
    Role,
    Route,
    RouteCandidate,
    Sampling,
    ScoredMemory,
    Slo,
    TextDelta,
    TrafficShare,
    Usage,
    UsedModule,
    Warmth,
    WeightFigures,
    WorkerResidency,
)
from memserve.errors import UsageError

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_TIMEOUT_S",
    "ActivationCalls",
    "Alias",
    "AliasChange",
    "Answer",
    "AsyncActivationCalls",
    "AsyncClient",
    "AsyncModuleCalls",
    "AuditEvent",
    "CacheUsage",
    "CachedPrefix",
    "CachedTokens",
    "CallFailed",
    "Client",
    "Conversation",
    "Event",
    "Evicted",
    "ExcludedWorker",
    "Expert",
    "Explanation",
    "FinishReason",
    "GateFigure",
    "GateReport",
    "HeldPrefix",
    "Memory",
    "Message",
    "Module",
    "ModuleCalls",
    "ModuleKind",
    "ModulePlace",
    "ModuleUse",
    "ModuleVersion",
    "Priority",
    "Progress",
    "RecallOutcome",
    "RefusalReason",
    "Role",
    "Route",
    "RouteCandidate",
    "Sampling",
    "ScoredMemory",
    "Slo",
    "Status",
    "TextDelta",
    "TlsFiles",
    "TrafficShare",
    "Usage",
    "UsageError",
    "UsedModule",
    "Warmth",
    "WeightFigures",
    "WorkerResidency",
    "WorkerStatus",
    "async_wait_until_ready",
    "collect",
    "wait_until_ready",
]
