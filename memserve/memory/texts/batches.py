"""Many memories in one call: each is told, and a bad one does not stop the others."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from memserve.domain import Memory, NewMemory, Remembered, WritePolicy
from memserve.errors import MemserveError
from memserve.memory.texts.core import Changed, Intent
from memserve.memory.texts.grouping import grouped
from memserve.memory.texts.journal import APPEND_MAX
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key
from memserve.memory.texts.requests import ItemOutcome
from memserve.memory.texts.writes import Vector, Writes, remembered

BATCH_POLICY = WritePolicy(skip_relations=True)
"""Looking for relations costs a search for each item."""


@dataclass(frozen=True, slots=True)
class _Item:
    index: int
    key: str
    memory: Memory


class Batches(Writes):
    """Writes of many memories."""

    async def remember_many(
        self,
        tenant: str,
        items: AsyncIterable[NewMemory | MemserveError] | Iterable[NewMemory | MemserveError],
        author: str = "",
        policy: WritePolicy = BATCH_POLICY,
    ) -> AsyncGenerator[ItemOutcome, None]:
        """Remember a stream of memories. Yields what became of each, in order.

        items: a refusal among them is told in its place.

        APPEND_MAX items are embedded, journaled and told at a time, so that no more of the stream than that
        is in memory. What is told as remembered is durable. Of two items with one id the first is
        remembered; the second is the same memory, or a conflict. Memories of one batch are not looked at as
        duplicates of each other.

        A failure of a store is told for the items that it hits.
        """
        index = 0
        async with contextlib.aclosing(grouped(items, APPEND_MAX)) as chunks:
            async for chunk in chunks:
                for outcome in await self._remember_chunk(tenant, index, chunk, author, policy):
                    yield outcome
                index += len(chunk)

    async def _remember_chunk(
        self,
        tenant: str,
        first: int,
        chunk: Sequence[NewMemory | MemserveError],
        author: str,
        policy: WritePolicy,
    ) -> list[ItemOutcome]:
        outcomes: dict[int, ItemOutcome] = {}
        waves: list[dict[str, _Item]] = []
        for index, new in enumerate(chunk, first):
            try:
                if isinstance(new, MemserveError):
                    raise new
                memory = self._checked(new, author)
            except MemserveError as error:
                outcomes[index] = ItemOutcome(index, error=error)
                continue
            item = _Item(index, memory_key(tenant, *memory.name), memory)
            # The second of two items with one id comes in the next wave.
            wave = next((wave for wave in waves if item.key not in wave), None)
            if wave is None:
                waves.append(wave := {})
            wave[item.key] = item
        for wave in waves:
            outcomes |= await self._remember_wave(tenant, wave, policy)
        return [outcomes[index] for index in sorted(outcomes)]

    async def _remember_wave(
        self, tenant: str, wave: dict[str, _Item], policy: WritePolicy
    ) -> dict[int, ItemOutcome]:
        try:
            return await self._within(
                self._call_timeout_s * len(wave) ** 0.5,
                partial(self._store_wave, tenant, wave, policy),
                writes=True,
            )
        except MemserveError as error:
            return {item.index: ItemOutcome(item.index, error=error) for item in wave.values()}

    async def _store_wave(
        self, tenant: str, wave: dict[str, _Item], policy: WritePolicy
    ) -> dict[int, ItemOutcome]:
        self._require_open()
        items = list(wave.values())
        vectors = dict(
            zip(
                wave,
                await self.embedding.embed(tenant, [item.memory.text for item in items], query=False),
                strict=True,
            )
        )
        if not policy.skip_relations or policy.skip_duplicates or policy.supersede_updates:
            return {
                item.index: await self._remember_related(tenant, item, vectors[item.key], policy)
                for item in items
            }
        owner = tenant_key(tenant)
        known: dict[str, Memory] = {}

        def decide(key: str, before: Record | None) -> Intent | None:
            new = Record(key, owner, first_history(wave[key].memory), vectors[key])
            intent = remembered(before, new)
            if intent is None and before is not None:
                known[key] = before.memory
            return intent

        namespaces = {key: item.memory.namespace for key, item in wave.items()}
        changed = await self._change_many(tenant, owner, namespaces, decide)
        return {item.index: _told(item, changed[key], known.get(key)) for key, item in wave.items()}

    async def _remember_related(
        self, tenant: str, item: _Item, vector: Vector, policy: WritePolicy
    ) -> ItemOutcome:
        try:
            stored = await self._remember(tenant, item.memory, vector, policy)
        except MemserveError as error:
            return ItemOutcome(item.index, error=error)
        return ItemOutcome(item.index, stored)


def _told(item: _Item, changed: Changed | MemserveError | None, known: Memory | None) -> ItemOutcome:
    if isinstance(changed, MemserveError):
        return ItemOutcome(item.index, error=changed)
    if changed is not None and changed.after is not None:
        return ItemOutcome(item.index, Remembered(changed.after.memory, True))
    return ItemOutcome(item.index, Remembered(known, False))
