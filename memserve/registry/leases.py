"""The leases of the workers that live, in the registry Redis. Every change is atomic.

`memory/modules/registry/store.py` keeps modules in the same Redis.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict

from memserve.domain import WorkerLease
from memserve.errors import UnreadableRecord
from memserve.records import LenientReader, known_fields, reading
from memserve.registry.client import answering, close_client, registry_client

log = logging.getLogger("memserve.registry.leases")

WORKERS = "memserve:workers"
_ADDRESS = re.compile(r"(?:unix:/{0,3}[^\s]+|[^\s/@]+:[0-9]{1,5})")


class Registry:
    """The workers' leases.

    Every method raises RegistryUnavailable when Redis does not answer within a second.
    """

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
        """The leases that have not run out. Workers whose lease has run out are taken off the list.

        A lease that this version cannot read is left out, and logged once.
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
    """Read a lease. Fields that a newer worker has added are ignored. Raises UnreadableRecord."""
    with reading("WorkerLease"):
        lease = WorkerLease(**known_fields(WorkerLease, json.loads(value)))
    if not _ADDRESS.fullmatch(lease.address):
        raise UnreadableRecord("WorkerLease", f"address {lease.address[:80]!r} is no host:port")
    if lease.block_tokens < 1 or lease.blocks_per_chunk < 1:
        raise UnreadableRecord("WorkerLease", "block_tokens and blocks_per_chunk must be at least 1")
    return lease


def lease_key(worker_id: str) -> str:
    return f"memserve:worker:{worker_id}"
