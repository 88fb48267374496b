"""The registry in Redis: which workers live, and which modules a tenant has. Small, never evicted, every change atomic."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from memserve.domain import Module, WorkerLease
from memserve.errors import ModuleConflict, RegistryUnavailable

WORKERS = "memserve:workers"
TIMEOUT_S = 1.0


class Registry:
    """Every method raises RegistryUnavailable when Redis does not answer within a second."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = redis.asyncio.Redis.from_url(
            redis_url,
            # No socket_timeout, `_answer` bounds every exchange: with one, redis-py sends under asyncio.wait_for, which in Python 3.11
            # loses a cancellation that comes as the sending ends. A task that was cancelled would go on.
            socket_timeout=None,
            socket_connect_timeout=TIMEOUT_S,
            # For a connection that turns out to be closed: after a restart of Redis every pooled one is.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            decode_responses=True,
        )

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        async with _answer():
            await self._redis.ping()

    async def renew_lease(self, lease: WorkerLease, lease_s: float) -> None:
        """Say that the worker lives for `lease_s` more seconds."""
        async with _answer(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(lease_key(lease.worker_id), json.dumps(asdict(lease)), px=int(lease_s * 1000))
            pipeline.sadd(WORKERS, lease.worker_id)
            await pipeline.execute()

    async def drop_lease(self, worker_id: str) -> None:
        async with _answer(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(lease_key(worker_id))
            pipeline.srem(WORKERS, worker_id)
            await pipeline.execute()

    async def live_workers(self) -> list[WorkerLease]:
        """The leases that have not run out. Names of workers whose lease has are taken off the list."""
        async with _answer():
            names = sorted(await self._redis.smembers(WORKERS))
            if not names:
                return []
            values = await self._redis.mget([lease_key(name) for name in names])
            gone = [name for name, value in zip(names, values, strict=True) if value is None]
            if gone:
                await self._redis.srem(WORKERS, *gone)
        return [WorkerLease(**json.loads(value)) for value in values if value is not None]

    async def add_module(self, tenant: str, module: Module) -> Module:
        """Register `module`, unless the name is taken: by the same content the registered one is returned, by other content it is refused.

        Raises ModuleConflict.
        """
        async with _answer():
            added = await self._redis.hsetnx(_modules_key(tenant), module.name, json.dumps(asdict(module)))
            if added:
                return module
            present = await self._redis.hget(_modules_key(tenant), module.name)
        registered = _module(present) if present else module
        if registered.digest != module.digest:
            raise ModuleConflict(module.name, registered.digest)
        return registered

    async def modules(self, tenant: str) -> dict[str, Module]:
        """Every module of the tenant by name."""
        async with _answer():
            entries = await self._redis.hgetall(_modules_key(tenant))
        return {name: _module(value) for name, value in sorted(entries.items())}

    async def module(self, tenant: str, name: str) -> Module | None:
        async with _answer():
            value = await self._redis.hget(_modules_key(tenant), name)
        return _module(value) if value else None


def lease_key(worker_id: str) -> str:
    return f"memserve:worker:{worker_id}"


def _modules_key(tenant: str) -> str:
    return f"memserve:modules:{tenant}"


def _module(value: str) -> Module:
    fields = json.loads(value)
    return Module(**{**fields, "target_modules": tuple(fields["target_modules"])})


@contextlib.asynccontextmanager
async def _answer() -> AsyncIterator[None]:
    """Bounds the whole exchange, the handshake of a new connection included."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield
    except (RedisError, OSError) as error:  # TimeoutError, which asyncio.timeout raises, is an OSError
        raise RegistryUnavailable(_line(error)) from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
