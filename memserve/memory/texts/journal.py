"""The journal of the vector memory, in the registry Redis: writes that are acknowledged and perhaps not yet
durable in Milvus.

The scripts are in `journal.lua`. What is appended here is on disk when the call returns, if the registry
syncs every write (`appendfsync always`, as the private one does): Milvus is an index, and may lose what it
has not durably written.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from redis.exceptions import NoScriptError

from memserve.domain import Memory
from memserve.errors import JournalFull, QuotaReached
from memserve.memory.texts.records import memory_fields, memory_from, memory_key, tenant_key
from memserve.registry.client import answering, close_client, registry_client

SCRIPT = files("memserve.memory.texts").joinpath("journal.lua").read_text(encoding="utf-8")
SCRIPT_DIGEST = hashlib.sha1(SCRIPT.encode()).hexdigest()
PREFIX = "memserve:memories:"
PENDING, STATE, TENANTS, COUNTS = (PREFIX + name for name in ("pending", "state", "tenants", "counts:"))
MAX_ENTRIES = 32_768
MAX_BYTES = 128 << 20
FULL_RETRY_S = 5.0
# A slow disk may sync for longer than the registry's usual second.
TIMEOUT_S = 5.0
_PAGE = 256


@dataclass(frozen=True, slots=True)
class Write:
    """One change of one memory: a put when `memory` is set, else a delete."""

    key: str
    """The memory's primary key in Milvus."""
    tenant_key: str
    namespace: str
    memory: Memory | None
    vector: npt.NDArray[np.float32] | None
    """Of a put, [EMBEDDING_DIM]."""
    author: str
    """Names the call that wrote, so that a call that is sent again recognises its own write."""
    sequence: int = 0
    """0 until it is in the journal. Of two writes of a memory the higher one holds."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the journal knows of a memory."""

    pending: Write | None
    last_sequence: int
    """The last one that was given, to any write."""
    has_namespace: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """What is counted."""

    memories: int
    """Of all tenants."""
    pending: int
    """Writes in the journal."""
    bytes: int
    """Of the writes in the journal."""
    is_counted: bool
    """False until `take_over`."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What one tenant may keep."""

    memories: int = 100_000
    namespaces: int = 1000


