"""The memories that a distillation names: read with their histories, and sorted out by the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TypeVar

from memserve.domain import DistilChoice, LinkKind, Memory, MemoryHistory, MemoryState, Tenant
from memserve.domain.lineage import MemoryVersionName
from memserve.errors import InvalidField, MemoryNotFound, NamespaceNotFound
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ListQuery
from memserve.policy.modules.selection import MOST_CHANGES, MOST_MEMORIES, Selection, select
from memserve.turns import FairThreads

HISTORIES_AT_ONCE = 16
PAGE = 256
DOCUMENTS_MAX = 64

T = TypeVar("T")


class ChosenMemories:
    """Reads memories of a tenant for a distillation."""

    def __init__(self, texts: VectorMemory, threads: FairThreads) -> None:
        self._texts = texts
        self._threads = threads

    async def select(self, tenant: Tenant, choice: DistilChoice, now_s: float) -> Selection:
        """Raises InvalidField, NamespaceNotFound, MemoryNotFound, VectorStoreUnavailable."""
        _check(choice)
        named = dict.fromkeys(choice.memories)
        for memory in await self._listed(tenant, choice):
            named[(memory.namespace, memory.memory_id)] = None
        if len(named) > MOST_MEMORIES:
            raise InvalidField("memories", f"more than {MOST_MEMORIES}; narrow the filter")
        histories: list[MemoryHistory] = []
        for some in _batches(list(named)):
            histories += await asyncio.gather(
                *(self._texts.history(tenant.name, namespace, memory_id) for namespace, memory_id in some)
            )
        chains = {history.current.memory_id: await self._chain(tenant, history) for history in histories}
        # Comparing hundreds of memories takes a second.
        return await self._threads.run(tenant.name, lambda: select(histories, now_s, chains))

    async def unchanged(
        self, tenant: Tenant, versions: Sequence[MemoryVersionName]
    ) -> list[tuple[MemoryVersionName, str]]:
        """Those that are live and still say what they said in that version, with their texts."""
        kept: list[tuple[MemoryVersionName, str]] = []
        for some in _batches(versions[:MOST_MEMORIES]):
            texts = await asyncio.gather(*(self._unchanged(tenant, each) for each in some))
            kept += [(each, text) for each, text in zip(some, texts, strict=True) if text]
        return kept

    async def _unchanged(self, tenant: Tenant, named: MemoryVersionName) -> str:
        """The text. Empty: the memory is gone, or says something else now."""
        try:
            history = await self._texts.history(tenant.name, named.namespace, named.memory_id)
        except (MemoryNotFound, NamespaceNotFound):
            return ""
        if history.current.state is not MemoryState.LIVE:
            return ""
        then = next((each.memory for each in history.versions if each.memory.version == named.version), None)
        return history.current.text if then is not None and then.text == history.current.text else ""

    async def _listed(self, tenant: Tenant, choice: DistilChoice) -> list[Memory]:
        if not choice.namespaces:
            return []
        found: list[Memory] = []
        token = ""
        while len(found) <= MOST_MEMORIES:
            page = await self._texts.list_memories(
                tenant.name,
                ListQuery(choice.namespaces, limit=PAGE, filter=choice.filter, page_token=token),
            )
            found += [
                memory
                for memory in page.memories
                if not choice.document_ids or memory.place.within in choice.document_ids
            ]
            token = page.next_page_token
            if not token:
                break
        return found

    async def _chain(self, tenant: Tenant, history: MemoryHistory) -> int:
        """How many memories this one has superseded, one after the other, as far as it matters."""
        length = 0
        memory = history.current
        while length <= MOST_CHANGES:
            before = next((link for link in memory.links if link.kind is LinkKind.SUPERSEDES), None)
            if before is None:
                break
            length += 1
            try:
                found = await self._texts.history(
                    tenant.name, before.namespace or memory.namespace, before.memory_id
                )
            except MemoryNotFound:
                break
            memory = found.current
        return length


def _check(choice: DistilChoice) -> None:
    if not choice.namespaces and not choice.memories:
        raise InvalidField("namespaces", "name at least one, or single memories")
    if not choice.namespaces and (choice.filter or choice.document_ids):
        raise InvalidField("namespaces", "name those that the filter and the documents are of")
    for field, named, most in (
        ("memories", choice.memories, MOST_MEMORIES),
        ("document_ids", choice.document_ids, DOCUMENTS_MAX),
    ):
        bounded: Sequence[object] = named
        if len(bounded) > most:
            raise InvalidField(field, f"at most {most}")


def _batches(places: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(places), HISTORIES_AT_ONCE):
        yield places[start : start + HISTORIES_AT_ONCE]
