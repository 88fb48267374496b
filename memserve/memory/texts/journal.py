"""The journal of the vector memory, in the registry Redis: writes that are acknowledged and perhaps not yet
durable in Milvus.

The scripts are in `journal.lua`. What is appended here is on disk when the call returns, if the registry
syncs every write (`appendfsync always`, as the private one does): Milvus is an index, and may lose what it
has not durably written.

A journal that is full refuses every write, erasing too, until the store has written what waits.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from memserve.domain import MemoryChange, NamespaceUsage
from memserve.errors import ChangesMissed, EmbedderChanged, JournalFull, PinnedMemoriesFull, QuotaReached
from memserve.memory.texts.journal_entries import (
    Draft,
    Look,
    Model,
    Quotas,
    Totals,
    Write,
    WritesHeld,
    change_of,
    decode,
    described,
    encode,
    last_of,
    text_of,
)
from memserve.memory.texts.records import tenant_key
from memserve.memory.texts.registry_log import rewritten
from memserve.registry.client import answering, close_client, registry_client
from memserve.registry.script import Script

SCRIPT = Script.of("memserve.memory.texts", "journal")
PREFIX = "memserve:memories:"
PENDING, STATE, TENANTS, COUNTS = (PREFIX + name for name in ("pending", "state", "tenants", "counts:"))
RECORDS, BYTES, FEED, TRIMMED = (PREFIX + name for name in ("records:", "bytes:", "feed:", "trimmed"))
PINNED = PREFIX + "pinned:"
MAX_ENTRIES = 32_768
MAX_BYTES = 128 << 20
APPEND_MAX = 128
"""Writes in one call: one script, and one sync of the registry's disk."""
FEED_MAX = 10_000
"""Changes of a tenant that its feed keeps, about."""
PINNED_MAX = 64
"""Pinned memories of a namespace."""
PINNED_MAX_BYTES = 16 << 10
"""Of the texts of a namespace's pinned memories together: they are in every prompt that recalls from it."""
FULL_RETRY_S = 5.0
# A slow disk may sync for longer than the registry's usual second.
TIMEOUT_S = 5.0
_PAGE = 256


