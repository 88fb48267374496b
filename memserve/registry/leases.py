"""The registry in Redis: which workers live. Small, never evicted, every change atomic.
`memory/modules/registry/store.py` keeps modules there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from memserve.domain import WorkerLease
from memserve.errors import RegistryDiskFull, RegistryUnavailable, UnreadableRecord
from memserve.records import LenientReader, known_fields, reading

log = logging.getLogger("memserve.registry.leases")

WORKERS = "memserve:workers"
TIMEOUT_S = 1.0
FULL_RETRY_S = 5.0
_ADDRESS = re.compile(r"(?:unix:/{0,3}[^\s]+|[^\s/@]+:[0-9]{1,5})")


class Registry:
    """Every method raises RegistryUnavailable when Redis does not answer within a second."""

    def __init__(self, redis_url: str) -> None:
        self._redis = registry_client(redis_url)
        self._reader = LenientReader(log)

    async def close(self) -> None:
        await close_client(self._redis)

    async def ping(self) -> None:
        async with answering():
            await self._redis.ping()

    async def renew_lease(self, lease: WorkerLease, lease_s: float) -> None:
        """Say that the worker lives for `lease_s` more seconds."""
        async with answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(lease_key(lease.worker_id), json.dumps(asdict(lease)), px=int(lease_s * 1000))
            pipeline.sadd(WORKERS, lease.worker_id)
            await pipeline.execute()

    async def drop_lease(self, worker_id: str) -> None:
        async with answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(lease_key(worker_id))
            pipeline.srem(WORKERS, worker_id)
            await pipeline.execute()

    async def live_workers(self) -> list[WorkerLease]:
        """The leases that have not run out. Names of workers whose lease has are taken off the list.

        A lease that this version cannot read is left out, and said once.
        """
        async with answering():
            names = sorted(await self._redis.smembers(WORKERS))
            if not names:
                return []
            values = await self._redis.mget([lease_key(name) for name in names])
            gone = [name for name, value in zip(names, values, strict=True) if value is None]
            if gone:
                await self._redis.srem(WORKERS, *gone)
        return self._reader.read([value for value in values if value is not None], read_lease)


def read_lease(value: str) -> WorkerLease:
    """Fields that a newer worker has added are ignored. Raises UnreadableRecord."""
    with reading("WorkerLease"):
        lease = WorkerLease(**known_fields(WorkerLease, json.loads(value)))
    if not _ADDRESS.fullmatch(lease.address):
        raise UnreadableRecord("WorkerLease", f"address {lease.address[:80]!r} is no host:port")
    if lease.block_tokens < 1 or lease.blocks_per_chunk < 1:
        raise UnreadableRecord("WorkerLease", "block_tokens and blocks_per_chunk must be at least 1")
    return lease


def lease_key(worker_id: str) -> str:
    return f"memserve:worker:{worker_id}"


def registry_client(
    redis_url: str, *, max_connections: int | None = None, decode_responses: bool = True
) -> Any:
    """A redis.asyncio.Redis that answers in text, or in bytes. Every exchange belongs inside `answering()`.

    max_connections: None for redis-py's own number, 100. One more at the same time is refused as
    RegistryUnavailable.
    """
    return redis.asyncio.Redis.from_url(
        redis_url,
        # No socket_timeout, `answering` bounds every exchange: with one, redis-py sends under
        # asyncio.wait_for, which in Python 3.11 loses a cancellation that comes as the sending ends. A task
        # that was cancelled would go on.
        socket_timeout=None,
        socket_connect_timeout=TIMEOUT_S,
        # For a connection that turns out to be closed: after a restart of Redis every pooled one is.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        decode_responses=decode_responses,
        max_connections=max_connections,
    )


async def close_client(client: redis.asyncio.Redis) -> None:
    """Close its connections for good: redis-py alone opens new ones for calls that are still under way, and
    nobody closes those.
    """
    pool = client.connection_pool
    for connection in (*pool._in_use_connections, *pool._available_connections):
        connection.retry.update_retries(0)
    await client.aclose()
    pool.reset()  # type: ignore[no-untyped-call]
    pool.max_connections = 0


@contextlib.asynccontextmanager
async def answering(bound_s: float = TIMEOUT_S) -> AsyncIterator[None]:
    """Bounds the whole exchange, the handshake of a new connection included. Raises RegistryUnavailable."""
    try:
        async with asyncio.timeout(bound_s):
            yield
    except (RedisError, OSError) as error:  # TimeoutError, which asyncio.timeout raises, is an OSError
        # What the guard of a full disk has it say, and what a Redis of the user says when it cannot write its
        # files.
        if any(word in str(error) for word in ("NOREPLICAS", "MISCONF")):
            raise RegistryDiskFull(FULL_RETRY_S) from error
        raise RegistryUnavailable(_line(error)) from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
