"""Deletes a module version that nothing uses, with its KV and its content.

In order: the version is held, so that no new request begins with it; requests that have it already are waited
for and looked for; the record is deleted; then its KV, the workers' copies and the content go, where no other
version has the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from functools import partial

from memserve.domain import ModuleVersion, Tenant
from memserve.errors import CacheUnavailable, MemserveError
from memserve.gateway.modules.placement import ModulePlacement
from memserve.gateway.modules.version_uses import VersionUses
from memserve.memory.modules.blobs.store import CONDEMNED_S
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.processes.supervised import Background

log = logging.getLogger("memserve.gateway.modules.deletion")

# A request that was resolved before the version was held reaches its worker, and the worker's next word
# reaches this gateway, in less time.
SETTLE_S = 1.0
HOLD_S = 30.0


class ModuleDeletion:
    """Deletions go on when their caller goes away: nothing is left half done."""

    def __init__(
        self,
        memory: ParametricMemory,
        activation: ActivationMemory,
        placement: ModulePlacement,
        uses: VersionUses,
        background: Background,
    ) -> None:
        self._memory = memory
        self._store = memory.store
        self._activation = activation
        self._placement = placement
        self._uses = uses
        self._background = background

    async def delete(self, tenant: Tenant, name: str, number: int, *, mark: str = "") -> int:
        """Returns the chunks of KV that were freed. Raises VersionInUse, ModuleNotFound.

        mark: keeps new requests from the version for HOLD_S where it is in use, so that a later call with the
        same mark finds it free. Empty: a version in use goes on as before.
        """
        version = await self._memory.version(tenant.name, name, number)
        return await asyncio.shield(
            self._background.begin(f"deleting {version.reference}", self._delete(tenant, version, mark))
        )

    async def _delete(self, tenant: Tenant, version: ModuleVersion, mark: str) -> int:
        name, number = version.module, version.version
        # Where another version has the same content it stays, and requests that use it are in no danger.
        if not mark and not await self._store.other_references(tenant.name, name, number):
            self._uses.refuse_here(version)
        token = mark or uuid.uuid4().hex
        await self._store.hold_version(tenant.name, name, number, token, HOLD_S)
        try:
            if not await self._store.other_references(tenant.name, name, number):
                await asyncio.sleep(SETTLE_S)
                self._uses.refuse_here(version)
                await self._uses.refuse_elsewhere(version)
            _, unreferenced, tenants_last = await self._store.delete_version(
                tenant.name, tenant.principal, name, number, token=token
            )
        except BaseException:
            # A hold that is not released runs out.
            if not mark:
                with contextlib.suppress(MemserveError):
                    await self._store.release_version(tenant.name, name, number, token)
            raise
        removed_chunks = 0
        if tenants_last:
            try:
                removed_chunks, _ = await self._activation.evict_module(tenant.name, version.digest)
            except CacheUnavailable as error:
                log.warning("KV of the removed %s stays until it expires: %s", version.reference, error)
        if unreferenced:
            await self._placement.forget(version)
            await self._remove_content(version.digest, token, self._memory.blobs.delete)
        if version.probes_digest:
            await self._remove_content(version.probes_digest, token, self._memory.blobs.delete_probes)
        return removed_chunks

    async def _remove_content(self, digest: str, token: str, remove: Callable[[str], None]) -> None:
        """Where nothing else has it. Content that stays when this fails is found by a sweep."""
        try:
            if await self._store.block_publishing(digest, token, CONDEMNED_S):
                try:
                    await self._memory.files.run_own(partial(remove, digest))
                finally:
                    await self._store.allow_publishing(digest, token)
        except MemserveError as error:
            log.warning("the content of %s stays until the next sweep: %s", digest[:12], error)