class Journal:
    """Every method raises RegistryUnavailable when Redis does not answer in time; whether a change was made
    is then unknown.
    """

    def __init__(self, redis_url: str, quotas: Quotas, model: Model | None = None) -> None:
        """model: appends, drops and `pending_of` raise EmbedderChanged when another one embeds the memories.
        None: any model does.
        """
        self.quotas = quotas
        self.model = model
        self._redis = registry_client(redis_url, decode_responses=False)

    async def close(self) -> None:
        await close_client(self._redis)

    async def embedded_before(self, model: Model) -> str:
        """Say that memories are embedded by this model from now on. "": they are.

        Otherwise memories are kept that another model has embedded, nothing is changed, and the name of that
        model is returned.
        """
        return text_of(await self.run("embedded_by", [PENDING, STATE], **asdict(model)))

    async def syncs_every_write(self) -> bool | None:
        """Whether what is acknowledged is on disk. None: this Redis does not say."""
        async with answering(TIMEOUT_S):
            try:
                options = await self._redis.config_get("append*")
            except Exception as error:
                if "unknown command" in str(error) or "NOPERM" in str(error):
                    return None
                raise
        named = {text_of(name): text_of(value) for name, value in options.items()}
        return named.get("appendonly") == "yes" and named.get("appendfsync") == "always"

    async def state(self) -> dict[str, str]:
        """The fields of `STATE` in `journal.lua`."""
        async with answering(TIMEOUT_S):
            fields = await self._redis.hgetall(STATE)
        return {text_of(name): text_of(value) for name, value in fields.items()}

    async def forget_outdated(self) -> None:
        """The collection of the model before is dropped."""
        async with answering(TIMEOUT_S):
            await self._redis.hdel(STATE, "embedder_before")

    async def look(self, key: str, tenant: str, namespace: str) -> Look:
        """key: as `memory_key` makes it."""
        return (await self.look_many({key: namespace}, tenant_key(tenant)))[key]

    async def look_many(self, namespaces: Mapping[str, str], tenant: str) -> dict[str, Look]:
        """All looks are of one moment.

        namespaces: of each memory, by its key; at least one. tenant: its key.
        """
        keys = list(namespaces)
        async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(PENDING, keys)
            pipeline.hget(STATE, "sequence")
            pipeline.hmget(COUNTS + tenant, list(namespaces.values()))
            entries, sequence, counts = await pipeline.execute()
        return {
            key: Look(decode(key, entry) if entry else None, int(sequence or 0), count is not None)
            for key, entry, count in zip(keys, entries, counts, strict=True)
        }

    async def pending_of(self, keys: Sequence[str]) -> dict[str, Write]:
        """The pending writes of these memories. Raises EmbedderChanged."""
        async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(STATE, "embedder", "embedder_name")
            if keys:
                pipeline.hmget(PENDING, keys)
            (embedder, name), *found = await pipeline.execute()
        self._check(embedder, name)
        entries = found[0] if found else []
        return {key: decode(key, entry) for key, entry in zip(keys, entries, strict=True) if entry}

    async def still_pending(self, writes: Sequence[Write]) -> list[Write]:
        """The writes that no other gateway has followed with a write of its own. Raises EmbedderChanged."""
        pending = await self.pending_of([write.key for write in writes])
        return [
            write
            for write in writes
            if write.key in pending and pending[write.key].sequence == write.sequence
        ]

    async def append_many(
        self, tenant: str, drafts: Sequence[Draft], last_sequence: int, *, together: bool = False
    ) -> list[int | JournalFull | QuotaReached | None]:
        """Journal writes of one tenant, and count what they change. On return they are durable.

        drafts: 1 to APPEND_MAX.
        tenant: its key.
        last_sequence: of the oldest look that the drafts are made from.
        together: whether either all are journaled or none.
        Returns for each its sequence or its refusal. None: the memory was written since the look, so look
        again. Raises EmbedderChanged and WritesHeld.
        """
        if not 1 <= len(drafts) <= APPEND_MAX:
            raise ValueError(f"must be 1 to {APPEND_MAX} writes")
        quotas, model = self.quotas, self.model
        answers = await self.run(
            "append",
            [PENDING, STATE, TENANTS, *_tenant_keys(tenant)],
            tenant=tenant,
            writes=json.dumps([described(draft) for draft in drafts]),
            **{f"body:{number}": encode(draft.write) for number, draft in enumerate(drafts, start=1)},
            last_sequence=last_sequence,
            together=int(together),
            entries_max=MAX_ENTRIES,
            bytes_max=MAX_BYTES,
            memories_max=quotas.memories,
            namespaces_max=quotas.namespaces,
            tenant_bytes_max=quotas.bytes,
            feed_max=FEED_MAX,
            pinned_max=PINNED_MAX,
            pinned_bytes_max=PINNED_MAX_BYTES,
            **({} if model is None else asdict(model)),
        )
        if answers[0][0] == b"embedder" and model is not None:
            raise EmbedderChanged(text_of(answers[0][1]), model.name)
        if answers[0][0] == b"held":
            raise WritesHeld
        return [
            self._outcome(answer, draft.write.namespace)
            for answer, draft in zip(answers, drafts, strict=True)
        ]

    async def append(self, draft: Draft, last_sequence: int) -> int | None:
        """As `append_many` with one. Raises JournalFull and QuotaReached."""
        (outcome,) = await self.append_many(draft.write.tenant_key, [draft], last_sequence)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def drop(self, writes: Sequence[Write], settled_s: float) -> set[str]:
        """Forget writes that are durable in Milvus, but for those that have been followed by others.

        Writes younger than `settled_s` stay too; their keys are returned. Raises EmbedderChanged.
        """
        young: set[str] = set()
        model = {} if self.model is None else asdict(self.model)
        for start in range(0, len(writes), _PAGE):
            page = [
                {"key": write.key, "sequence": str(write.sequence)} for write in writes[start : start + _PAGE]
            ]
            keys = await self.run(
                "drop", [PENDING, STATE], settled_s=settled_s, writes=json.dumps(page), **model
            )
            if isinstance(keys, bytes) and self.model is not None:
                raise EmbedderChanged(text_of(keys), self.model.name)
            young.update(text_of(key) for key in keys)
        return young

    async def pending(self) -> AsyncIterator[list[Write]]:
        """All pending writes, a page at a time, in no order. Raises EmbedderChanged."""
        cursor = 0
        while True:
            async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hmget(STATE, "embedder", "embedder_name")
                pipeline.hscan(PENDING, cursor, count=_PAGE)
                (embedder, name), (cursor, page) = await pipeline.execute()
            self._check(embedder, name)
            yield [decode(text_of(key), entry) for key, entry in page.items()]
            if not int(cursor):
                return

    async def totals(self) -> Totals:
        async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(STATE, "memories", "records", "bytes", "counted", "layout")
            pipeline.hlen(PENDING)
            (memories, records, size_bytes, counted, layout), pending = await pipeline.execute()
        return Totals(
            int(memories or 0), int(records or 0), int(pending), int(size_bytes or 0),
            bool(counted) and layout == b"2",
        )  # fmt: skip

    async def pinned(self, tenant: str, namespace: str) -> list[str]:
        """The ids of the namespace's pinned memories, at most PINNED_MAX."""
        async with answering(TIMEOUT_S):
            pinned = await self._redis.hget(PINNED + tenant_key(tenant), namespace)
        return sorted(json.loads(pinned)) if pinned else []

    async def counts(self, tenant: str) -> dict[str, int]:
        """The tenant's namespaces and how many live memories each has."""
        return await self._counts(COUNTS, tenant_key(tenant))

    async def usage(self, tenant: str) -> list[NamespaceUsage]:
        """What the tenant's namespaces hold, by name."""
        key = tenant_key(tenant)
        live = await self._counts(COUNTS, key)
        records, size_bytes = await self._counts(RECORDS, key), await self._counts(BYTES, key)
        return [
            NamespaceUsage(name, memories, records.get(name, 0), size_bytes.get(name, 0))
            for name, memories in sorted(live.items())
        ]

    async def all_namespaces(self) -> AsyncIterator[tuple[str, dict[str, int]]]:
        """Of every tenant, by its key, the namespaces with their records."""
        for tenant in await self._tenants():
            names = dict.fromkeys(await self._counts(COUNTS, tenant), 0)
            yield tenant, names | await self._counts(RECORDS, tenant)

    async def drop_namespace(self, tenant: str, namespace: str) -> bool:
        """Forget a namespace. False: it has records. tenant: its key."""
        keys = [PENDING, STATE, TENANTS, *_tenant_keys(tenant)]
        return bool(await self.run("drop_namespace", keys, namespace=namespace))

    async def take_over(
        self,
        held: Mapping[str, Sequence[NamespaceUsage]],
        pinned: Mapping[tuple[str, str], Mapping[str, int]] | None = None,
    ) -> None:
        """Begin with these counts, by tenant key. Does nothing when there are counts already.

        pinned: by tenant key and namespace, the bytes of the text of each pinned memory by its id.
        """
        texts = {name: json.dumps(dict(ids)) for name, ids in (pinned or {}).items()}
        rows = [
            {"tenant": tenant, "namespace": usage.namespace, "live": usage.memories,
             "records": usage.records, "bytes": usage.bytes,
             "pinned": texts.get((tenant, usage.namespace), "")}
            for tenant, usages in sorted(held.items())
            for usage in usages
        ]  # fmt: skip
        keys = [
            key
            for tenant, usages in sorted(held.items())
            if usages
            for key in (*_tenant_keys(tenant)[:3], PINNED + tenant)
        ]
        await self.run("take_over", [PENDING, STATE, TENANTS, *keys], counts=json.dumps(rows))

    async def upgrade(self) -> None:
        """Bring the counts of memserve 0.1.0 into this layout. Does nothing when they are."""
        keys = [key for tenant in await self._tenants() for key in _tenant_keys(tenant)[:3]]
        await self.run("upgrade", [PENDING, STATE, TENANTS, *keys])

    async def changes(self, tenant: str, after_sequence: int, limit: int) -> list[MemoryChange]:
        """The tenant's changes after this one, oldest first.

        Raises ChangesMissed when some of them have left the feed, or the sequence was never given.
        """
        key = tenant_key(tenant)
        async with answering(TIMEOUT_S), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hget(TRIMMED, key)
            pipeline.xrevrange(FEED + key, count=1)
            pipeline.xrange(FEED + key, f"({after_sequence}-0", "+", limit)
            oldest, last, entries = await pipeline.execute()
        if after_sequence > last_of(last) or (oldest is not None and after_sequence < int(oldest) - 1):
            raise ChangesMissed(after_sequence)
        return [change_of(entry_id, fields) for entry_id, fields in entries]

    async def last_change(self, tenant: str) -> int:
        """The sequence of the tenant's last change. 0: none."""
        async with answering(TIMEOUT_S):
            return last_of(await self._redis.xrevrange(FEED + tenant_key(tenant), count=1))

    async def rewrite_log(self, timeout_s: float) -> str:
        """As `registry_log.rewritten`. What was erased before has left the file then."""
        async with answering(TIMEOUT_S):
            erased = await self._redis.hget(STATE, "erased")
        why_not = await rewritten(self._redis, timeout_s)
        if erased and not why_not:
            await self.run("rewritten", [PENDING, STATE], erased=text_of(erased))
        return why_not

    async def has_erased_in_log(self) -> bool:
        """Whether something was erased, and the append-only file was not written anew since."""
        async with answering(TIMEOUT_S):
            return bool(await self._redis.hexists(STATE, "erased"))

    def _check(self, embedder: bytes | None, name: bytes | None) -> None:
        """Raises EmbedderChanged. embedder, name: as the registry has them; None: nothing was written yet."""
        model = self.model
        if model is not None and embedder is not None and text_of(embedder) != model.embedder:
            raise EmbedderChanged(text_of(name or model.default), model.name)

    def _outcome(self, answer: Sequence[Any], namespace: str) -> int | JournalFull | QuotaReached | None:
        outcome, *details = answer
        if outcome == b"pinned":
            return PinnedMemoriesFull(namespace, PINNED_MAX, PINNED_MAX_BYTES)
        if outcome == b"quota":
            noun = text_of(details[0])
            quotas = self.quotas
            limits = {
                "memories": quotas.memories,
                "namespaces": quotas.namespaces,
                "memory_bytes": quotas.bytes,
            }
            what = {"memory_bytes": "bytes of memories"}.get(noun, noun)
            return QuotaReached(f"{what} of the tenant", limits[noun], f"max_{noun}_per_tenant")
        if outcome == b"full":
            return JournalFull(int(details[0]), FULL_RETRY_S)
        return int(details[0]) if outcome == b"done" else None

    async def _tenants(self) -> list[str]:
        async with answering(TIMEOUT_S):
            return sorted(text_of(tenant) for tenant in await self._redis.smembers(TENANTS))

    async def _counts(self, prefix: str, tenant: str) -> dict[str, int]:
        async with answering(TIMEOUT_S):
            counts = await self._redis.hgetall(prefix + tenant)
        return {text_of(namespace): int(count) for namespace, count in counts.items()}

    async def run(self, script: str, keys: Sequence[str], **arguments: Any) -> Any:
        """arguments: by the names that the script gives them."""
        named = [script, *(part for argument in arguments.items() for part in argument)]
        async with answering(TIMEOUT_S):
            return await SCRIPT.run(self._redis, keys, named)


def _tenant_keys(tenant: str) -> list[str]:
    return [COUNTS + tenant, RECORDS + tenant, BYTES + tenant, FEED + tenant, TRIMMED, PINNED + tenant]
