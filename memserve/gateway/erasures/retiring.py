"""Takes versions out of service that know an erased memory, and deletes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence, Set

from memserve.domain import ModuleVersion, Tenant
from memserve.domain.lineage import MovedAlias
from memserve.errors import AliasConflict, ModuleNotFound, VersionInUse
from memserve.gateway.erasures.subject import ErasurePlans, Subject
from memserve.gateway.modules.deletion import ModuleDeletion
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.registry.store import ModuleStore
from memserve.policy.lineage.sources import Versions

log = logging.getLogger("memserve.gateway.erasures")

ACTION = "erase"
ALIAS_TRIES = 5
"""Others may move the alias meanwhile."""
AT_ONCE = 4
WAIT_S, PAUSE_S = 10.0, 0.5
"""For requests that use a version. They get to their end."""


def retired_of(
    every: Versions, versions: Iterable[ModuleVersion], digests: Set[str], made_before_s: float
) -> list[ModuleVersion]:
    """Those that know an erased memory, of the versions that are said to.

    digests: of contents that know it. made_before_s: what was made later, of a new memory of that name and of
    other contents, is left alone.
    """
    contents = {version.digest for version in every.products_of(digests)}
    return [
        version for version in versions if version.digest in contents or version.created_s <= made_before_s
    ]


class Retiring:
    """Versions of any tenant."""

    def __init__(self, plans: ErasurePlans, store: ModuleStore, deletion: ModuleDeletion) -> None:
        self._plans = plans
        self._store = store
        self._deletion = deletion

    async def take_out(
        self, tenant: Tenant, subject: Subject, made_before_s: float, digests: Set[str]
    ) -> tuple[list[MovedAlias], int, list[ModuleVersion]]:
        """Move the aliases and drop the preloads of every version that knows the subject.

        made_before_s, digests: as of `retired_of`.

        Returns what became of aliases, how many versions had preloads, and the versions.
        """
        modules, every, found = await self._plans.versions_of(tenant.name, subject, digests)
        retired = retired_of(every, found, digests, made_before_s)
        moved: list[MovedAlias] = []
        for _ in range(ALIAS_TRIES):
            wanted = await self._plans.moved(tenant.name, modules, every, retired)
            if not wanted:
                break
            moved += [move for move in wanted if await self._move(tenant, move)]
            modules = await self._plans.modules(tenant.name)
        digests = {preload.digest for preload in await self._store.preloads()}
        preloaded = [version for version in retired if version.digest in digests]
        for version in preloaded:
            await self._store.unload(tenant.name, tenant.principal, version.module, version.version)
        return moved, len(preloaded), retired

    async def delete(
        self, tenant: Tenant, versions: Sequence[tuple[str, int]], mark: str
    ) -> tuple[int, list[str]]:
        """Delete versions that nothing points at, with their KV and content.

        Returns the chunks of KV that were freed, and which versions are still in use. No new request gets
        those meanwhile.
        """
        turns = asyncio.Semaphore(AT_ONCE)
        freed = 0
        in_use: list[str] = []

        async def delete(name: str, number: int) -> None:
            nonlocal freed
            async with turns:
                until_s = asyncio.get_running_loop().time() + WAIT_S
                while True:
                    try:
                        freed += await self._deletion.delete(tenant, name, number, mark=mark)
                        return
                    except ModuleNotFound:
                        return
                    except VersionInUse as error:
                        if asyncio.get_running_loop().time() >= until_s:
                            in_use.append(f"{name}@{number}: {error}")
                            return
                    await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(delete(*version) for version in versions))
        return freed, sorted(in_use)

    async def _move(self, tenant: Tenant, move: MovedAlias) -> bool:
        """False: it has changed meanwhile, and is looked at again."""
        ref = AliasRef(tenant.name, move.module, move.alias)
        change = Change(tenant.principal, f"a memory was erased: {move.why}", move.revision)
        try:
            if move.after:
                await self._store.set_alias(ref, move.after, change, action=ACTION)
            else:
                await self._store.drop_alias(ref, change)
        except (AliasConflict, ModuleNotFound) as error:
            log.info("alias %s@%s is looked at again: %s", move.module, move.alias, error)
            return False
        return True
