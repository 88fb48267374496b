"""Carries the ladder's decisions out: prefixes warmed and left, modules distilled, loaded and taken down."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import aclosing

from memserve.domain import DistilChoice, Distillation, ModuleVersion, Tenant
from memserve.domain.ladder import WEIGHTS, LadderDecision, Rung
from memserve.errors import MemserveError, NoWorker
from memserve.gateway.ladder.record import LadderRecord
from memserve.gateway.ladder.standing import LadderModule, Standing
from memserve.gateway.modules.distillation import ModuleDistillation
from memserve.gateway.modules.placement import SWAP_TIMEOUT_S, ModulePlacement
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.policy.modules.rung_costs import KIND_OF_RUNG
from memserve.processes.supervised import Background

log = logging.getLogger("memserve.gateway.ladder")

NOTES = "made by the ladder"
NAME_MAX = 64
REASON_MAX = 1000


def module_name(namespace: str, rung: Rung) -> str:
    """Of what is distilled of a namespace. No two namespaces have one."""
    name = f"{namespace}-{rung}"
    if len(name) <= NAME_MAX:
        return name
    digest = hashlib.sha256(namespace.encode()).hexdigest()[:8]
    return f"{namespace[: NAME_MAX - len(digest) - len(rung) - 2]}-{digest}-{rung}"


class LadderHands:
    """Of any tenant."""

    def __init__(
        self,
        memory: ParametricMemory,
        placement: ModulePlacement,
        distillation: ModuleDistillation,
        background: Background,
    ) -> None:
        self._memory = memory
        self._store = memory.store
        self._placement = placement
        self._distillation = distillation
        self._background = background
        self._watched: set[tuple[str, str, Rung]] = set()
        """Tenants, namespaces and rungs whose distillation is followed here."""
        self._failed: dict[tuple[str, str, Rung], MemserveError] = {}

    async def carry_out(
        self, tenant: Tenant, standing: Standing, decision: LadderDecision, record: LadderRecord
    ) -> str:
        """Returns what was done, for a person. Raises MemserveError for what could not be."""
        done: list[str] = []
        if decision.from_rung in WEIGHTS and decision.to_rung.height < decision.from_rung.height:
            for module in standing.modules:
                if module.misleads or (module.is_live and module.rung is decision.from_rung):
                    done.append(await self._take_down(tenant, standing, module, decision.reason))
        if decision.to_rung in WEIGHTS:
            done.append(await self._put_up(tenant, standing, decision.to_rung, record))
        if standing.has_pinned:
            done.append(self._warm(decision, record))
        return "; ".join(filter(None, done))

    def has_failed(self, tenant: str) -> bool:
        """Whether a distillation that was begun here has come to nothing, and is not told yet."""
        return any(key[0] == tenant for key in self._failed)

    def failures(self, tenant: str) -> dict[tuple[str, Rung], MemserveError]:
        """Why distillations that were begun here came to nothing, by namespace and rung. Told once."""
        ended = [key for key in self._failed if key[0] == tenant]
        return {(namespace, rung): self._failed.pop((of, namespace, rung)) for of, namespace, rung in ended}

    def _warm(self, decision: LadderDecision, record: LadderRecord) -> str:
        """The gateways follow the record."""
        name = decision.subject
        cooled = set(record.cooled)
        if decision.to_rung is Rung.TEXT and name not in cooled:
            record.cooled = tuple(sorted(cooled | {name}))
            return "its pinned prefix is not kept warm"
        if decision.to_rung is not Rung.TEXT and name in cooled:
            record.cooled = tuple(sorted(cooled - {name}))
            return "its pinned prefix is kept warm"
        return ""

    async def _take_down(self, tenant: Tenant, standing: Standing, module: LadderModule, reason: str) -> str:
        """The alias first: no request may begin with what is outdated."""
        version, done = module.version, []
        if module.outdated:
            done.append(await self._lead_away(tenant, standing, version, reason))
        if module.is_preloaded:
            await self._store.unload(tenant.name, tenant.principal, version.module, version.version)
        await self._placement.unload(version, "")
        done.append(f"{version.reference} is unloaded")
        return ", ".join(filter(None, done))

    async def _lead_away(
        self, tenant: Tenant, standing: Standing, version: ModuleVersion, reason: str
    ) -> str:
        """Take the version out of its aliases; where nothing of now is left there, drop the alias. What the
        alias was before may be older still.
        """
        outdated = {
            each.version.version
            for each in standing.modules
            if each.outdated and each.version.module == version.module
        }
        module = await self._store.module(tenant.name, version.module)
        done = []
        for alias in module.aliases if module is not None else ():
            targets = {share.version for share in alias.targets}
            ref = AliasRef(tenant.name, version.module, alias.name)
            change = Change(tenant.principal, reason[:REASON_MAX])
            if version.version not in targets:
                continue
            if targets <= outdated:
                await self._store.drop_alias(ref, change)
                done.append(f"{version.module}@{alias.name} is dropped")
            else:
                await self._store.take_out(ref, version.version, change)
                done.append(f"{version.reference} is taken out of {version.module}@{alias.name}")
        return ", ".join(done)

    async def _put_up(self, tenant: Tenant, standing: Standing, rung: Rung, record: LadderRecord) -> str:
        current = [module.version for module in standing.live(rung) if not module.outdated]
        if current:
            version = current[0]
            await self._store.preload(tenant.name, tenant.principal, version.module, version.version)
            await self._placement.load(version, pin=True, timeout_s=SWAP_TIMEOUT_S)
            return f"{version.reference} is loaded ahead"
        namespace = standing.subject.name
        name = next(
            (module.version.module for module in standing.modules if module.rung is rung),
            module_name(namespace, rung),
        )
        distillation = Distillation(name, DistilChoice((namespace,)), KIND_OF_RUNG[rung], notes=NOTES)
        # What would be refused is refused now.
        await self._distillation.plan(tenant, distillation)
        begun = record.namespaces[namespace].begun
        again = rung in begun
        if (tenant.name, namespace, rung) in self._watched:
            return f"the distillation of {name} goes on"
        if self._background.is_full:
            raise NoWorker("this gateway has too much under way; the ladder distils later")
        begun.setdefault(rung, time.time())
        self._watched.add((tenant.name, namespace, rung))
        self._background.begin("the ladder distils", self._distil(tenant, namespace, rung, distillation))
        return f"the distillation of {name} {'goes on' if again else 'has begun'}"

    async def _distil(self, tenant: Tenant, namespace: str, rung: Rung, distillation: Distillation) -> None:
        """An equal job that is under way is watched."""
        try:
            async with aclosing(self._distillation.distil(tenant, distillation)) as events:
                async for event in events:
                    if isinstance(event, ModuleVersion):
                        log.info("%s is a candidate of the ladder", event.reference)
        except MemserveError as error:
            self._failed[(tenant.name, namespace, rung)] = error
        finally:
            self._watched.discard((tenant.name, namespace, rung))
