"""A worker's port answers gateways only.

A gateway sends a credential that is derived from the salt key, which gateway and worker both have.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

HEALTH = "/grpc.health.v1.Health/"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class GatewaysOnly(grpc.aio.ServerInterceptor):
    """Refuses every call but health checks without the credential, before its message is read."""

    def __init__(self, credential: str) -> None:
        self._wanted = f"Bearer {credential}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH):
            return handler
        sent = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        sent_bytes = sent if isinstance(sent, bytes) else str(sent).encode()
        return handler if hmac.compare_digest(sent_bytes, self._wanted) else _refusal(handler)


def _refusal(handler: Handler) -> Handler:
    """A handler of the same shape, which gRPC calls in the place of the refused one."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "this port is for gateways with this memserve's salt_key"
        )

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
