"""What the two halves of the client do differently. `_async/_io.py` has the same names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec, TypeVar

import grpc

from memserve.client.endpoint import CHANNEL_OPTIONS, Endpoint
from memserve.client.values import Progress

P = ParamSpec("P")
T = TypeVar("T")


def open_channel(endpoint: Endpoint) -> grpc.Channel:
    if endpoint.credentials is None:
        return grpc.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(endpoint.target, endpoint.credentials, options=CHANNEL_OPTIONS)


class Local(Generic[T]):
    """One value for all threads: a channel serves any number of them."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._value: T | None = make()

    def get(self) -> T:
        assert self._value is not None
        return self._value

    def take(self) -> T | None:
        """Forget the value. Returns it, so that the caller can close it."""
        value, self._value = self._value, None
        return value


sleep = time.sleep


def on_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run the work here: a blocking caller has a thread already."""
    return work(*arguments, **options)


def iterate(parts: Iterator[T]) -> Iterator[T]:
    return parts


def until_failure(parts: Iterator[T], failures: list[Exception]) -> Iterator[T]:
    """The parts. A failure ends them, and is kept: gRPC would put a status of its own in its place."""
    try:
        yield from parts
    except Exception as error:
        failures.append(error)


def uploaded(answer: T) -> T:
    """A blocking call has its answer already, or has raised what the gateway ended it with."""
    return answer


def reported_here(progress: Progress) -> Progress:
    """The same Progress. gRPC takes the parts of an upload on its own thread, and calls `progress` there."""
    return progress
