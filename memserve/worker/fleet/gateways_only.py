"""A worker's port answers gateways only.

A gateway sends a credential that is derived from the salt key, which gateway and worker both have. With TLS
between them its certificate carries a gateway's name too.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from memserve.tls.grpc_credentials import peer_names
from memserve.tls.pem import GATEWAY_NAME

HEALTH = "/grpc.health.v1.Health/"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class GatewaysOnly(grpc.aio.ServerInterceptor):
    """Refuses every call but health checks without the credential, before its message is read."""

    def __init__(self, credential: str, *, by_certificate: bool = False) -> None:
        """by_certificate: the port has TLS, and clients need a certificate of a gateway."""
        self._wanted = f"Bearer {credential}".encode()
        self._by_certificate = by_certificate

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
        if not hmac.compare_digest(sent_bytes, self._wanted):
            return _refusal(handler)
        return _of_gateways(handler) if self._by_certificate else handler


def _refusal(handler: Handler) -> Handler:
    """A handler of the same shape, which gRPC calls in the place of the refused one."""

    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "this port is for gateways with this memserve's salt_key"
        )

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)


def _of_gateways(handler: Handler) -> Handler:
    """The handler for clients whose certificate carries a gateway's name. The others are refused."""

    # A behaviour of grpc.aio, which the stubs describe as one of the blocking API.
    stream: Any = handler.unary_stream
    answer: Any = handler.unary_unary

    async def check(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if GATEWAY_NAME in (names := peer_names(context)):
            return
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            f"this port is for gateways, whose certificates carry {GATEWAY_NAME}; this one carries "
            f"{', '.join(sorted(names)) or 'no name'}",
        )

    async def streamed(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await check(context)
        async for response in stream(request, context):
            yield response

    async def answered(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await check(context)
        return await answer(request, context)

    codecs = (handler.request_deserializer, handler.response_serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(streamed, *codecs)
    return grpc.unary_unary_rpc_method_handler(answered, *codecs)
