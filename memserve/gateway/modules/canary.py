"""Watches canaries, and takes a canary out when it breaches.

A canary is a version that has a part of an alias's traffic and had not passed the gate when it got that part.
"""

from __future__ import annotations

import logging

from memserve.domain import ModuleVersion, Tenant
from memserve.errors import AliasConflict, InvalidModule, MemserveError, NothingToRollBack
from memserve.gateway.access.callers import Access
from memserve.gateway.modules.gatekeeper import Gatekeeper
from memserve.gateway.outcomes import OutcomeCounts, Outcomes
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.registry.records import CanaryAlias
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.modules.gate import failing

log = logging.getLogger("memserve.gateway.modules.canary")

PRINCIPAL = "memserve canary watch"
LOOK_S = 0.5
# A canary breaches when workers refuse more than this share of its tries. It takes REQUESTS_TO_TELL tries to
# tell.
FAILED_SHARE_MAX = 0.05
REQUESTS_TO_TELL = 20


class CanaryWatch:
    """Watches the canaries of all tenants, on every gateway.

    In each interval, one of the gateways asks the probes of an alias's canaries. Every gateway adds the
    failures that it has seen to those of the others, in the registry, and judges all of them. Of two that
    find a breach at once, one changes the alias.
    """

    def __init__(
        self,
        memory: ParametricMemory,
        gatekeeper: Gatekeeper,
        outcomes: OutcomeCounts,
        access: Access,
        metrics: GatewayMetrics,
        interval_s: float,
    ) -> None:
        """interval_s: the time between two runs of a canary's probes."""
        self._memory = memory
        self._store = memory.store
        self._gatekeeper = gatekeeper
        self._outcomes = outcomes
        self._access = access
        self._metrics = metrics
        self._interval_s = interval_s
        # This gateway's counts of a canary that the registry has already, by its alias at one revision and
        # its number. It counts from when this gateway first saw the canary.
        self._before: dict[tuple[CanaryAlias, int], Outcomes] = {}

    async def look(self) -> None:
        """Look once at every alias that has canaries. The step of a loop."""
        try:
            canaries = await self._store.canaries()
        except MemserveError as error:
            log.warning("the canaries are looked at later: %s", error)
            return
        self._before = {key: counted for key, counted in self._before.items() if key[0] in canaries}
        for canary in canaries:
            await self._look_at(canary)

    async def _look_at(self, canary: CanaryAlias) -> None:
        try:
            asks = await self._store.take_turn(canary, self._interval_s)
            for number in canary.versions:
                version = await self._memory.version(canary.tenant, canary.name, number)
                breach = await self._failures(canary, version)
                if not breach and asks:
                    breach = await self._breach(self._access.named(canary.tenant, PRINCIPAL), version)
                if breach:
                    await self._take_out(canary, version, breach)
                    return
        except MemserveError as error:
            log.warning("the canary of %s@%s could not be looked at: %s", canary.name, canary.alias, error)

    async def _take_out(self, canary: CanaryAlias, version: ModuleVersion, breach: str) -> None:
        try:
            await self._store.take_out(
                AliasRef(canary.tenant, canary.name, canary.alias),
                version.version,
                Change(PRINCIPAL, f"{version.reference}: {breach}", canary.revision),
            )
        except (AliasConflict, NothingToRollBack) as error:
            log.warning(
                "%s@%s: the canary %s breaches (%s), but: %s",
                canary.name,
                canary.alias,
                version.reference,
                breach,
                error,
            )
            return
        log.warning(
            "%s@%s: the canary %s is taken out: %s", canary.name, canary.alias, version.reference, breach
        )
        self._metrics.module_changes.labels("canary_rollback").inc()

    async def _failures(self, canary: CanaryAlias, version: ModuleVersion) -> str:
        """What went wrong with the canary's requests since the split, for a person. Empty: nothing."""
        now, seen = self._outcomes.of(version.digest), (canary, version.version)
        since = now.since(self._before.get(seen, now))
        # Where the registry does not answer, what was seen in this half second may not be counted. It is not
        # counted twice: a canary must not be taken out for failures that were none.
        self._before[seen] = now
        answered, refused = await self._store.count_outcomes(
            canary, version.version, since.answered, since.refused
        )
        tries = answered + refused
        if tries >= REQUESTS_TO_TELL and refused > FAILED_SHARE_MAX * tries:
            return f"{refused} of {tries} tries to answer with it failed"
        return ""

    async def _breach(self, tenant: Tenant, version: ModuleVersion) -> str:
        """What the version's probes show to be wrong, for a person. Empty: nothing."""
        try:
            report = await self._gatekeeper.ask_canary(tenant, version)
        except InvalidModule as error:
            return str(error)
        return "" if report.passed else failing(report.figures)
