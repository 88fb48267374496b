"""What changes the traffic of an alias: promotion, a split, a rollback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from memserve.domain import Alias, Tenant, TrafficShare
from memserve.errors import AliasConflict, GateRefused
from memserve.gateway.modules.gatekeeper import Gatekeeper
from memserve.gateway.modules.placement import SWAP_TIMEOUT_S, ModulePlacement
from memserve.gateway.modules.progress import Step
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.policy.modules.gate import failing
from memserve.processes.supervised import Background

# Of an alias's traffic, for versions that have not passed the gate.
UNGATED_SHARE_MAX = 0.5


class ModuleLifecycle:
    """Aliases of any tenant's modules. What they point at is on the workers before they do."""

    def __init__(
        self,
        memory: ParametricMemory,
        gatekeeper: Gatekeeper,
        placement: ModulePlacement,
        background: Background,
    ) -> None:
        self._memory = memory
        self._store = memory.store
        self._gatekeeper = gatekeeper
        self._placement = placement
        self._background = background

    async def promote(
        self,
        tenant: Tenant,
        name: str,
        number: int,
        alias: str,
        *,
        expected_revision: int | None,
        force: bool,
        reason: str,
    ) -> AsyncGenerator[Step | Alias, None]:
        """Gate the version where it has no report, load it on every worker, then point the alias at it.

        The alias comes last. What the gate has refused it refuses again without asking; `RunGate` asks anew.
        Raises GateRefused, AliasConflict, ModuleNotFound, OtherBase, InvalidModule,
        NoWorker.
        """
        await self._store.check_audit(tenant.name)
        version = self._memory.served(await self._memory.version(tenant.name, name, number))
        await self._expect(tenant, name, alias, expected_revision)
        report = version.gate
        if report is None or report.probes_digest != version.probes_digest:
            async with aclosing(self._gatekeeper.run(tenant, name, number)) as events:
                async for event in events:
                    if isinstance(event, Step):
                        yield event
                    else:
                        report = event
        assert report is not None
        if not report.passed and not force:
            raise GateRefused(version.reference, failing(report.figures))
        await self._placement.load_for_traffic(version)
        if not report.passed:
            reason = f"{reason} (forced: {failing(report.figures)})".strip()
        change = Change(tenant.principal, reason, expected_revision, forced=not report.passed)
        yield await self._store.set_alias(
            AliasRef(tenant.name, name, alias), (TrafficShare(number, 1.0),), change, action="promote"
        )

    async def split(
        self,
        tenant: Tenant,
        name: str,
        alias: str,
        targets: Sequence[TrafficShare],
        *,
        expected_revision: int | None,
        reason: str,
    ) -> Alias:
        """Share the alias's traffic. `canary.py` watches versions that have not passed the gate from then on.

        Raises AliasConflict, ModuleNotFound, OtherBase, NoWorker, and InvalidField when such versions would
        have more than half of it.
        """
        await self._store.check_audit(tenant.name)
        versions = [
            self._memory.served(await self._memory.version(tenant.name, name, target.version))
            for target in targets
        ]
        await self._expect(tenant, name, alias, expected_revision)
        await asyncio.gather(*map(self._placement.load_for_traffic, versions))
        return await self._store.set_alias(
            AliasRef(tenant.name, name, alias),
            targets,
            Change(tenant.principal, reason, expected_revision),
            action="split",
            ungated_share_max=UNGATED_SHARE_MAX,
        )

    async def rollback(
        self, tenant: Tenant, name: str, alias: str, *, expected_revision: int | None, reason: str
    ) -> Alias:
        """Point the alias back, and have the workers load what it points at now, without waiting for them.

        Raises NothingToRollBack, AliasConflict, ModuleNotFound.
        """
        changed = await self._store.rollback(
            AliasRef(tenant.name, name, alias), Change(tenant.principal, reason, expected_revision)
        )
        # Requests load it too: this only spares the first of them the wait.
        if not self._background.is_full:
            self._background.begin(
                f"loading what {name}@{alias} was rolled back to", self._load_targets(tenant, name, changed)
            )
        return changed

    async def _load_targets(self, tenant: Tenant, name: str, alias: Alias) -> None:
        for target in alias.targets:
            version = await self._memory.version(tenant.name, name, target.version)
            await self._placement.load(version, pin=False, timeout_s=SWAP_TIMEOUT_S)

    async def _expect(self, tenant: Tenant, name: str, alias: str, revision: int | None) -> None:
        """Raises AliasConflict now, before long work. The change itself looks again."""
        if revision is None:
            return
        module = await self._store.module(tenant.name, name)
        revisions = {known.name: known.revision for known in (module.aliases if module is not None else ())}
        present = revisions.get(alias, 0)
        if present != revision:
            raise AliasConflict(name, alias, present, revision)
