"""What every RPC does first and last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from memserve.domain import KeyRole, Tenant
from memserve.errors import MemserveError, PermissionDenied
from memserve.gateway.access import Access
from memserve.gateway.pipeline import Pipeline
from memserve.gateway.status import detail_of, status_of, trailing_metadata

log = logging.getLogger("memserve.gateway")

Context = grpc.aio.ServicerContext[Any, Any]


class Edge:
    """Authenticates, holds the role against the call, and turns facts into statuses."""

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        self.pipeline = pipeline
        self._access = access

    @contextlib.asynccontextmanager
    async def call(self, rpc: str, context: Context) -> AsyncIterator[Tenant]:
        """Yields the caller's tenant; a MemserveError inside becomes its status, anything else INTERNAL with an id to find it by."""
        code = grpc.StatusCode.OK
        try:
            metadata = dict(context.invocation_metadata() or ())
            yield self._access.caller(rpc, str(metadata.get("authorization", "")))
        except MemserveError as error:
            code = status_of(error)
            await context.abort(code, detail_of(error), trailing_metadata(error))
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            incident = uuid.uuid4().hex[:12]
            log.exception("incident %s in %s", incident, rpc)
            await context.abort(code, f"internal error; the gateway's log has it as incident {incident}")
        finally:
            self.pipeline.metrics.requests.labels(rpc, code.name).inc()


def require_admin(tenant: Tenant, what: str) -> None:
    """For the part of a call that shows or steers more than the tenant's own. Raises PermissionDenied."""
    if not tenant.is_admin:
        raise PermissionDenied(what, KeyRole.ADMIN, tenant.role)
