"""Distillations as jobs: begun, watched, taken up, stopped and listed. `distil_work.py` does their work.

A job is kept in the registry, and goes on when the call that began it ends. A gateway holds the jobs that it
works on. Where a gateway is killed, another one takes its jobs up, or the same one after its restart. They go
on from the worker's checkpoint. A job that fails or is stopped leaves no version, and the audit has why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memserve.domain import (
    Distillation,
    DistillationJob,
    DistillationState,
    DistilPlan,
    DistilProgress,
    ModuleKind,
    ModuleVersion,
    Tenant,
)
from memserve.errors import (
    DistillationFailed,
    InvalidField,
    MemserveError,
    ModuleNotFound,
    NoWorker,
    PicklableError,
    RegistryUnavailable,
)
from memserve.gateway.modules import failures
from memserve.gateway.modules.deletion import ModuleDeletion
from memserve.gateway.modules.distil_work import DistilWork, Outcome, Standing, erased_meanwhile
from memserve.gateway.modules.distilled_version import job_of
from memserve.memory.modules.kinds.cartridge import cartridge_refusal
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.registry.distillations import HELD, HeldJob, KeptDistillation
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.modules.recipes import check_budget, check_recipe
from memserve.processes.supervised import Background
from memserve.registry.client import patiently

log = logging.getLogger("memserve.gateway.modules.distillation")

TELL_EVERY_S = 0.5
HOLD_EVERY_S = 1.0
LOOK_S = 2.0
"""How often a gateway looks for jobs that nobody holds."""
REGISTRY_AGAIN_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""When the work is taken up after the registry was away."""
END_TRIES, END_AGAIN_S = 30, 2.0
"""Of a registry that does not answer at a job's end."""
JOBS_MAX = 16
"""Under way at a gateway."""
TAKEN_UP_MAX = 16
"""A job that outlives no gateway is not taken up for ever."""
LEFT_OUT_KEPT = 64
"""Of the memories that are left out, those that the plan of a job names."""
KINDS = (ModuleKind.LORA, ModuleKind.CARTRIDGE)


@dataclass(frozen=True, slots=True)
class DistillationStopped:
    """Somebody has stopped the job."""


Event = DistilPlan | DistilProgress | ModuleVersion | DistillationStopped


class NotHeld(PicklableError):
    """The job is no longer this gateway's: it was stopped, or another gateway has it."""


