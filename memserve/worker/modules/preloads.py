"""The modules that a worker is to have loaded and pinned, as the registry says, held against what it has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.errors import MemserveError, RegistryUnavailable
from memserve.memory.modules.registry.records import Preload
from memserve.memory.modules.registry.store import ModuleStore
from memserve.worker.modules.held import Modules

log = logging.getLogger("memserve.worker.modules.preloads")

# A load may wait for room; not for ever, others are to be loaded too.
LOAD_TIMEOUT_S = 60.0
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 120.0


@dataclass(slots=True)
class _Failure:
    """reason: why the last try failed. again_s: when the next one may be, of the monotonic clock."""

    reason: str
    pause_s: float
    again_s: float


class Preloads:
    """Loads and pins what is preloaded for every worker or for this one, and unpins what no longer is.

    What fails is tried again after pauses that grow, and told once for every reason.
    """

    def __init__(self, store: ModuleStore, modules: Modules, worker_id: str) -> None:
        self._store = store
        self._modules = modules
        self._worker_id = worker_id
        self._failures: dict[Preload, _Failure] = {}
        self._registry_failure = ""

    async def reconcile(self) -> None:
        """Once. While the registry does not answer all stays as it is."""
        try:
            preloads = [
                each for each in await self._store.preloads() if each.worker_id in ("", self._worker_id)
            ]
        except RegistryUnavailable as error:
            if str(error) != self._registry_failure:
                log.warning("modules are not loaded ahead for now: %s", error)
            self._registry_failure = str(error)
            return
        self._registry_failure = ""
        # One that is preloaded for every worker and for this one too is one.
        wanted = {(each.kind, each.digest): each for each in preloads}
        for kind, digest in self._modules.pinned:
            if (kind, digest) not in wanted:
                self._modules.unpin(digest, kind)
        self._failures = {
            preload: failure for preload, failure in self._failures.items() if preload in wanted.values()
        }
        # Kinds wait for room of their own.
        await asyncio.gather(
            *(
                self._load([each for each in wanted.values() if each.kind == kind])
                for kind in {kind for kind, _ in wanted}
            )
        )

    async def _load(self, preloads: Sequence[Preload]) -> None:
        for preload in preloads:
            pinned = (preload.kind, preload.digest) in self._modules.pinned
            failure = self._failures.get(preload)
            if (pinned and preload.digest in self._modules.held) or (
                failure is not None and time.monotonic() < failure.again_s
            ):
                continue
            try:
                async with asyncio.timeout(LOAD_TIMEOUT_S):
                    await self._modules.load(preload.digest, preload.kind, pin=True)
                self._failures.pop(preload, None)
            except TimeoutError:
                self._failed(preload, f"no room within {LOAD_TIMEOUT_S:g} s")
            except (MemserveError, OSError) as error:
                self._failed(preload, str(error))

    def _failed(self, preload: Preload, reason: str) -> None:
        before = self._failures.get(preload)
        if before is None or before.reason != reason:
            log.error("module %s is not loaded ahead, and is tried again: %s", preload.digest, reason)
        pause_s = FIRST_PAUSE_S if before is None else min(2 * before.pause_s, LONGEST_PAUSE_S)
        self._failures[preload] = _Failure(reason, pause_s, time.monotonic() + pause_s)
