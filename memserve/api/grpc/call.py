"""What every RPC does first and last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from memserve.api.grpc.errors import WITH_RETRY, detail_of, fact_of, status_of, trailing_metadata
from memserve.api.grpc.sizes import RECEIVED_BYTES
from memserve.config import Settings
from memserve.disk import DiskWatch
from memserve.domain import KeyRole, Tenant
from memserve.errors import PermissionDenied, Unauthenticated
from memserve.gateway.access.callers import Access
from memserve.gateway.access.limits import Limits, Strangers
from memserve.metrics.instruments import GatewayMetrics

log = logging.getLogger("memserve.gateway")

# RPCs that write to a disk of the server. They are refused while such a disk has too little room. All other
# RPCs are reads and answers.
CHANGES = frozenset(
    {
        "Backup",
        "Remember",
        "Forget",
        "PublishModule",
        "ComposeModule",
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

Context = grpc.aio.ServicerContext[Any, Any]


class Edge:
    """Authenticates each call, checks the caller's role and limits, and turns facts into statuses."""

    def __init__(self, settings: Settings, access: Access, disk: DiskWatch, metrics: GatewayMetrics) -> None:
        self.limits = Limits(settings)
        self.metrics = metrics
        self._access = access
        self._disk = disk
        self._strangers = Strangers()
        self._write_timeout_s = settings.write_timeout_s
        self._ending: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def call(self, rpc: str, context: Context) -> AsyncIterator[Tenant]:
        """Hold the call while inside. Yields the caller's tenant.

        An error inside that `fact_of` knows becomes its status. Any other error becomes INTERNAL, with an id
        that finds it in the gateway's log.
        """
        code = grpc.StatusCode.OK
        try:
            metadata = dict(context.invocation_metadata() or ())
            tenant = await self._caller(rpc, str(metadata.get("authorization", "")), context.peer())
            if rpc in CHANGES:
                self._disk.check()
            async with self.limits.call(rpc, tenant.name, RECEIVED_BYTES.get()):
                yield tenant
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            fact = fact_of(error)
            if fact is not None:
                code = status_of(fact)
                if isinstance(fact, WITH_RETRY):
                    self.metrics.refused.labels(fact.reason).inc()
                await context.abort(code, detail_of(fact), trailing_metadata(fact))
            code = grpc.StatusCode.INTERNAL
            incident = uuid.uuid4().hex[:12]
            log.exception("incident %s in %s", incident, rpc)
            await context.abort(code, f"internal error; the gateway's log has it as incident {incident}")
        finally:
            self.metrics.requests.labels(rpc, code.name).inc()

    async def _caller(self, rpc: str, authorization: str, peer: str) -> Tenant:
        """The tenant that calls.

        Raises Unauthenticated and PermissionDenied. Unauthenticated is paced for each address, and becomes
        QuotaExceeded when the address calls too quickly.
        """
        try:
            return self._access.caller(rpc, authorization)
        except Unauthenticated:
            await self._strangers.turn(peer)
            raise

    @contextlib.contextmanager
    def sending(self, context: Context) -> Iterator[None]:
        """End a stream's call when its caller does not take a response in time.

        This is held around the `yield` of the response. Without it, a caller that does not read would keep
        for ever what the call holds. The caller can still read the responses that it has not read. After them
        it gets CANCELLED.
        """
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(self._write_timeout_s, self._give_up, task, context)
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self, task: asyncio.Task[Any], context: Context) -> None:
        log.warning("a stream ends: its caller has not read for %g s", self._write_timeout_s)
        self.metrics.unread_streams.inc()
        task.cancel()
        # The status is queued behind the unread responses. This task ends when they are read, or when the
        # connection ends.
        ending = asyncio.create_task(self._end(context))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, context: Context) -> None:
        # `abort` always raises: after it has sent the status, and when the connection has ended before.
        with contextlib.suppress(Exception):
            await context.abort(
                grpc.StatusCode.CANCELLED,
                f"the stream was not read for {self._write_timeout_s:g} s; read it as it comes",
            )


def require_admin(tenant: Tenant, what: str) -> None:
    """Check the caller for the part of a call that shows or steers more than the tenant's own.

    what: the part, as the refusal names it.
    Raises PermissionDenied.
    """
    if not tenant.is_admin:
        raise PermissionDenied(what, KeyRole.ADMIN, tenant.role)