class ModuleDistillation:
    """The distillations of all tenants, and those that this gateway works on."""

    def __init__(
        self,
        memory: ParametricMemory,
        work: DistilWork,
        deletion: ModuleDeletion,
        named: Callable[[str, str], Tenant],
        background: Background,
        metrics: GatewayMetrics,
    ) -> None:
        """named: a tenant, with who began the job."""
        self._memory = memory
        self._store = memory.store
        self._work = work
        self._deletion = deletion
        self._named = named
        self._background = background
        self._metrics = metrics
        self._gateway = uuid.uuid4().hex
        self._working: set[str] = set()
        # By the id of a job: whose it is, how far it is, and the work itself.
        self._works: dict[str, tuple[str, Standing, asyncio.Task[Outcome | None]]] = {}

    async def of_usual_kind(self, tenant: Tenant, asked: Distillation) -> Distillation:
        """A distillation whose caller has named no kind. Raises RegistryUnavailable.

        It is the module's own kind, and a LoRA where one is trained on. A new module becomes a cartridge: on
        both models that were measured (docs/limits.md) it met more of the gate's bars than a LoRA of the same
        memories. Where the model takes no cartridge it becomes a LoRA.
        """
        if asked.from_reference:
            return replace(asked, kind=ModuleKind.LORA)
        module = await self._store.module(tenant.name, asked.name)
        if module is not None:
            return replace(asked, kind=module.kind)
        takes_none = bool(cartridge_refusal(self._memory.base))
        return replace(asked, kind=ModuleKind.LORA if takes_none else ModuleKind.CARTRIDGE)

    async def plan(self, tenant: Tenant, asked: Distillation) -> DistilPlan:
        """What would be trained on. Raises InvalidField, NamespaceNotFound, MemoryNotFound."""
        await self._check(tenant, asked)
        return await self._work.plan(tenant, asked)

    async def distil(self, tenant: Tenant, asked: Distillation) -> AsyncGenerator[Event, None]:
        """Begin the job, or watch the one that is under way. The version comes last, with its gate report.

        Raises InvalidField, and what the job has failed with: InvalidModule, NamespaceNotFound,
        MemoryNotFound, NoWorker, DistillationFailed.
        """
        if asked.from_reference:
            # What an alias means now, for all who take the job up.
            parent = await self._memory.heaviest("from_reference", tenant.name, asked.from_reference)
            asked = replace(asked, from_reference=parent.reference)
        kept = await self._begun(tenant, asked)
        job_id, told_plan = kept.job.job_id, False
        while True:
            if kept.plan is not None and not told_plan:
                told_plan = True
                yield kept.plan
            if not kept.is_running:
                break
            yield kept.job.progress
            await asyncio.sleep(TELL_EVERY_S)
            # The job goes on while the registry is away.
            kept = await patiently(partial(self._again, tenant.name, asked.name, job_id))
        if kept.job.state is DistillationState.STOPPED:
            yield DistillationStopped()
        elif kept.job.state is DistillationState.DONE:
            yield await self._memory.version(tenant.name, asked.name, kept.job.version)
        else:
            raise failures.restored(kept.failure, asked.name, kept.job.reason)

    async def stop(self, tenant: Tenant, name: str) -> None:
        """Stop the job of a module, whichever gateway works on it. Its checkpoint stays.

        Raises InvalidField where there is none.
        """
        kept = await self._store.stop_distillation(tenant.name, tenant.principal, name)
        await self._remove(tenant, name, kept.job.job_id, kept.job.version)

    def stop_those_of(self, tenant: str, keys: Sequence[str]) -> int:
        """Stop the jobs of this gateway that have read one of these memories. Returns how many they were."""
        erased, stopped = set(keys), 0
        for owner, standing, work in self._works.values():
            if owner == tenant and not erased.isdisjoint(standing.memory_keys) and work.cancel():
                standing.was_erased = True
                stopped += 1
        return stopped

    async def jobs(self, tenant: Tenant) -> list[DistillationJob]:
        """The newest of each module: under way, or ended in the last days."""
        return [kept.job for kept in await self._store.distillations(tenant.name)]

    async def look(self) -> None:
        """Take jobs up that no gateway works on. The step of a loop."""
        room = JOBS_MAX - len(self._working)
        if room <= 0:
            return
        try:
            taken = await self._store.take_distillations(self._gateway, room)
        except MemserveError as error:
            log.warning("distillations are looked at later: %s", error)
            return
        for kept in taken:
            if kept.job.job_id in self._working:
                # The registry was away for longer than a hold. The work goes on, and is held again.
                continue
            log.info("distilling %s is taken up for the %d. time", kept.job.module, kept.job.taken_up)
            self._start(kept)

    async def _begun(self, tenant: Tenant, asked: Distillation) -> KeptDistillation:
        known = await self._store.distillation(tenant.name, asked.name)
        if known is None or not known.is_running:
            await self._check(tenant, asked)
            if len(self._working) >= JOBS_MAX:
                raise NoWorker(f"{JOBS_MAX} distillations are under way at this gateway; ask again later")
            held = HeldJob(tenant.name, tenant.principal, asked.name, uuid.uuid4().hex, self._gateway)
            known = await self._store.begin_distillation(held, asked)
            if known.job.job_id == held.job_id:
                self._start(known)
                return known
        if known.asked != asked:
            raise InvalidField(
                "name", f"another distillation of {asked.name} is under way; cancel that first"
            )
        return known

    async def _check(self, tenant: Tenant, asked: Distillation) -> None:
        if asked.kind not in KINDS:
            raise InvalidField("kind", f"{asked.kind} cannot be distilled; {', '.join(KINDS)} can")
        refusal = cartridge_refusal(self._memory.base) if asked.kind == ModuleKind.CARTRIDGE else ""
        if refusal:
            raise InvalidField("kind", f"{refusal}; a {ModuleKind.LORA} can be distilled")
        check_recipe(asked.recipe)
        check_budget(asked.budget_s)
        most = self._memory.base.max_rank
        if asked.kind == ModuleKind.LORA and asked.recipe.rank > most:
            raise InvalidField("recipe.rank", f"at most {most} (setting max_lora_rank)")
        await self._memory.check_new_version("name", tenant.name, asked.name, asked.kind)

    async def _again(self, tenant: str, module: str, job_id: str) -> KeptDistillation:
        kept = await self._store.distillation(tenant, module)
        if kept is None or kept.job.job_id != job_id:
            raise DistillationFailed(module, "it has ended, and another one has taken its place")
        return kept

    def _start(self, kept: KeptDistillation) -> None:
        job = kept.job
        held = HeldJob(kept.tenant, job.principal, job.module, job.job_id, self._gateway)
        self._working.add(job.job_id)
        task = self._background.begin(f"keeping the distillation of {job.module}", self._keep(held, kept))
        task.add_done_callback(lambda _: self._working.discard(job.job_id))

    async def _keep(self, held: HeldJob, kept: KeptDistillation) -> None:
        """Have the work done, and hold the job meanwhile."""
        tenant = self._named(held.tenant, held.principal)
        standing = Standing(plan=kept.plan, progress=kept.job.progress, version=kept.job.version)
        if kept.job.taken_up > TAKEN_UP_MAX:
            reason = f"given up: {TAKEN_UP_MAX} gateways have ended while they worked on it"
            await self._failed(held, tenant, standing, reason, "")
            return
        work = self._background.begin(
            f"distilling {held.module}",
            self._worked(tenant, kept.asked, held, standing),
        )
        self._works[held.job_id] = held.tenant, standing, work
        try:
            await self._hold_until_done(held, standing, work)
        except asyncio.CancelledError:
            # This gateway closes. Another one, or this one after its restart, goes on at once.
            work.cancel()
            await asyncio.wait([work])
            with contextlib.suppress(MemserveError):
                await self._store.hold_distillation(held, seconds=0)
            raise
        finally:
            del self._works[held.job_id]
        error = None if work.cancelled() else work.exception()
        outcome = None if work.cancelled() or error else work.result()
        if outcome is None and standing.was_erased:
            error = erased_meanwhile()
        if outcome is not None:
            await self._done(held, outcome)
        elif error is None:
            await self._let_go(held, tenant, standing)
        elif isinstance(error, MemserveError):
            await self._failed(held, tenant, standing, str(error), failures.kept(error))
        else:
            reason = f"memserve itself has failed ({type(error).__name__}); its log has more"
            await self._failed(held, tenant, standing, reason, "")

    async def _worked(
        self, tenant: Tenant, asked: Distillation, held: HeldJob, standing: Standing
    ) -> Outcome | None:
        """None: the job is no longer this gateway's.

        Where the registry was away the work is done again from where it stands: what is trained is in the
        worker's checkpoint, and what is published is found by the job's id.
        """
        run = partial(
            self._work.run, tenant, asked, held.job_id, standing, partial(self._hold, held, standing)
        )
        try:
            for wait_s in REGISTRY_AGAIN_S:
                try:
                    return await run()
                except RegistryUnavailable as error:
                    log.warning("distilling %s goes on in %g s: %s", held.module, wait_s, error)
                    await asyncio.sleep(wait_s)
            return await run()
        except NotHeld:
            return None

    async def _hold_until_done(
        self, held: HeldJob, standing: Standing, work: asyncio.Task[Outcome | None]
    ) -> None:
        while not work.done():
            await asyncio.wait([work], timeout=HOLD_EVERY_S)
            try:
                await self._hold(held, standing)
            except NotHeld:
                work.cancel()
                await asyncio.wait([work])
            except MemserveError as error:
                # Where that lasts, the hold runs out, and another gateway takes the job up.
                log.warning("the distillation of %s could not be held: %s", held.module, error)

    async def _hold(self, held: HeldJob, standing: Standing) -> None:
        """Raises NotHeld."""
        plan = standing.plan
        if plan is not None:
            plan = replace(plan, left_out=plan.left_out[:LEFT_OUT_KEPT])
        state = await self._store.hold_distillation(
            held, plan=plan, progress=standing.progress, version=standing.version
        )
        if state != HELD:
            raise NotHeld(f"the distillation of {held.module} is {state}")

    async def _done(self, held: HeldJob, outcome: Outcome) -> None:
        version = outcome.version
        told: dict[str, object] = {
            "version": version.version,
            "passed": None if version.gate is None else version.gate.passed,
            "promoted_to": outcome.promoted_to,
            "reason": outcome.not_promoted,
        }
        if await self._end(held, DistillationState.DONE, told):
            self._metrics.module_changes.labels("distil").inc()
        else:
            await self._let_go(
                held, self._named(held.tenant, held.principal), Standing(version=version.version)
            )

    async def _failed(
        self, held: HeldJob, tenant: Tenant, standing: Standing, reason: str, failure: str
    ) -> None:
        left = await self._remove(tenant, held.module, held.job_id, standing.version)
        await self._end(held, DistillationState.FAILED, {"reason": reason + left}, failure)

    async def _let_go(self, held: HeldJob, tenant: Tenant, standing: Standing) -> None:
        """Somebody has stopped the job, or another gateway has it. What a stopped one has made goes."""
        try:
            kept = await self._store.distillation(held.tenant, held.module)
        except MemserveError as error:
            log.warning("what the distillation of %s has left stays: %s", held.module, error)
            return
        if kept is None or kept.job.job_id != held.job_id:
            return
        if kept.job.state in (DistillationState.STOPPED, DistillationState.FAILED):
            await self._remove(tenant, held.module, held.job_id, standing.version)

    async def _remove(self, tenant: Tenant, module: str, job_id: str, number: int) -> str:
        """Delete the version that the job has made, if it has. Returns what stays, for a person.

        number: 0 where it is not known. The job may have been ended while it published.
        """
        try:
            if not number:
                made = await self._work.published(tenant, module, job_id)
                number = made.version if made is not None else 0
            if not number:
                return ""
            # Equal content was there before, perhaps.
            if job_of(await self._memory.version(tenant.name, module, number)) != job_id:
                return ""
            await self._deletion.delete(tenant, module, number)
        except ModuleNotFound:
            return ""
        except MemserveError as error:
            log.warning("%s@%d of an ended distillation stays: %s", module, number, error)
            return f"; {module}@{number} stays: {error}" if number else ""
        return ""

    async def _end(
        self, held: HeldJob, state: DistillationState, told: dict[str, object], failure: str = ""
    ) -> bool:
        """Returns whether the job was under way until now."""
        for _ in range(END_TRIES):
            try:
                return await self._store.end_distillation(held, state, told, failure)
            except MemserveError as error:
                log.warning("the end of distilling %s is not written yet: %s", held.module, error)
                await asyncio.sleep(END_AGAIN_S)
        return True
