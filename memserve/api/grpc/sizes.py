"""How large a call's request is on the wire. The size is noted at parsing, for the limits of the call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

RECEIVED_BYTES: ContextVar[int] = ContextVar("received_bytes", default=0)
"""The size of the last message that this call's task has parsed."""


class RequestSizes(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Sets RECEIVED_BYTES for every call."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler

        def parse(content: bytes) -> Any:
            RECEIVED_BYTES.set(len(content))
            return handler.request_deserializer(content)

        return handler._replace(request_deserializer=parse)
