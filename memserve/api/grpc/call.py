"""What every RPC does first and last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from memserve.api.entry import Entry
from memserve.api.facts import detail_of
from memserve.api.grpc.connections import Connections
from memserve.api.grpc.errors import status_of, trailing_metadata
from memserve.api.grpc.sizes import RECEIVED_BYTES
from memserve.domain import Tenant
from memserve.gateway.access.limits import WATCHES

log = logging.getLogger("memserve.gateway")

Context = grpc.aio.ServicerContext[Any, Any]


class Sending:
    """Watches how long a stream's responses take to be read. As a rule it looks once in `timeout_s`, since a
    timer for each token costs as much as the token."""

    def __init__(self, timeout_s: float, give_up: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._since_s = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)

    def __exit__(self, *_: object) -> None:
        self._since_s = None

    def close(self, *_: object) -> None:
        """The stream has ended. Its timer would keep what the call held."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._since_s is None:
            return
        left_s = self._since_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._give_up()


class Edge:
    """The entry, and what is gRPC's: facts become statuses, and slow readers are given up."""

    def __init__(self, entry: Entry, write_timeout_s: float, connections: Connections) -> None:
        self.entry = entry
        self._connections = connections
        self._write_timeout_s = write_timeout_s
        self._ending: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def call(self, rpc: str, context: Context) -> AsyncIterator[Tenant]:
        """Hold the call while inside. Yields the caller's tenant.

        An error inside that `fact_of` knows becomes its status. Any other error becomes INTERNAL, with an id
        that finds it in the gateway's log.
        """
        code = grpc.StatusCode.OK
        metadata = dict(context.invocation_metadata() or ())
        try:
            await self._connections.admit()
            with self._connections.call(context.peer(), endless=rpc in WATCHES):
                async with self.entry.call(rpc, metadata, context.peer(), RECEIVED_BYTES.get()) as tenant:
                    yield tenant
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            fact = self.entry.failed(rpc, error)
            if isinstance(fact, str):
                code = grpc.StatusCode.INTERNAL
                await context.abort(code, f"internal error; the gateway's log has it as incident {fact}")
            else:
                code = status_of(fact)
                await context.abort(code, detail_of(fact), trailing_metadata(fact))
        finally:
            self.entry.metrics.requests.labels(rpc, code.name).inc()

    def sending(self, context: Context) -> Sending:
        """End a stream's call when its caller does not take a response in time.

        One for a stream; it is held around each `yield` of a response. Without it, a caller that does not
        read would keep for ever what the call holds. The caller can still read the responses that it has not
        read. After them it gets CANCELLED.
        """
        task = asyncio.current_task()
        assert task is not None
        sending = Sending(self._write_timeout_s, partial(self._give_up, task, context))
        task.add_done_callback(sending.close)
        return sending

    def _give_up(self, task: asyncio.Task[Any], context: Context) -> None:
        log.warning("a stream ends: its caller has not read for %g s", self._write_timeout_s)
        self.entry.metrics.unread_streams.inc()
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
