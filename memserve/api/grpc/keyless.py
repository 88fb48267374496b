"""Paces health and reflection, which need no key.

Each address has its own pace, so that no caller can use these services to stop other callers.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from memserve.api.facts import detail_of
from memserve.api.grpc.errors import status_of, trailing_metadata
from memserve.errors import QuotaExceeded
from memserve.gateway.access.limits import Strangers

# How the paths of gRPC's own services begin.
KEYLESS = "/grpc."


class KeylessPace(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Makes callers of gRPC's own services wait for their turn, and refuses callers that would wait too long.

    Each message of a stream of requests waits for its own turn.
    """

    def __init__(self) -> None:
        self._strangers = Strangers()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(KEYLESS):
            return handler
        if handler.unary_unary is not None:

            async def answer(request: Any, context: Any) -> Any:
                await self._turn(context)
                return await handler.unary_unary(request, context)

            return handler._replace(unary_unary=answer)
        if handler.unary_stream is not None:

            async def stream(request: Any, context: Any) -> Any:
                await self._turn(context)
                return await handler.unary_stream(request, context)

            async def stream_of(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._turn(context)
                async for response in handler.unary_stream(request, context):
                    yield response

            return handler._replace(
                unary_stream=stream_of if inspect.isasyncgenfunction(handler.unary_stream) else stream
            )

        async def talk(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for response in handler.stream_stream(self._paced(requests, context), context):
                yield response

        return handler._replace(stream_stream=talk)

    async def _paced(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            await self._turn(context)
            yield request

    async def _turn(self, context: Any) -> None:
        try:
            await self._strangers.turn(context.peer())
        except QuotaExceeded as error:
            await context.abort(status_of(error), detail_of(error), trailing_metadata(error))
