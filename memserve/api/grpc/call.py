"""What every RPC does first and last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from memserve.api.grpc.errors import detail_of, fact_of, status_of, trailing_metadata
from memserve.api.grpc.sizes import RECEIVED_BYTES
from memserve.config import Settings
from memserve.disk import DiskWatch
from memserve.domain import KeyRole, Tenant
from memserve.errors import PermissionDenied, Unauthenticated
from memserve.gateway.access.callers import Access
from memserve.gateway.access.limits import Limits, Strangers
from memserve.metrics.instruments import GatewayMetrics

log = logging.getLogger("memserve.gateway")

# RPCs that write to a disk of the server: refused while one of those has too little room. The others are
# reads and answers.
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
    """Authenticates, holds the role against the call, and turns facts into statuses."""

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
        """Yields the caller's tenant; a MemserveError inside becomes its status, anything else INTERNAL with
        an id to find it by.
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
                await context.abort(code, detail_of(fact), trailing_metadata(fact))
            code = grpc.StatusCode.INTERNAL
            incident = uuid.uuid4().hex[:12]
            log.exception("incident %s in %s", incident, rpc)
            await context.abort(code, f"internal error; the gateway's log has it as incident {incident}")
        finally:
            self.metrics.requests.labels(rpc, code.name).inc()

    async def _caller(self, rpc: str, authorization: str, peer: str) -> Tenant:
        """Raises Unauthenticated and PermissionDenied; one without a key waits for its turn to hear so."""
        try:
            return self._access.caller(rpc, authorization)
        except Unauthenticated:
            await self._strangers.turn(peer)
            raise

    @contextlib.contextmanager
    def sending(self, context: Context) -> Iterator[None]:
        """Around the `yield` of a stream's response: ends the call when its caller does not take the response
        in time.

        A caller that does not read would hold what the call holds for ever. What it has not read it can still
        read; then comes CANCELLED.
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
        # Behind what is not read yet: this ends when that is, or the connection.
        ending = asyncio.create_task(self._end(context))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, context: Context) -> None:
        # It raises when it has done so, and when the connection has gone before.
        with contextlib.suppress(Exception):
            await context.abort(
                grpc.StatusCode.CANCELLED,
                f"the stream was not read for {self._write_timeout_s:g} s; read it as it comes",
            )


def require_admin(tenant: Tenant, what: str) -> None:
    """For the part of a call that shows or steers more than the tenant's own. Raises PermissionDenied."""
    if not tenant.is_admin:
        raise PermissionDenied(what, KeyRole.ADMIN, tenant.role)
