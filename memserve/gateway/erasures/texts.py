"""The texts of an erasure: they go with what was derived from them, and what that had replaced comes back."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from memserve.domain import ErasedPlace, Tenant
from memserve.errors import (
    MemoryNotFound,
    MemserveError,
    NamespaceNotFound,
    VectorStoreUnavailable,
    VersionNotFound,
)
from memserve.gateway.erasures.subject import ErasurePlans, taken_by
from memserve.memory.erasures.records import ErasureRecord
from memserve.memory.texts.erasing import merged
from memserve.memory.texts.index import one_line
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import MemoryName

NEVER = float("inf")
LOOKS = 8
"""For memories that are derived from the erased ones while they are erased."""


class ErasedTexts:
    """Of all tenants. Each step may be done again without harm."""

    def __init__(self, plans: ErasurePlans, texts: VectorMemory) -> None:
        self._plans = plans
        self._texts = texts

    async def erase(self, tenant: Tenant, record: ErasureRecord) -> None:
        """Raises as `VectorMemory.erase`, but for what is erased already."""
        if record.memories:
            await self._erase(tenant, record)
        else:
            await self._erase_rest(tenant, record)

    async def _erase(self, tenant: Tenant, record: ErasureRecord) -> None:
        """The memories, with what was derived from them until they are gone."""
        erased: set[tuple[str, str]] = set()
        for _ in range(LOOKS):
            left = [name for name in record.memories if name not in erased]
            for namespace, memory_id in left:
                erased.add((namespace, memory_id))
                name = MemoryName(namespace, memory_id)
                try:
                    places = await self._texts.erase(tenant.name, name, record.reason)
                except (MemoryNotFound, NamespaceNotFound):
                    continue
                for place in places:
                    merged(record.places, place)
            more, back = await self._plans.derived_since(tenant.name, record.memories)
            if not more:
                return
            record.memories = (*more, *record.memories)
            record.superseded = tuple(dict.fromkeys((*record.superseded, *back)))
            derived = (f"{namespace}/{memory_id}" for namespace, memory_id in record.memories[:-1])
            record.erasure = replace(record.erasure, derived=tuple(derived))
        raise VectorStoreUnavailable("memories are derived from it again and again")

    async def _erase_rest(self, tenant: Tenant, record: ErasureRecord) -> None:
        """What is left of a namespace whose deletion was cut off. What was written since stays."""
        erasure = record.erasure
        places: tuple[ErasedPlace, ...] = ()
        deletion = self._texts.delete_namespace(tenant.name, erasure.namespace, until_s=erasure.at_s)
        with contextlib.suppress(NamespaceNotFound):
            async with contextlib.aclosing(deletion) as reports:
                async for report in reports:
                    places = report.places
        for place in places:
            merged(record.places, place)

    async def bring_back(self, tenant: Tenant, record: ErasureRecord, pending: list[str]) -> None:
        """What a derived memory had taken the place of is live again."""
        left = []
        for name in record.superseded:
            try:
                current = (await self._texts.history(tenant.name, *name)).current
                if taken_by(current) in record.memories:
                    await self._texts.restore(tenant.name, MemoryName(*name), tenant.principal)
                    record.restored += 1
            except (MemoryNotFound, NamespaceNotFound, VersionNotFound):
                continue
            except MemserveError as error:
                left.append(name)
                pending.append(f"{name[0]}/{name[1]} is not live again yet: {one_line(error)}")
        record.superseded = tuple(left)
        if len(record.memories) > 1:
            detail = (
                f"derived from it, and erased too; {record.restored} that they had superseded are live again"
            )
            record.places["derived"] = ErasedPlace("derived", len(record.memories) - 1, detail, bool(left))

    async def found(self, tenant: Tenant, record: ErasureRecord) -> ErasedPlace:
        """What is there of them."""
        found = 0
        if not record.memories:
            found = await self._texts.count_until(tenant.name, record.erasure.namespace, record.erasure.at_s)
        for namespace, memory_id in record.memories:
            try:
                history = await self._texts.history(tenant.name, namespace, memory_id)
            except (MemoryNotFound, NamespaceNotFound):
                continue
            found += history.versions[0].memory.created_s <= (record.erased_s or NEVER)
        return ErasedPlace("texts", found, "memories of it, and derived from it", bool(found))
