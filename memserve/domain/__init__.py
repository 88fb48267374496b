"""Frozen values that the parts of memserve pass to each other.

No I/O, and no imports from the rest of memserve. Callers import from here, whatever the file.
"""

from memserve.domain.answers import (
    ExcludedWorker,
    Explanation,
    FinishReason,
    GenerationRequest,
    Message,
    RefusalReason,
    Role,
    Route,
    RouteCandidate,
    Sampling,
    Slo,
    TextDelta,
    Usage,
)
from memserve.domain.memories import Memory, RecallOutcome, ScoredMemory
from memserve.domain.modules import (
    Alias,
    AliasChange,
    AuditEvent,
    Expert,
    GateFigure,
    GateReport,
    Module,
    ModuleKind,
    ModulePlace,
    ModuleUse,
    ModuleVersion,
    TrafficShare,
    UsedModule,
    WeightFigures,
    WorkerResidency,
)
from memserve.domain.prefixes import CachedTokens, CacheLayout, HeldPrefix, Warmth
from memserve.domain.tenants import KeyRole, Priority, Tenant
from memserve.domain.workers import WorkerLease

__all__ = [
    "Alias",
    "AliasChange",
    "AuditEvent",
    "CacheLayout",
    "CachedTokens",
    "ExcludedWorker",
    "Expert",
    "Explanation",
    "FinishReason",
    "GateFigure",
    "GateReport",
    "GenerationRequest",
    "HeldPrefix",
    "KeyRole",
    "Memory",
    "Message",
    "Module",
    "ModuleKind",
    "ModulePlace",
    "ModuleUse",
    "ModuleVersion",
    "Priority",
    "RecallOutcome",
    "RefusalReason",
    "Role",
    "Route",
    "RouteCandidate",
    "Sampling",
    "ScoredMemory",
    "Slo",
    "Tenant",
    "TextDelta",
    "TrafficShare",
    "Usage",
    "UsedModule",
    "Warmth",
    "WeightFigures",
    "WorkerLease",
    "WorkerResidency",
]