class Journal:
    """Every method raises RegistryUnavailable when Redis does not answer in time; whether a change was made
    is then unknown.
    """

    def __init__(self, redis_url: str, quotas: Quotas) -> None:
        self._quotas = quotas
        self._redis = registry_client(redis_url, decode_responses=False)

    async def close(self) -> None:
        await close_client(self._redis)

    async def embedded_before(self, embedder: str, name: str, default: str) -> str:
        """Say that memories are embedded by `embedder` from now on. "": they are.

        Otherwise memories are kept that another model has embedded, nothing is changed, and the name of that
        model is returned. default: the name of the model that "" stands for.
        """
        return _text(
            await self._run("embedded_by", [PENDING, STATE], embedder=embedder, name=name, default=default)
        )

    async def syncs_every_write(self) -> bool | None:
        """Whether what is acknowledged is on disk. None: this Redis does not say."""
        async with answering(TIMEOUT_S):
            try:
                options = await self._redis.config_get("append*")
            except Exception as error:
                if "unknown command" in str(error) or "NOPERM" in str(error):
                    return None
                raise
        named = {_text(name): _text(value) for name, value in options.items()}
        return named.get("appendonly") == "yes" and named.get("appendfsync") == "always"

    async def look(self, key: str, tenant: str, namespace: str) -> Look:
        """key: as `memory_key` makes it."""
        async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hget(PENDING, key)
            pipeline.hget(STATE, "sequence")
            pipeline.hexists(COUNTS + tenant_key(tenant), namespace)
            entry, sequence, has_namespace = await pipeline.execute()
        return Look(_decode(key, entry) if entry else None, int(sequence or 0), bool(has_namespace))

    async def pending_of(self, keys: Sequence[str]) -> dict[str, Write]:
        """The pending writes of these memories."""
        if not keys:
            return {}
        async with answering(TIMEOUT_S):
            entries = await self._redis.hmget(PENDING, keys)
        return {key: _decode(key, entry) for key, entry in zip(keys, entries, strict=True) if entry}

    async def append(self, write: Write, look: Look, change: int) -> int | None:
        """Journal a write, and count `change` memories more in its namespace. On return it is durable.

        Returns its sequence. None: the memory was written since `look`, so look again. Raises JournalFull and
        QuotaReached.
        """
        outcome, *answer = await self._run(
            "append",
            [PENDING, STATE, TENANTS, COUNTS + write.tenant_key],
            key=write.key,
            body=_encode(write),
            tenant=write.tenant_key,
            namespace=write.namespace,
            seen_sequence=look.pending.sequence if look.pending else 0,
            last_sequence=look.last_sequence,
            change=change,
            entries_max=MAX_ENTRIES,
            bytes_max=MAX_BYTES,
            memories_max=self._quotas.memories,
            namespaces_max=self._quotas.namespaces,
        )
        if outcome == b"quota":
            noun = _text(answer[0])
            limit = self._quotas.memories if noun == "memories" else self._quotas.namespaces
            raise QuotaReached(f"{noun} of the tenant", limit, f"max_{noun}_per_tenant")
        if outcome == b"full":
            raise JournalFull(int(answer[0]), FULL_RETRY_S)
        return int(answer[0]) if outcome == b"done" else None

    async def drop(self, writes: Sequence[Write], settled_s: float) -> set[str]:
        """Forget writes that are durable in Milvus, but for those that have been followed by others.

        Writes younger than `settled_s` stay too; their keys are returned.
        """
        young: set[str] = set()
        for start in range(0, len(writes), _PAGE):
            page = [
                {"key": write.key, "sequence": str(write.sequence)} for write in writes[start : start + _PAGE]
            ]
            keys = await self._run("drop", [PENDING, STATE], settled_s=settled_s, writes=json.dumps(page))
            young.update(_text(key) for key in keys)
        return young

    async def pending(self) -> AsyncIterator[list[Write]]:
        """All pending writes, a page at a time, in no order."""
        cursor = 0
        while True:
            async with answering(TIMEOUT_S):
                cursor, page = await self._redis.hscan(PENDING, cursor, count=_PAGE)
            yield [_decode(_text(key), entry) for key, entry in page.items()]
            if not int(cursor):
                return

    async def totals(self) -> Totals:
        async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(STATE, "memories", "bytes", "counted")
            pipeline.hlen(PENDING)
            (memories, size_bytes, counted), pending = await pipeline.execute()
        return Totals(int(memories or 0), int(pending), int(size_bytes or 0), bool(counted))

    async def counts(self, tenant: str) -> dict[str, int]:
        """The tenant's namespaces and how many memories each has."""
        return await self._counts(tenant_key(tenant))

    async def all_namespaces(self) -> AsyncIterator[tuple[str, dict[str, int]]]:
        """Of every tenant, by its key, the namespaces with their memories."""
        async with answering(TIMEOUT_S):
            tenants = sorted(_text(tenant) for tenant in await self._redis.smembers(TENANTS))
        for tenant in tenants:
            yield tenant, await self._counts(tenant)

    async def take_over(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Begin with these counts, by tenant key and namespace. Does nothing when there are counts
        already.
        """
        ordered = sorted(counts.items())
        tenants = list(dict.fromkeys(tenant for (tenant, _), _ in ordered))
        records = [
            {"tenant": tenant, "namespace": namespace, "memories": memories}
            for (tenant, namespace), memories in ordered
        ]
        keys = [PENDING, STATE, TENANTS, *(COUNTS + tenant for tenant in tenants)]
        await self._run("take_over", keys, counts=json.dumps(records))

    async def _counts(self, tenant: str) -> dict[str, int]:
        async with answering(TIMEOUT_S):
            counts = await self._redis.hgetall(COUNTS + tenant)
        return {_text(namespace): int(memories) for namespace, memories in counts.items()}

    async def _run(self, script: str, keys: Sequence[str], **arguments: Any) -> Any:
        """arguments: by the names that the script gives them."""
        named = [script, *(part for argument in arguments.items() for part in argument)]
        async with answering(TIMEOUT_S):
            try:
                return await self._redis.evalsha(SCRIPT_DIGEST, len(keys), *keys, *named)
            except NoScriptError:
                return await self._redis.eval(SCRIPT, len(keys), *keys, *named)


def put(tenant: str, memory: Memory, vector: npt.NDArray[np.float32]) -> Write:
    """A write that is not yet in the journal."""
    key = memory_key(tenant, memory.namespace, memory.memory_id)
    return Write(key, tenant_key(tenant), memory.namespace, memory, vector, uuid.uuid4().hex)


def delete(tenant: str, namespace: str, memory_id: str) -> Write:
    """A write that is not yet in the journal."""
    return Write(
        memory_key(tenant, namespace, memory_id), tenant_key(tenant), namespace, None, None, uuid.uuid4().hex
    )


def _encode(write: Write) -> bytes:
    """The body of an entry: a line of JSON, then the vector's bytes."""
    fields = {
        "tenant_key": write.tenant_key,
        "namespace": write.namespace,
        "author": write.author,
        "memory": memory_fields(write.memory) if write.memory else None,
    }
    vector = b"" if write.vector is None else np.asarray(write.vector, "<f4").tobytes()
    return json.dumps(fields).encode() + b"\n" + vector


def _decode(key: str, entry: bytes) -> Write:
    head, _, vector = entry.partition(b"\n")
    sequence, _, fields = head.split(b" ", 2)
    body = json.loads(fields)
    memory = body["memory"]
    return Write(
        key=key,
        tenant_key=body["tenant_key"],
        namespace=body["namespace"],
        memory=memory_from(memory) if memory else None,
        vector=np.frombuffer(vector, "<f4") if vector else None,
        author=body["author"],
        sequence=int(sequence),
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
