"""Preloads in the registry: versions that workers load when they start."""

from __future__ import annotations

from memserve.memory.modules.registry.records import Preload, read_preload
from memserve.memory.modules.registry.scripts import RegistryScripts


class PreloadRecords(RegistryScripts):
    """The preloads of every tenant's versions."""

    async def preload(self, tenant: str, principal: str, name: str, number: int, worker_id: str = "") -> None:
        """Have a worker (every worker: "") load the version when it starts. Raises ModuleNotFound."""
        await self._change(
            "preload", tenant=tenant, principal=principal, module=name, number=number, worker=worker_id
        )

    async def unload(self, tenant: str, principal: str, name: str, number: int, worker_id: str = "") -> None:
        """Take back the preload for this worker; for "", every preload of the version. Without one, only the
        audit tells of it.

        Raises ModuleNotFound.
        """
        await self._change(
            "unload", tenant=tenant, principal=principal, module=name, number=number, worker=worker_id
        )

    async def preloads(self) -> list[Preload]:
        """Of all tenants, each once, without those of workers that have no lease; after an hour without one
        they are taken away.
        """
        return sorted(set(self._reader.read(await self._look("preloads"), read_preload)))
