"""A load that keeps what was acknowledged, and a look at whether all of it is there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import grpc

from loadtests.harness.stack import variant
from memserve.client import AsyncClient, CallFailed
from memserve.domain import Sampling
from memserve.errors import MemserveError

NAMESPACE, MODULE = "restarts", "town"
SEARCHED_WITHIN_S = 90.0
SEARCHED_MOST = 20
# What a caller can act on. INTERNAL and UNKNOWN are none.
CLEAR = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
PAUSES_S = {"ask": 0.02, "remember": 0.05, "forget": 0.5, "publish": 2.0, "promote": 1.0}


@dataclass
class Acknowledged:
    """What a gateway has said is so."""

    memories: dict[str, str] = field(default_factory=dict)
    """Texts by memory id."""
    forgotten: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    """Ids whose call failed: it may have happened."""
    versions: dict[int, str] = field(default_factory=dict)
    """Digests by version."""
    promotions: dict[int, int] = field(default_factory=dict)
    """Versions by the alias's revision."""
    ended: Counter[str] = field(default_factory=Counter)
    """Calls that ended well, by kind."""
    refused: Counter[str] = field(default_factory=Counter)
    """Calls that failed, by kind and status."""
    unclear: list[str] = field(default_factory=list)
    """Failures that do not say what a caller can do."""


class Load:
    """One asker of each kind, each call at the next gateway. Nothing is sent again."""

    # Of all loads of a process: what a later one forgets is not an earlier one's.
    _memory_numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self, clients: Sequence[AsyncClient], folder: Path) -> None:
        self.acknowledged = Acknowledged()
        self._turn = itertools.cycle(clients)
        self._folder = folder
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Acknowledged]:
        calls: dict[str, Callable[[], Awaitable[None]]] = {
            "ask": self._ask,
            "remember": self._remember,
            "forget": self._forget,
            "publish": self._publish,
            "promote": self._promote,
        }
        await self._remember()
        await self._publish()
        tasks = [asyncio.create_task(self._go_on(kind, call)) for kind, call in calls.items()]
        try:
            yield self.acknowledged
        finally:
            self._stopping.set()
            await asyncio.gather(*tasks)

    async def _go_on(self, kind: str, call: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping.is_set():
            try:
                await call()
                self.acknowledged.ended[kind] += 1
            except CallFailed as failed:
                self.acknowledged.refused[f"{kind} {failed.code.name}"] += 1
                if failed.code not in CLEAR or not failed.detail:
                    self.acknowledged.unclear.append(f"{kind}: {failed}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), PAUSES_S[kind])

    async def _ask(self) -> None:
        sampling = Sampling(max_tokens=8, min_tokens=8)
        await next(self._turn).generate(f"hello {next(self._numbers)}", sampling=sampling)

    async def _remember(self) -> None:
        number = next(self._memory_numbers)
        memory_id, text = f"m{number}", f"The code of station {word(number)} is {number}."
        self.acknowledged.unsure.add(memory_id)
        await next(self._turn).remember(NAMESPACE, text, memory_id=memory_id)
        self.acknowledged.unsure.discard(memory_id)
        self.acknowledged.memories[memory_id] = text

    async def _forget(self) -> None:
        known = self.acknowledged
        memory_id = next((name for name in known.memories if name not in known.unsure), None)
        if memory_id is None or len(known.memories) < 5:
            return
        known.unsure.add(memory_id)
        await next(self._turn).forget(NAMESPACE, memory_id)
        del known.memories[memory_id]
        known.unsure.discard(memory_id)
        known.forgotten.add(memory_id)

    async def _publish(self) -> None:
        number = next(self._numbers)
        folder = variant("harbour", self._folder / f"v{number}", scale=0.9 + number * 1e-4)
        version = await next(self._turn).modules.publish(MODULE, folder)
        self.acknowledged.versions[version.version] = version.digest

    async def _promote(self) -> None:
        number = max(self.acknowledged.versions)
        alias = await next(self._turn).modules.promote(MODULE, number)
        self.acknowledged.promotions[alias.revision] = number


def word(number: int) -> str:
    """A word that no other number has."""
    return "q" + "".join(chr(ord("a") + int(digit)) for digit in str(number)) + "x"


@dataclass
class Lost:
    """What was acknowledged and is not so, by sentences."""

    memories: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.memories) + len(self.modules) + len(self.audit)


async def look(client: AsyncClient, known: Acknowledged) -> Lost:
    """Look at one gateway for all of it. The load has ended, and everything is up."""
    lost = Lost()
    for memory_id, text in known.memories.items():
        if memory_id not in known.unsure and await text_of(client, memory_id) != text:
            lost.memories.append(f"{memory_id} is gone")
    for memory_id in known.forgotten:
        if await text_of(client, memory_id) is not None:
            lost.memories.append(f"{memory_id} is back")
    digests = {version.version: version.digest for version in await client.modules.versions(MODULE)}
    for number, digest in known.versions.items():
        if digests.get(number) != digest:
            lost.modules.append(f"version {number} is not there")
    history = {change.revision: change.targets for change in await client.modules.history(MODULE)}
    for revision, number in known.promotions.items():
        if [share.version for share in history.get(revision, ())] != [number]:
            lost.modules.append(f"revision {revision} does not point at version {number}")
    events = [event async for event in client.modules.audit()]
    published = {json.loads(event.after)["digest"] for event in events if event.action == "publish"}
    promoted = {json.loads(event.after)["revision"] for event in events if event.action == "promote"}
    lost.audit += [
        f"of version {number}" for number in known.versions if known.versions[number] not in published
    ]
    lost.audit += [f"of revision {revision}" for revision in known.promotions if revision not in promoted]
    return lost


async def text_of(client: AsyncClient, memory_id: str) -> str | None:
    """None: there is no such memory."""
    try:
        return (await client.get_memory(NAMESPACE, memory_id)).text
    except CallFailed as failed:
        if failed.code is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def not_found_by_search(client: AsyncClient, known: Acknowledged) -> list[str]:
    """Of SEARCHED_MOST of the acknowledged memories, spread over the load, those that a search for their own
    word does not find SEARCHED_WITHIN_S after the first look: what a killed gateway had journaled is brought
    into Milvus by the other one.
    """
    acknowledged = [name for name in known.memories if name not in known.unsure]
    missing = acknowledged[:: max(1, len(acknowledged) // SEARCHED_MOST)]
    deadline_s = time.monotonic() + SEARCHED_WITHIN_S
    while missing and time.monotonic() < deadline_s:
        still = []
        for memory_id in missing:
            hits = await client.search([NAMESPACE], word(int(memory_id[1:])), limit=3)
            if memory_id not in {hit.memory.memory_id for hit in hits}:
                still.append(memory_id)
        missing = still
        if missing:
            await asyncio.sleep(1.0)
    return missing


async def until_well(clients: Sequence[AsyncClient], within_s: float) -> float:
    """Wait until an answer, a memory and a list of modules succeed at every gateway, twice in a row. Returns
    the seconds. Raises TimeoutError.
    """
    began_s, well = time.monotonic(), 0
    async with asyncio.timeout(within_s):
        while well < 2:
            try:
                for client in clients:
                    await client.generate("hello", sampling=Sampling(max_tokens=1))
                    await client.remember(NAMESPACE, "Everything is up.")
                    await client.modules.all()
                    await client.search([NAMESPACE], "up")
                well += 1
            except (CallFailed, MemserveError):
                well = 0
                await asyncio.sleep(0.1)
    return time.monotonic() - began_s
