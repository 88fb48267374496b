"""What every call meets first, whichever port it came by: authentication, roles, the disk, limits."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from memserve.api.facts import WITH_RETRY, fact_of
from memserve.config import Settings
from memserve.disk import DiskWatch
from memserve.domain import KeyRole, Tenant
from memserve.errors import (
    MemserveError,
    PermissionDenied,
    TokenKeysUnavailable,
    TokenRefused,
    Unauthenticated,
)
from memserve.gateway.access.callers import Access
from memserve.gateway.access.limits import Limits, Strangers
from memserve.gateway.assembly import GatewayParts
from memserve.logs import LOGGED_CALL, LoggedCall
from memserve.metrics.instruments import GatewayMetrics
from memserve.tracing import call_span, failed

log = logging.getLogger("memserve.gateway")

# RPCs that write to a disk of the server. They are refused while such a disk has too little room. All other
# RPCs are reads and answers.
CHANGES = frozenset(
    {
        "Backup",
        "Remember",
        "BatchRemember",
        "RememberDocument",
        "ImportMemories",
        "UpdateMemory",
        "RestoreMemory",
        "SupersedeMemory",
        "Forget",
        "ForgetWhere",
        "EraseMemory",
        "DeleteNamespace",
        "ConsolidateNamespace",
        "DecideConsolidation",
        "ReindexMemories",
        "RecordOutcome",
        "PublishModule",
        "ComposeModule",
        "DistilModule",
        "PromoteModule",
        "RollbackModule",
        "SetTraffic",
        "DropAlias",
        "DeleteVersion",
        "PreloadModule",
        "UnloadModule",
        "RunGate",
        "PinPrefix",
        "UnpinPrefix",
        "ReleaseAudit",
        "WarmPrefix",
        "EvictPrefix",
        "EvictModule",
        "EvictTenant",
    }
)


class Entry:
    """Lets calls in. One for all ports of a gateway: a tenant's limits hold over them together."""

    def __init__(self, settings: Settings, access: Access, disk: DiskWatch, metrics: GatewayMetrics) -> None:
        self.limits = Limits(settings)
        self.metrics = metrics
        self.strangers = Strangers()
        """The pace of callers without a valid key."""
        self._access = access
        self._disk = disk

    @property
    def is_open(self) -> bool:
        """Whether every caller is an administrator, because there are no keys."""
        return self._access.is_open

    @contextlib.asynccontextmanager
    async def call(
        self, rpc: str, headers: Mapping[str, Any], peer: str, received_bytes: int
    ) -> AsyncIterator[Tenant]:
        """Count the call while inside, and trace it. Yields the caller's tenant.

        headers: or metadata, with names in lower case. peer: its address and port.
        Raises Unauthenticated, TokenKeysUnavailable, PermissionDenied, DiskFull and QuotaExceeded. The first
        two are paced for each address, and become QuotaExceeded when the address calls too quickly.
        """
        with call_span(rpc, headers) as span:
            try:
                tenant = await self._caller(rpc, str(headers.get("authorization", "")), peer)
                if rpc in CHANGES:
                    self._disk.check()
                LOGGED_CALL.set(LoggedCall(tenant.name))
                span.set_attribute("memserve.tenant", tenant.name)
                async with self.limits.call(rpc, tenant.name, received_bytes):
                    yield tenant
            except Exception as error:
                failed(span, type(error).__name__)
                raise

    async def _caller(self, rpc: str, authorization: str, peer: str) -> Tenant:
        try:
            return await self._access.admitted(rpc, authorization)
        except (Unauthenticated, TokenKeysUnavailable) as error:
            if isinstance(error, TokenRefused):
                self.metrics.tokens_refused.labels(error.why).inc()
            await self.strangers.turn(peer)
            raise

    def failed(self, rpc: str, error: Exception) -> MemserveError | str:
        """What the caller is told of an error: a fact, or an incident's id, which finds it in the log."""
        fact = fact_of(error)
        if fact is None:
            incident = uuid.uuid4().hex[:12]
            log.error("incident %s in %s", incident, rpc, exc_info=error)
            return incident
        if isinstance(fact, WITH_RETRY):
            self.metrics.refused.labels(fact.reason).inc()
        return fact


def entry_of(parts: GatewayParts, access: Access) -> Entry:
    return Entry(parts.settings, access, parts.disk, parts.metrics)


def require_admin(tenant: Tenant, what: str) -> None:
    """Check the caller for the part of a call that shows or steers more than the tenant's own.

    what: the part, as the refusal names it.
    Raises PermissionDenied.
    """
    if not tenant.is_admin:
        raise PermissionDenied(what, KeyRole.ADMIN, tenant.role)
