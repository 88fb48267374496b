"""Erases a memory with everything that was made of it.

In order, each step being kept in the registry before the next one begins:

1. The erasure is kept, so that any gateway goes on with it. Distillations that read the memory are stopped.
2. Aliases leave the versions that know it, and preloads of them are dropped: nothing new is answered with it.
3. The texts go, with what was derived from them (`VectorMemory.erase`), and consolidations that have them.
   Then it is noted again that they are erased: nothing that has read them until then is published. What a
   derived one had superseded comes back.
4. The versions are deleted, with their content and probes. A version in use waits for its requests.
5. Kept answers by these versions go. Workers forget KV, copies and checkpoints; then the KV in Redis goes.
6. What could not be reached is tried again until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

from memserve.domain import NamespaceErasure, Tenant
from memserve.domain.lineage import Erasure, ErasureState
from memserve.errors import MemserveError, RegistryUnavailable, UnreadableRecord
from memserve.gateway.access.callers import Access
from memserve.gateway.erasures.steps import ErasureSteps, planned_places, replaced_place
from memserve.gateway.erasures.subject import ErasurePlans, Plan
from memserve.memory.erasures.records import ErasureRecord
from memserve.memory.erasures.store import TURN_S, KeptErasures
from memserve.memory.modules.registry.audit import AuditRecords
from memserve.memory.texts.index import MILVUS_ERRORS, one_line
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import MemoryName
from memserve.processes.supervised import Background

log = logging.getLogger("memserve.gateway.erasures")

PRINCIPAL = "memserve erasures"
LOOK_S = 1.0
AGAIN_S = 5.0
"""Between two tries of what could not be reached."""
FAILED_AGAIN_S = 30.0
UNREADABLE_AGAIN_S = 600.0


class Erasures:
    """Of all tenants. `step` is the step of one of the gateway's loops."""

    def __init__(
        self,
        kept: KeptErasures,
        plans: ErasurePlans,
        steps: ErasureSteps,
        texts: VectorMemory,
        audit: AuditRecords,
        access: Access,
        background: Background,
    ) -> None:
        self._kept = kept
        self._plans = plans
        self._steps = steps
        self._texts = texts
        self._audit = audit
        self._access = access
        self._background = background
        self._token = uuid.uuid4().hex
        self._held: set[str] = set()
        """Ids of erasures that this gateway works on. Two at once would count each other's work."""

    async def plan(self, tenant: Tenant, name: MemoryName) -> Erasure:
        """What an erasure of this memory would do. Raises NamespaceNotFound and MemoryNotFound."""
        now_s = time.time()
        plan = await self._plans.of_memory(tenant.name, name.namespace, name.memory_id, now_s)
        erasure = _erasure(plan, "", name.memory_id, now_s)
        return replace(erasure, state=ErasureState.PLANNED, places=planned_places(plan))

    async def erase(self, tenant: Tenant, name: MemoryName, reason: str) -> Erasure:
        """Returns when all is done that can be reached. It goes on when the caller goes away.

        Raises NamespaceNotFound, MemoryNotFound, AuditFull, and as `VectorMemory.erase`; what was begun is
        then done later.
        """
        now_s = time.time()
        plan = await self._plans.of_memory(tenant.name, name.namespace, name.memory_id, now_s)
        what = {"namespace": name.namespace, "memory_id": name.memory_id, "reason": reason}
        await self._audit.record(tenant.name, tenant.principal, "erase_memory", "", before=json.dumps(what))
        record = await self._begin(tenant, plan, name.memory_id, reason, now_s)
        return await asyncio.shield(self._background.begin("erasing a memory", self._all(tenant, record)))

    async def delete_namespace(
        self, tenant: Tenant, namespace: str
    ) -> AsyncGenerator[NamespaceErasure, None]:
        """As `VectorMemory.delete_namespace`, and what was made of its memories goes too.

        Raises NamespaceNotFound, AuditFull.
        """
        await self._texts.count(tenant.name, namespace)
        now_s = time.time()
        plan = await self._plans.of_namespace(tenant.name, namespace, now_s)
        what = json.dumps({"namespace": namespace})
        await self._audit.record(tenant.name, tenant.principal, "delete_namespace", "", before=what)
        record = await self._begin(tenant, plan, "", "", now_s)
        last: NamespaceErasure | None = None
        with self._holding(record):
            await self._steps.before(tenant, record)
            async with aclosing(self._texts.delete_namespace(tenant.name, namespace)) as erasures:
                async for erasure in erasures:
                    if last is not None:
                        yield last
                    last = erasure
                    await self._save(record)
            await self._steps.texts_gone(tenant, record)
            await self._save(record)
            done = await self._finish(tenant, record)
        if last is not None:
            yield replace(last, places=(*last.places, *done.places))

    async def newest(self, tenant: Tenant, limit: int) -> list[Erasure]:
        """The newest first, with what has become of their retraining."""
        records = await self._kept.newest(tenant.name, limit)
        return await self._steps.with_retraining(tenant, [record.erasure for record in records])

    async def check(self, tenant: Tenant, erasure_id: str) -> Erasure | None:
        """Look again for what an erasure has removed: its places say what is there. None: it is not kept."""
        record = await self._kept.get(tenant.name, erasure_id)
        if record is None:
            return None
        places = await self._steps.check(tenant, record)
        return replace(record.erasure, places=tuple(places))

    async def step(self) -> None:
        """Go on with those that are due."""
        for tenant_name, erasure_id in await self._kept.due(time.time()):
            if erasure_id in self._held or not await self._kept.take_turn(erasure_id, self._token):
                continue
            try:
                record = await self._kept.get(tenant_name, erasure_id)
            except UnreadableRecord as error:
                # A newer memserve may have written it, and go on with it.
                log.error("an erasure of %s cannot be gone on with here: %s", tenant_name, error)
                await self._kept.postpone(tenant_name, erasure_id, time.time() + UNREADABLE_AGAIN_S)
                await self._kept.end_turn(erasure_id)
                continue
            if record is None:
                await self._kept.forget(tenant_name, erasure_id)
                continue
            tenant = self._access.named(tenant_name, record.principal or PRINCIPAL)
            try:
                await self._all(tenant, record)
            except (*MILVUS_ERRORS, MemserveError) as error:
                log.warning("an erasure goes on later: %s", one_line(error))
                await self._kept.save(record, time.time(), again_s=FAILED_AGAIN_S)

    async def _begin(
        self, tenant: Tenant, plan: Plan, memory_id: str, reason: str, now_s: float
    ) -> ErasureRecord:
        erasure_id = uuid.uuid4().hex
        record = ErasureRecord(
            erasure=_erasure(plan, erasure_id, memory_id, now_s),
            tenant=tenant.name,
            principal=tenant.principal,
            reason=reason,
            memories=plan.subject.memories,
            superseded=plan.superseded,
            versions=plan.versions,
        )
        if plan.replaced:
            record.places["replaced"] = replaced_place(plan.replaced)
        self._steps.note_workers(record)
        await self._save(record)
        return record

    async def _all(self, tenant: Tenant, record: ErasureRecord) -> Erasure:
        """Every step that is not done yet."""
        with self._holding(record):
            await self._steps.before(tenant, record)
            await self._save(record)
            await self._steps.texts(tenant, record)
            await self._save(record)
            return await self._finish(tenant, record)

    @contextlib.contextmanager
    def _holding(self, record: ErasureRecord) -> Iterator[None]:
        """Keep the turn: a step may take longer than it, and nobody else is to do it meanwhile."""
        erasure_id = record.erasure.erasure_id
        self._held.add(erasure_id)
        holding = self._background.begin("holding an erasure", self._hold(erasure_id))
        try:
            yield
        finally:
            holding.cancel()
            self._held.discard(erasure_id)

    async def _hold(self, erasure_id: str) -> None:
        while True:
            await asyncio.sleep(TURN_S / 4)
            with contextlib.suppress(RegistryUnavailable):
                await self._kept.take_turn(erasure_id, self._token)

    async def _finish(self, tenant: Tenant, record: ErasureRecord) -> Erasure:
        pending = await self._steps.after(tenant, record)
        took_s = time.time() - record.erasure.at_s if not record.erasure.seconds else record.erasure.seconds
        record.erasure = replace(
            record.erasure,
            state=ErasureState.PENDING if pending else ErasureState.DONE,
            places=tuple(record.places.values()),
            pending=tuple(pending),
            seconds=took_s,
        )
        await self._kept.save(record, time.time(), again_s=AGAIN_S)
        await self._kept.end_turn(record.erasure.erasure_id)
        await self._kept.trim(tenant.name)
        return record.erasure

    async def _save(self, record: ErasureRecord) -> None:
        """Another gateway goes on with it TURN_S later, unless it is saved again before."""
        await self._kept.take_turn(record.erasure.erasure_id, self._token)
        await self._kept.save(record, time.time())


def _erasure(plan: Plan, erasure_id: str, memory_id: str, now_s: float) -> Erasure:
    subject = plan.subject
    return Erasure(
        erasure_id=erasure_id,
        namespace=subject.namespace,
        memory_id=memory_id,
        state=ErasureState.PENDING,
        at_s=now_s,
        derived=tuple(f"{namespace}/{name}" for namespace, name in subject.memories[:-1]),
        retired=tuple(version.reference for version in plan.retired),
        aliases=plan.aliases,
        retraining=plan.retraining,
    )
