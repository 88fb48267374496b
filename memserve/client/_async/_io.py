"""What the two halves of the client do differently. `_sync/_io.py` has the same names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, ParamSpec, TypeVar, cast

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


def reported_here(progress: Progress) -> Progress:
    """A Progress for any thread. It calls `progress` in the event loop that runs now."""
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done, total)

    return report
