"""Whether a request uses a module version, at this gateway, at a worker or at another gateway."""

from __future__ import annotations

from memserve.domain import ModuleVersion
from memserve.errors import VersionInUse
from memserve.gateway.steps.resolve import ModuleUses
from memserve.gateway.workers.pool import WorkerPool
from memserve.registry.gateways import Gateways

TOPIC = "uses"


class VersionUses:
    """Asked before a version is deleted, when no new request can begin with it."""

    def __init__(self, uses: ModuleUses, pool: WorkerPool, gateways: Gateways) -> None:
        self._uses = uses
        self._pool = pool
        self._gateways = gateways
        gateways.on(TOPIC, self._answer)

    def refuse_here(self, version: ModuleVersion) -> None:
        """Raises VersionInUse."""
        if version.digest in self._uses:
            raise VersionInUse(version.reference, "a request")
        for worker in self._pool.workers.values():
            if version.digest in worker.state.used_modules:
                raise VersionInUse(version.reference, f"a request on worker {worker.lease.worker_id}")

    async def refuse_elsewhere(self, version: ModuleVersion) -> None:
        """A request may be at another gateway and not at a worker yet: in recall, or held.

        Raises VersionInUse, also when a gateway does not say, and RegistryUnavailable.
        """
        said = await self._gateways.ask(TOPIC, digest=version.digest)
        if said.answers:
            raise VersionInUse(version.reference, "a request at another gateway")
        if said.silent:
            raise VersionInUse(version.reference, "perhaps a request at a gateway that does not answer")

    def _answer(self, question: dict[str, str]) -> bool | None:
        return True if question["digest"] in self._uses else None
