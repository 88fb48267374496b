"""The whole life of memories against a plain model, over two tenants with the same namespaces and ids."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memserve.domain import MemoryAction, MemoryState, NewMemory, WritePolicy
from memserve.errors import MemoryConflict, MemoryNotFound, MemserveError, NamespaceNotFound
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.requests import ListQuery, MemoryChanges, MemoryName
from memserve.memory.texts.store import ListOrder
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import search

TENANTS = ("acme", "globex")
NAMESPACES = ("notes", "plans")
IDS = ("a", "b", "c")
STEPS = 160
PLAIN = WritePolicy(skip_relations=True)
Name = tuple[str, str, str]


@dataclass
class Model:
    """Of each memory, by tenant, namespace and id, its versions: time, text, state, action."""

    memories: dict[Name, list[tuple[float, str, MemoryState, MemoryAction]]] = field(default_factory=dict)
    namespaces: set[tuple[str, str]] = field(default_factory=set)

    def now(self, name: Name) -> tuple[float, str, MemoryState, MemoryAction] | None:
        versions = self.memories.get(name)
        return versions[-1] if versions else None

    def add(self, name: Name, time_s: float, text: str, state: MemoryState, action: MemoryAction) -> None:
        self.memories.setdefault(name, []).append((time_s, text, state, action))
        self.namespaces.add(name[:2])


class Life:
    """Draws steps, takes them in both, and compares."""

    def __init__(self, memory: VectorMemory, clock: list[float], seed: int) -> None:
        self.memory = memory
        self.model = Model()
        self.clock = clock
        self.draw = random.Random(seed)
        self.words = 0

    async def step(self) -> None:
        self.clock[0] += 10.0
        name = self.draw.choice(TENANTS), self.draw.choice(NAMESPACES), self.draw.choice(IDS)
        call = self.draw.choice(
            (self.remember, self.remember, self.update, self.forget, self.restore, self.supersede, self.erase)
        )
        await call(name)
        await self.compare(name)

    def text(self) -> str:
        self.words += 1
        return f"The lantern of number{self.words} hangs by the harbour."

    async def remember(self, name: Name) -> None:
        tenant, namespace, memory_id = name
        versions, now = self.model.memories.get(name, []), self.model.now(name)
        is_known = bool(versions) and self.draw.random() < 0.5
        text = self.draw.choice(versions)[1] if is_known else self.text()
        new = NewMemory(namespace, text, memory_id=memory_id)
        if now is not None and now[2] is not MemoryState.FORGOTTEN:
            if text in [version[1] for version in versions]:
                stored = await self.memory.remember(tenant, new, "", PLAIN)
                assert stored.memory is not None and (stored.created, stored.memory.text) == (False, now[1])
            else:
                with pytest.raises(MemoryConflict):
                    await self.memory.remember(tenant, new, "", PLAIN)
            return
        assert (await self.memory.remember(tenant, new, "", PLAIN)).created
        self.model.add(name, self.clock[0], text, MemoryState.LIVE, MemoryAction.REMEMBERED)

    async def update(self, name: Name) -> None:
        tenant, namespace, memory_id = name
        now, text = self.model.now(name), self.text()
        changes = MemoryChanges(NewMemory(namespace, text, memory_id=memory_id), frozenset({"text"}))
        if now is None or now[2] is MemoryState.FORGOTTEN:
            with pytest.raises((MemoryNotFound, NamespaceNotFound)):
                await self.memory.update(tenant, changes, "", PLAIN)
            return
        await self.memory.update(tenant, changes, "", PLAIN)
        self.model.add(name, self.clock[0], text, now[2], MemoryAction.UPDATED)

    async def forget(self, name: Name) -> None:
        now = self.model.now(name)
        is_there = now is not None and now[2] is not MemoryState.FORGOTTEN
        assert await self.memory.forget(*name) is is_there
        if now is not None and is_there:
            self.model.add(name, self.clock[0], now[1], MemoryState.FORGOTTEN, MemoryAction.FORGOTTEN)

    async def restore(self, name: Name) -> None:
        tenant, namespace, memory_id = name
        versions = self.model.memories.get(name, [])
        if not versions:
            with pytest.raises((MemoryNotFound, NamespaceNotFound)):
                await self.memory.restore(tenant, MemoryName(namespace, memory_id))
            return
        number = self.draw.randrange(len(versions))
        await self.memory.restore(tenant, MemoryName(namespace, memory_id), version=number + 1)
        self.model.add(name, self.clock[0], versions[number][1], MemoryState.LIVE, MemoryAction.RESTORED)

    async def supersede(self, name: Name) -> None:
        tenant, namespace, memory_id = name
        other = tenant, self.draw.choice(NAMESPACES), self.draw.choice(IDS)
        states = [self.model.now(each) for each in (name, other)]
        gone = [now is None or now[2] is MemoryState.FORGOTTEN for now in states]
        call = self.memory.supersede(tenant, MemoryName(namespace, memory_id), MemoryName(*other[1:]))
        if other == name or any(gone):
            with pytest.raises(MemserveError):
                await call
            return
        before = [await self.memory.history(tenant, *each[1:]) for each in (name, other)]
        lost, won = await call
        assert lost.state is MemoryState.SUPERSEDED and lost.superseded_by is not None
        assert any(link.memory_id == memory_id for link in won.links)
        if lost != before[0].current:  # not for the second time
            self.model.add(name, self.clock[0], lost.text, lost.state, MemoryAction.SUPERSEDED)
            self.model.add(other, self.clock[0], won.text, won.state, MemoryAction.UPDATED)

    async def erase(self, name: Name) -> None:
        tenant, namespace, memory_id = name
        if self.draw.random() < 0.6:
            return  # it costs a flush
        if name not in self.model.memories:
            with pytest.raises((MemoryNotFound, NamespaceNotFound)):
                await self.memory.erase(tenant, MemoryName(namespace, memory_id))
            return
        await self.memory.erase(tenant, MemoryName(namespace, memory_id))
        del self.model.memories[name]

    async def compare(self, name: Name) -> None:
        versions = self.model.memories.get(name)
        if not versions:
            with pytest.raises((MemoryNotFound, NamespaceNotFound)):
                await self.memory.history(*name)
            return
        history = await self.memory.history(*name)
        assert [
            (kept.memory.updated_s, kept.memory.text, kept.memory.state, kept.action)
            for kept in history.versions
        ] == versions
        assert [kept.memory.version for kept in history.versions] == list(range(1, len(versions) + 1))
        when = self.draw.choice(versions)[0] + 5.0
        (current,) = [version for version in versions if version[0] < when][-1:]
        if current[2] is MemoryState.FORGOTTEN:
            with pytest.raises(MemoryNotFound):
                await self.memory.get(*name, as_of_s=when)
        else:
            assert (await self.memory.get(*name, as_of_s=when)).text == current[1]

    async def compare_all(self) -> None:
        for tenant in TENANTS:
            live: dict[str, list[tuple[str, str]]] = {}
            for (owner, namespace, memory_id), versions in sorted(self.model.memories.items()):
                if owner == tenant and versions[-1][2] is MemoryState.LIVE:
                    live.setdefault(namespace, []).append((memory_id, versions[-1][1]))
            known = {namespace for owner, namespace in self.model.namespaces if owner == tenant}
            counts = {namespace: len(live.get(namespace, [])) for namespace in known}
            assert await self.memory.counts(tenant) == counts
            for namespace in known:
                page = await self.memory.list_memories(
                    tenant, ListQuery((namespace,), order=ListOrder.MEMORY_ID, limit=64)
                )
                assert [(memory.memory_id, memory.text) for memory in page.memories] == live.get(
                    namespace, []
                )
                hits = await search(self.memory, "lantern by the harbour", tenant=tenant, namespace=namespace)
                found = sorted((hit.memory.memory_id, hit.memory.text) for hit in hits)
                assert found == live.get(namespace, [])


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_life_of_memories_is_that_of_a_plain_model(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, seed: int
) -> None:
    clock = [1_000_000.0]
    options = TextOptions(now_s=lambda: clock[0], flush=FlushPolicy(rows=20, quiet_s=0.05))
    uri = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(uri, embedder, redis_server.url, options)
    life = Life(memory, clock, seed)
    for number in range(STEPS):
        await life.step()
        if number % 20 == 19:
            await life.compare_all()
        if number == STEPS // 2:
            await memory.close()
            life.memory = memory = await VectorMemory.open(uri, embedder, redis_server.url, options)
    await life.compare_all()
    await memory.close()
