"""Brings the modules that a worker has pinned in line with the preloads in the registry."""

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

# How long a load may wait for room. Other modules of its kind wait behind it.
LOAD_TIMEOUT_S = 60.0
# Pauses before a failed load is tried again: the first, and the longest. Pauses double.
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 120.0


@dataclass(slots=True)
class _Failure:
    """A preload whose last try failed."""

    reason: str
    """Why the last try failed."""
    pause_s: float
    """The pause before the next try."""
    again_s: float
    """When the next try may begin, on the monotonic clock."""


class Preloads:
    """Loads and pins the modules that are preloaded for every worker or for this worker, and unpins others.

    A load that fails is tried again after pauses that grow. The log has each new reason once.
    """

    def __init__(self, store: ModuleStore, modules: Modules, worker_id: str) -> None:
        self._store = store
        self._modules = modules
        self._worker_id = worker_id
        self._failures: dict[Preload, _Failure] = {}
        self._registry_failure = ""

    async def reconcile(self) -> None:
        """Compare once, and change what differs. While the registry does not answer, nothing changes."""
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
        # A module that is preloaded both for every worker and for this worker counts once.
        wanted = {(each.kind, each.digest): each for each in preloads}
        for kind, digest in self._modules.pinned:
            if (kind, digest) not in wanted:
                self._modules.unpin(digest, kind)
        self._failures = {
            preload: failure for preload, failure in self._failures.items() if preload in wanted.values()
        }
        # Each kind has room of its own, so that the kinds are loaded at the same time.
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
