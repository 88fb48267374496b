"""What a worker is to have loaded, held against what it has: over a real registry and an engine that only
keeps count.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from memserve.domain import ModuleKind, ModulePlace, ModuleVersion, WeightFigures, WorkerLease
from memserve.errors import InvalidModule
from memserve.memory.modules.blobs.store import BlobStore
from memserve.memory.modules.registry.store import ModuleStore
from memserve.registry.leases import Registry
from tests.kv.redis_server import RedisServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.modules.copies import LocalCopies
    from memserve.worker.modules.held import Modules
    from memserve.worker.modules.preloads import Preloads
    from memserve.worker.modules.room import Places

LORA = ModuleKind.LORA
WORKER = "w-1"
TENANT, PRINCIPAL = "acme", "acme"
LEASE = WorkerLease(WORKER, "127.0.0.1:1", "127.0.0.1:2", 1, "model", "m", "t", "n", 32, 1, 512, 8, 0.0)


class CountingHolder:
    """Has room for four; refuses what is in `refused`."""

    capacity = 4
    setting = "max_cpu_loras"

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.asked: list[str] = []
        self._held: Places = {}

    async def places(self) -> Places:
        return dict(self._held)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        self.asked.append(digest)
        if digest in self.refused:
            raise InvalidModule("module", "the engine refuses it")
        if leaving is not None:
            del self._held[leaving]
        self._held[digest] = ModulePlace.HOST
        return dict(self._held)

    async def unload(self, digest: str) -> Places:
        del self._held[digest]
        return dict(self._held)


@dataclass
class Worker:
    """digests: of the versions 1, 2, … of the module `facts`."""

    store: ModuleStore
    modules: Modules
    holder: CountingHolder
    preloads: Preloads
    digests: list[str]

    async def preload(self, number: int, worker_id: str = "") -> None:
        await self.store.preload(TENANT, PRINCIPAL, "facts", number, worker_id)

    async def withdraw(self, number: int, worker_id: str = "") -> None:
        await self.store.unload(TENANT, PRINCIPAL, "facts", number, worker_id)

    @property
    def pinned(self) -> set[str]:
        return {digest for _, digest in self.modules.pinned}


@pytest.fixture
async def worker(own_redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Worker]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"some weights")
    blobs = BlobStore("", tmp_path / "store")
    store = ModuleStore(own_redis_server.url)
    registry = Registry(own_redis_server.url)
    await registry.renew_lease(LEASE, lease_s=60)
    digests = [letter * 64 for letter in "abcd"]
    for digest in digests:
        blobs.put(digest, source)
        await store.publish(TENANT, PRINCIPAL, version(digest))
    holder = CountingHolder()
    modules = Modules(LocalCopies(blobs), {LORA: holder}, {})
    try:
        yield Worker(store, modules, holder, Preloads(store, modules, WORKER), digests)
    finally:
        await registry.close()
        await store.close()


def version(digest: str) -> ModuleVersion:
    return ModuleVersion(
        module="facts",
        version=0,
        digest=digest,
        kind=LORA,
        base_digest="base",
        rank=4,
        target_modules=("q_proj",),
        size_bytes=12,
        created_s=1.0,
        author=PRINCIPAL,
        sources=(),
        parents=(),
        recipe="",
        notes="",
        figures=WeightFigures(1.0, 0.0, 4.0),
        probes_digest="",
        moves_logits=True,
    )


async def test_what_is_preloaded_for_every_worker_or_this_one_is_loaded_and_pinned(worker: Worker) -> None:
    await worker.preload(1)
    await worker.preload(2, WORKER)
    await worker.preload(3, "w-another")
    await worker.preloads.reconcile()
    assert worker.pinned == set(worker.modules.held) == set(worker.digests[:2])


async def test_what_is_no_longer_preloaded_is_unpinned_and_stays_loaded(worker: Worker) -> None:
    await worker.preload(1)
    await worker.preload(1, WORKER)
    await worker.preloads.reconcile()
    await worker.withdraw(1, WORKER)
    await worker.preloads.reconcile()
    assert worker.pinned == {worker.digests[0]}
    await worker.withdraw(1)
    await worker.preloads.reconcile()
    assert worker.pinned == set()
    assert set(worker.modules.held) == {worker.digests[0]}


async def test_while_the_registry_is_out_all_stays_and_afterwards_the_rest_is_loaded(
    worker: Worker, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await worker.preload(1)
    await worker.preloads.reconcile()
    own_redis_server.stop()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await worker.preloads.reconcile()
    assert worker.pinned == {worker.digests[0]}
    assert len([record for record in caplog.records if "not loaded ahead" in record.message]) == 1


async def test_a_module_that_does_not_load_is_told_once_and_holds_up_no_other(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    worker.holder.refused = {worker.digests[0]}
    await worker.preload(1)
    await worker.preload(2)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await worker.preloads.reconcile()
    assert worker.pinned == {worker.digests[1]}
    # The second try is after a pause.
    assert worker.holder.asked == worker.digests[:2]
    assert len([record for record in caplog.records if "the engine refuses it" in record.message]) == 1


async def test_more_preloads_than_may_be_pinned_are_told_by_the_setting(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        await worker.preload(number)
    with caplog.at_level(logging.ERROR):
        await worker.preloads.reconcile()
    assert worker.pinned == set(worker.digests[:2])
    assert "2 of the 4 that fit (setting max_cpu_loras)" in caplog.text
