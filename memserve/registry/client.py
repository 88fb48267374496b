"""Clients of the registry Redis whose waits are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from memserve.errors import RegistryDiskFull, RegistryUnavailable
from memserve.tracing import child_span

TIMEOUT_S = 1.0
LATE_S = 0.05
"""An event loop that is later than this was held up."""
FULL_RETRY_S = 5.0
PATIENCE_S = 60.0
"""A registry that restarts answers sooner."""
AGAIN_S = 1.0

_T = TypeVar("_T")


def registry_client(
    redis_url: str, *, max_connections: int | None = None, decode_responses: bool = True
) -> Any:
    """A redis.asyncio.Redis. Every exchange with it belongs inside `answering()`.

    max_connections: None for redis-py's own number, 100. A call that needs one more is refused as
    RegistryUnavailable.
    decode_responses: whether answers are text or bytes.
    """
    client = redis.asyncio.Redis.from_url(
        redis_url,
        # No socket_timeout: `answering` bounds every exchange. With a socket_timeout redis-py sends under
        # asyncio.wait_for. In Python 3.11 that loses a cancellation that arrives as the sending ends, and the
        # cancelled task would go on.
        socket_timeout=None,
        socket_connect_timeout=TIMEOUT_S,
        # One retry for a connection that turns out to be closed. After a restart of Redis every pooled one
        # is.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        decode_responses=decode_responses,
        max_connections=max_connections,
    )
    if client.connection_pool.connection_class is redis.asyncio.SSLConnection:
        client.connection_pool.connection_class = _FreshTls
    return client


class _FreshTls(redis.asyncio.SSLConnection):
    """Reads its certificates whenever it connects. redis-py's own keeps what it has read first."""

    def _connection_arguments(self) -> Any:
        self.ssl_context.context = None
        return super()._connection_arguments()


async def patiently(read: Callable[[], Awaitable[_T]], *, patience_s: float = PATIENCE_S) -> _T:
    """What `read` returns, which is asked again while the registry is away: for who watches, and can wait.

    Raises RegistryUnavailable when the registry has not answered for `patience_s`.
    """
    began_s = time.monotonic()
    while True:
        try:
            return await read()
        except RegistryUnavailable:
            if time.monotonic() - began_s > patience_s:
                raise
        await asyncio.sleep(AGAIN_S)


async def close_client(client: redis.asyncio.Redis) -> None:
    """Close the client's connections for good.

    redis-py alone would open new connections for calls that are still under way, and nobody would close them.
    """
    pool = client.connection_pool
    for connection in (*pool._in_use_connections, *pool._available_connections):
        connection.retry.update_retries(0)
    await client.aclose()
    pool.reset()  # type: ignore[no-untyped-call]
    pool.max_connections = 0


@contextlib.asynccontextmanager
async def answering(bound_s: float | None = None) -> AsyncIterator[None]:
    """Bound a whole exchange, the handshake of a new connection included. Raises RegistryUnavailable.

    bound_s: None for TIMEOUT_S.
    """
    try:
        with child_span("redis", {"db.system.name": "redis", "memserve.redis": "registry"}):
            async with _bounded(TIMEOUT_S if bound_s is None else bound_s):
                yield
    except (RedisError, OSError) as error:  # TimeoutError, which asyncio.timeout raises, is an OSError
        # NOREPLICAS: the guard of a full disk makes the private Redis refuse writes in this way. MISCONF: a
        # Redis of the user cannot write its files.
        if any(word in str(error) for word in ("NOREPLICAS", "MISCONF")):
            raise RegistryDiskFull(FULL_RETRY_S) from error
        raise RegistryUnavailable(_line(error)) from error


@contextlib.asynccontextmanager
async def _bounded(bound_s: float) -> AsyncIterator[None]:
    """asyncio.timeout that gives back what the event loop itself was late at its end, up to bound_s.

    A loop that was held up sees its timers before the answers that have come meanwhile.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + bound_s

    def end() -> None:
        late_s = loop.time() - deadline_s
        bound.reschedule(loop.time() + (min(late_s, bound_s) if late_s > LATE_S else 0.0))

    async with asyncio.timeout(None) as bound:
        timer = loop.call_at(deadline_s, end)
        try:
            yield
        finally:
            timer.cancel()


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
