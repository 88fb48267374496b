"""What the two halves of the client do differently. `_sync/_io.py` has the same names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, cast

import grpc.aio

from memserve.client.endpoint import CHANNEL_OPTIONS, Endpoint
from memserve.client.values import Progress

P = ParamSpec("P")
T = TypeVar("T")


def open_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    if endpoint.credentials is None:
        return grpc.aio.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(endpoint.target, endpoint.credentials, options=CHANNEL_OPTIONS)


class Local(Generic[T]):
    """A value for each event loop: a channel works only in the loop that opened it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[asyncio.AbstractEventLoop, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self) -> T:
        """The value of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._values:
            # A loop that has ended takes no more calls, and its value cannot be closed.
            for ended in [other for other in list(self._values) if other.is_closed()]:
                self._values.pop(ended, None)
            self._values[loop] = self._make()
        return self._values[loop]

    def take(self) -> T | None:
        """Forget all values. Returns the value of the running loop, which can be closed here."""
        value = self._values.get(asyncio.get_running_loop())
        self._values.clear()
        return value


sleep = asyncio.sleep


async def on_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run blocking work on a thread, so that it does not stop the event loop."""
    return await asyncio.to_thread(work, *arguments, **options)


async def iterate(parts: Iterator[T]) -> AsyncIterator[T]:
    """The items of an iterator that blocks, each taken on a thread."""
    end = object()
    while (part := await asyncio.to_thread(next, parts, end)) is not end:
        yield cast(T, part)


async def until_failure(parts: AsyncIterator[T], failures: list[Exception]) -> AsyncIterator[T]:
    """The parts. A failure ends them, and is kept: gRPC would put a status of its own in its place."""
    try:
        async for part in parts:
            yield part
    except Exception as error:
        failures.append(error)


async def uploaded(call: grpc.aio.StreamUnaryCall[Any, T]) -> T:
    """The answer to a stream of requests. Raises the AioRpcError that the gateway ended the call with.

    A request that is written after that end fails, and `grpc.aio` then puts INTERNAL ("Internal error from
    Core") in place of what the gateway said: github.com/grpc/grpc/issues/36066. So that is kept as it comes.
    """
    ends: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda ended: ends.append(_end_of(ended)))
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        # Where the failed write comes first, the gateway's status replaces it, and `error` has that.
        raise (error if error.code() is not grpc.StatusCode.INTERNAL else ends[0]) from None


def _end_of(call: grpc.aio.StreamUnaryCall[Any, Any]) -> grpc.aio.AioRpcError:
    """call: one that has ended, so that nothing here waits."""

    async def end() -> grpc.aio.AioRpcError:
        trailing = await call.trailing_metadata()
        return grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), trailing, details=await call.details()
        )

    try:
        end().send(None)
    except StopIteration as result:
        return cast(grpc.aio.AioRpcError, result.value)
    raise AssertionError("the call has not ended")


def reported_here(progress: Progress) -> Progress:
    """A Progress for any thread. It calls `progress` in the event loop that runs now."""
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done, total)

    return report
