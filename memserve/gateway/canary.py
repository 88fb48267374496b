"""Watches canaries: versions that have a part of an alias's traffic before they have passed the gate. One that breaches is taken out."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from memserve.domain import GateReport, ModuleVersion, Tenant
from memserve.errors import AliasConflict, InvalidModule, MemserveError, NothingToRollBack, RegistryUnavailable
from memserve.gateway.access import Access
from memserve.gateway.modules import Modules
from memserve.gateway.pipeline import Pipeline
from memserve.memory.canaries import CanaryAlias
from memserve.policy.gate import failing

log = logging.getLogger("memserve.gateway.canary")

PRINCIPAL = "memserve canary watch"
LOOK_S = 0.5
# Of a canary's requests so many may fail because a worker would not answer with it, once there are enough to tell.
FAILED_SHARE_MAX = 0.05
REQUESTS_TO_TELL = 20


class CanaryWatch:
    """Runs on every gateway; for each alias one of them does the work."""

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        self._pipeline = pipeline
        self._access = access
        self._modules = Modules(pipeline)
        self._store = pipeline.modules.store

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            canaries: list[CanaryAlias] = []
            with contextlib.suppress(RegistryUnavailable):
                canaries = await self._pipeline.canaries.all()
            for canary in canaries:
                try:
                    if await self._pipeline.canaries.take_turn(canary, self._pipeline.settings.canary_interval_s):
                        await self._look_at(canary)
                except MemserveError as error:
                    log.warning("the canary of %s@%s could not be asked: %s", canary.name, canary.alias, error)
            await asyncio.sleep(LOOK_S)

    async def _look_at(self, canary: CanaryAlias) -> None:
        found = await self._store.resolve(canary.tenant, canary.name, alias=canary.alias)
        alias, versions = found if found is not None else (None, {})
        waiting = [version for version in versions.values() if version.gate is None or not version.gate.passed]
        if alias is None or len(alias.targets) < 2 or not waiting:
            await self._pipeline.canaries.remove(canary)
            return
        tenant = self._access.named(canary.tenant, PRINCIPAL)
        for version in waiting:
            breach = await self._breach(tenant, version)
            if not breach:
                continue
            try:
                await self._store.rollback(
                    canary.tenant,
                    PRINCIPAL,
                    canary.name,
                    canary.alias,
                    action="canary_rollback",
                    reason=f"{version.reference}: {breach}",
                    expected_revision=alias.revision,
                    leaving=version.version,
                )
                log.warning("%s@%s: the canary %s is taken out: %s", canary.name, canary.alias, version.reference, breach)
                self._pipeline.metrics.module_changes.labels("canary_rollback").inc()
            except (AliasConflict, NothingToRollBack) as error:
                log.warning("%s@%s: the canary %s breaches (%s), but: %s", canary.name, canary.alias, version.reference, breach, error)
            return

    async def _breach(self, tenant: Tenant, version: ModuleVersion) -> str:
        """What is wrong with the version, for a person; empty: nothing."""
        answered, failed = self._pipeline.answered[version.digest], self._pipeline.not_answered[version.digest]
        if answered + failed >= REQUESTS_TO_TELL and failed > FAILED_SHARE_MAX * (answered + failed):
            return f"{failed} of {answered + failed} tries to answer with it failed"
        try:
            async for event in self._modules.run_gate(tenant, version.module, version.version):
                if isinstance(event, GateReport) and not event.passed:
                    return failing(event.figures)
        except InvalidModule as error:
            return str(error)
        return ""
