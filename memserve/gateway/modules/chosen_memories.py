"""The memories that a distillation names: read with their histories, and sorted out by the policy."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from memserve.domain import DistilChoice, LinkKind, Memory, MemoryHistory, Tenant
from memserve.domain.lineage import MemoryVersionName
from memserve.errors import InvalidField, MemoryNotFound, NamespaceNotFound
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ListQuery
from memserve.policy.modules.selection import (
    MOST_BYTES,
    MOST_CHANGES,
    MOST_MEMORIES,
    Selection,
    select,
    unfit,
)
from memserve.turns import FairThreads

HISTORIES_AT_ONCE = 16
PAGE = 256
DOCUMENTS_MAX = 64

T = TypeVar("T")


class ChosenMemories:
    """Reads memories of a tenant for a distillation."""

    def __init__(
        self, texts: VectorMemory, threads: FairThreads, control_token: Callable[[str], str | None]
    ) -> None:
        """control_token: as of `policy.modules.selection.select`."""
        self._texts = texts
        self._threads = threads
        self._control_token = control_token

    async def select(self, tenant: Tenant, choice: DistilChoice, now_s: float) -> Selection:
        """Raises InvalidField, NamespaceNotFound, MemoryNotFound, VectorStoreUnavailable."""
        _check(choice)
        single = set(choice.memories)
        named = dict.fromkeys(choice.memories)
        for memory in await self._listed(tenant, choice):
            named[memory.name] = None
        if len(named) > MOST_MEMORIES:
            raise InvalidField("memories", f"more than {MOST_MEMORIES}; narrow the filter")
        histories: list[MemoryHistory] = []
        for some in _batches(list(named)):
            read = await asyncio.gather(*(self._history(tenant, each, each in single) for each in some))
            histories += [history for history in read if history is not None]
        chains = {history.current.name: await self._chain(tenant, history) for history in histories}
        # Comparing hundreds of memories takes a second.
        return await self.computed(tenant, lambda: select(histories, now_s, chains, self._control_token))

    async def _history(self, tenant: Tenant, name: tuple[str, str], is_named: bool) -> MemoryHistory | None:
        """None: it was erased since it was listed. Raises MemoryNotFound for one that was named."""
        try:
            return await self._texts.history(tenant.name, *name)
        except MemoryNotFound:
            if is_named:
                raise
            return None

    async def computed(self, tenant: Tenant, work: Callable[[], T]) -> T:
        """Done on a thread: hundreds of memories hold an event loop for too long."""
        return await self._threads.run(tenant.name, work)

    async def unchanged(
        self, tenant: Tenant, versions: Sequence[MemoryVersionName], now_s: float
    ) -> list[tuple[MemoryVersionName, str]]:
        """Those that hold now and still say what they said in that version, with their texts."""
        kept: list[tuple[MemoryVersionName, str]] = []
        for some in _batches(versions):
            texts = await asyncio.gather(*(self._unchanged(tenant, each, now_s) for each in some))
            kept += [(each, text) for each, text in zip(some, texts, strict=True) if text]
        return kept

    async def _unchanged(self, tenant: Tenant, named: MemoryVersionName, now_s: float) -> str:
        """The text. Empty: the memory is gone, or says something else now."""
        try:
            history = await self._texts.history(tenant.name, named.namespace, named.memory_id)
        except (MemoryNotFound, NamespaceNotFound):
            return ""
        if unfit(history.current, now_s, self._control_token):
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
            except (MemoryNotFound, NamespaceNotFound):
                break
            memory = found.current
        return length


def as_many_as_fit(kept: Sequence[tuple[MemoryVersionName, str]]) -> list[tuple[MemoryVersionName, str]]:
    """The first ones, as many as are trained on at once."""
    some = kept[:MOST_MEMORIES]
    sizes = itertools.accumulate(len(text.encode()) for _, text in some)
    return [each for each, size in zip(some, sizes, strict=True) if size <= MOST_BYTES]


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
