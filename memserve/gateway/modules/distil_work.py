"""The work of one distillation: memories are chosen, a worker trains, the result is published and judged.

1. The memories are chosen with their ids and versions, and checked (`policy/modules/selection.py`).
2. A worker trains. Where it is lost, another call to a worker goes on from the checkpoint that is there.
3. The result is published as any version is, with its lineage, and faces the gate.
4. It stays a candidate, unless the tenant's policy has it promoted.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from memserve.domain import (
    Distillation,
    DistilPlan,
    DistilProgress,
    GateReport,
    ModuleVersion,
    Tenant,
)
from memserve.domain.lineage import MemoryVersionName, memories_of
from memserve.domain.worker_calls import (
    ComposedPiece,
    DistillationRequest,
    WorkerDied,
    WorkerFailure,
    WrongRequest,
)
from memserve.errors import InvalidField, InvalidModule, MemserveError, NoWorker
from memserve.gateway.layout import PromptLayout
from memserve.gateway.modules.chosen_memories import ChosenMemories
from memserve.gateway.modules.continuing import Continuing
from memserve.gateway.modules.distilled_version import job_of, names_of, recipe_text, sources_of
from memserve.gateway.modules.gatekeeper import Gatekeeper
from memserve.gateway.modules.lifecycle import ModuleLifecycle
from memserve.gateway.modules.trial import ModuleTrial
from memserve.gateway.workers.picking import least_loaded, workers_for
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.memory.answers.store import module_key
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.memory import ParametricMemory, Publication
from memserve.memory.modules.registry.distillations import BEGUN
from memserve.memory.texts.records import memory_key
from memserve.policy.modules.references import LIVE
from memserve.policy.modules.selection import Selection
from memserve.policy.modules.self_study.asking import probe_sets
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.readings import Reading, readings_of
from memserve.policy.modules.self_study.study import Study

EXAMPLES = 8
LOSSES_MAX = 3
"""Of workers that are lost while they train."""
WAIT_FOR_WORKER_S = 300.0
"""How long a job goes without any word of a worker."""
ASK_AGAIN_S = 2.0
NEWEST = 4
"""Versions among which one is looked for that the job has published before."""


@dataclass(slots=True)
class Standing:
    """How far a job is."""

    plan: DistilPlan | None = None
    progress: DistilProgress = BEGUN
    version: int = 0
    """That it has published. 0: none yet."""
    memory_keys: tuple[str, ...] = ()
    """Of the memories that it has read, of their namespaces, of those that its parent was made of, and of its
    parent's content."""
    was_erased: bool = False
    """One of these memories was erased meanwhile."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job has made."""

    version: ModuleVersion
    promoted_to: str = ""
    """The alias. Empty: none."""
    not_promoted: str = ""
    """Why the policy could not have it promoted. Empty: it was, or the policy does not say so."""


class DistilWork:
    """Does the work. `distillation.py` keeps the jobs."""

    def __init__(
        self,
        memory: ParametricMemory,
        memories: ChosenMemories,
        pool: WorkerPool,
        trial: ModuleTrial,
        gatekeeper: Gatekeeper,
        lifecycle: ModuleLifecycle,
        layout: PromptLayout,
        promotes: Callable[[str], bool],
        erasures: KeptErasures,
    ) -> None:
        """promotes: whether the policy of a tenant has versions promoted that have passed the gate."""
        self._memory = memory
        self._memories = memories
        self._pool = pool
        self._trial = trial
        self._gatekeeper = gatekeeper
        self._lifecycle = lifecycle
        self._layout = layout
        self._promotes = promotes
        self._erasures = erasures
        self._continuing = Continuing(memory, memories)

    async def plan(self, tenant: Tenant, asked: Distillation) -> DistilPlan:
        """What would be trained on. Raises InvalidField, NamespaceNotFound, MemoryNotFound.

        What would be refused of a version that is trained on is refused: ModuleNotFound, OtherBase too.
        """
        selection = await self._memories.select(tenant, asked.choice, time.time())
        sources_of(selection, await self._continuing.parent(tenant, asked))
        return await self._memories.computed(tenant, partial(plan_of, selection, asked))

    async def run(
        self,
        tenant: Tenant,
        asked: Distillation,
        job_id: str,
        standing: Standing,
        hold: Callable[[], Awaitable[None]],
    ) -> Outcome:
        """Do all of it, or what is left of it.

        standing: says how far it is. hold: raises where the job is no longer this gateway's.
        """
        version = await self.published(tenant, asked.name, job_id)
        if version is None:
            version = await self._made(tenant, asked, job_id, standing, hold)
        standing.version = version.version
        await hold()
        version = await self._judged(tenant, version, standing)
        return await self._by_policy(tenant, version)

    async def published(self, tenant: Tenant, module: str, job_id: str) -> ModuleVersion | None:
        """The version that the job has published: before its gateway was lost, or as it was ended."""
        if await self._memory.store.module(tenant.name, module) is None:
            return None
        newest, _ = await self._memory.store.versions(tenant.name, module, limit=NEWEST)
        return next((version for version in newest if job_of(version) == job_id), None)

    async def _made(
        self,
        tenant: Tenant,
        asked: Distillation,
        job_id: str,
        standing: Standing,
        hold: Callable[[], Awaitable[None]],
    ) -> ModuleVersion:
        begun_s = time.time()
        selection = await self._memories.select(tenant, asked.choice, begun_s)
        standing.plan = await self._memories.computed(tenant, partial(plan_of, selection, asked))
        standing.memory_keys = _keys_of(tenant.name, selection)
        parent = await self._continuing.parent(tenant, asked)
        if parent:
            standing.memory_keys += _keys(tenant.name, memories_of(parent.version.sources))
            standing.memory_keys += (module_key(parent.version.digest),)
        sources = sources_of(selection, parent)
        recipe = replace(asked.recipe, rank=max(asked.recipe.rank, parent.version.rank)) if parent else None
        request = DistillationRequest(
            kind=asked.kind,
            texts=tuple(memory.text for memory in selection.memories),
            recipe=recipe or asked.recipe,
            seed=asked.seed,
            budget_s=asked.budget_s,
            recall_template=self._layout.recall.source if self._layout.recall.origin == "setting" else "",
            parent_digest=parent.version.digest if parent else "",
            old_texts=parent.texts if parent else (),
            memory_keys=standing.memory_keys,
        )
        with tempfile.TemporaryDirectory(prefix="memserve-distil-") as scratch:
            folder, report = await self._trained(tenant, request, Path(scratch), standing)
            if parent:
                await self._continuing.ask_what_it_knew(tenant, parent, folder)
            publication = Publication(
                name=asked.name,
                kind=asked.kind,
                files=(),
                sources=sources,
                recipe=recipe_text(asked, job_id, selection, report, parent),
                notes=asked.notes,
                parents=(parent.version.digest,) if parent else (),
            )
            await hold()
            await self._check_erased(tenant, standing, begun_s)
            version = await self._memory.publish(
                tenant, publication, folder, partial(self._trial.moves_logits, tenant.name)
            )
            standing.version = version.version
            # An erasure that came while it was published has not seen it, or has marked what it erases.
            await self._check_erased(tenant, standing, begun_s)
            return version

    async def _check_erased(self, tenant: Tenant, standing: Standing, begun_s: float) -> None:
        """Raises InvalidField where a memory was erased since then."""
        if await self._erasures.erased_since(tenant.name, standing.memory_keys, begun_s):
            raise erased_meanwhile()

    async def _trained(
        self, tenant: Tenant, request: DistillationRequest, scratch: Path, standing: Standing
    ) -> tuple[Path, dict[str, object]]:
        """Returns a folder within `scratch` with the module's files, and the worker's report."""
        losses = tries = 0
        refused: set[str] = set()
        heard_s = time.monotonic()
        while True:
            folder = scratch / f"{tries}"
            tries += 1
            await self._memory.files.run(tenant.name, folder.mkdir)
            try:
                worker = self._worker(tenant, refused)
                refused.add(worker.lease.worker_id)
                with worker.calling() as calls:
                    async with aclosing(calls.distil(request)) as events:
                        async for event in events:
                            heard_s = time.monotonic()
                            refused.discard(worker.lease.worker_id)
                            if isinstance(event, DistilProgress):
                                standing.progress = event
                            elif isinstance(event, ComposedPiece):
                                append = partial(_append, folder / Path(event.file_name).name, event.content)
                                await self._memory.files.run(tenant.name, append)
                            else:
                                report: dict[str, object] = json.loads(event.report)
                                return folder, report
                lost: WorkerFailure | NoWorker = NoWorker("the worker ended its stream without a result")
                losses += 1
            except WrongRequest as error:
                raise InvalidModule("distillation", error.detail) from None
            except WorkerDied as error:
                lost = error
                losses += 1
            except (WorkerFailure, NoWorker) as error:
                lost = error
            if losses > LOSSES_MAX or time.monotonic() - heard_s > WAIT_FOR_WORKER_S:
                raise lost if isinstance(lost, NoWorker) else NoWorker(lost.detail)
            # A worker that starts again, or that distils something else, is there in a while.
            standing.progress = replace(standing.progress, stage="waiting")
            await asyncio.sleep(ASK_AGAIN_S)

    def _worker(self, tenant: Tenant, refused: set[str]) -> PooledWorker:
        """The least loaded of those that have not refused in this round. Raises NoWorker.

        A worker that distils something else has no load of it: it would be the least loaded for ever.
        """
        workers = workers_for(self._pool, tenant.name)
        if not (others := [each for each in workers if each.lease.worker_id not in refused]):
            refused.clear()
        return least_loaded(others or workers)

    async def _judged(self, tenant: Tenant, version: ModuleVersion, standing: Standing) -> ModuleVersion:
        """With its gate report."""
        if version.gate is not None:
            return version
        waited_from_s = time.monotonic()
        while True:
            try:
                async with aclosing(self._gatekeeper.run(tenant, version.module, version.version)) as events:
                    async for event in events:
                        if isinstance(event, GateReport):
                            return replace(version, gate=event)
                        standing.progress = replace(
                            standing.progress, stage="gate", done=event.done, total=event.total
                        )
                raise NoWorker("the gate ended without a report")
            except NoWorker:
                if time.monotonic() - waited_from_s > WAIT_FOR_WORKER_S:
                    raise
            standing.progress = replace(standing.progress, stage="waiting")
            await asyncio.sleep(ASK_AGAIN_S)

    async def _by_policy(self, tenant: Tenant, version: ModuleVersion) -> Outcome:
        if not self._promotes(tenant.name) or version.gate is None or not version.gate.passed:
            return Outcome(version)
        reason = "the policy promote_distilled names the tenant, and the version has passed the gate"
        try:
            named = memories_of(version.sources)
            unchanged = dict(await self._memories.unchanged(tenant, named, time.time()))
            if changed := [each for each in named if each not in unchanged]:
                told = f"{len(changed)} of its memories have changed since, the first is {changed[0]}"
                return Outcome(version, not_promoted=f"not promoted: {told}")
            promotion = self._lifecycle.promote(
                tenant,
                version.module,
                version.version,
                LIVE,
                expected_revision=None,
                force=False,
                reason=reason,
            )
            async with aclosing(promotion) as events:
                async for _ in events:
                    pass
        except MemserveError as error:
            return Outcome(version, not_promoted=f"not promoted: {error}")
        return Outcome(version, promoted_to=LIVE)


def plan_of(selection: Selection, asked: Distillation) -> DistilPlan:
    """Raises InvalidField when no memory states a fact."""
    readings: dict[tuple[str, str], Reading] = {}
    for memory in selection.memories:
        for reading in readings_of(memory.text):
            readings.setdefault(reading.key, reading)
    if not readings:
        raise InvalidField("memories", "none states a fact that can be asked for by itself")
    study = Study(list(readings.values()), phrasings=asked.recipe.phrasings or None)
    facts = study.facts()
    draw = Draw(random.Random(f"{asked.seed}:plan").random)
    shown = draw.sample(facts, EXAMPLES)
    return DistilPlan(
        memories=len(selection.memories),
        facts=len(readings),
        questions=len(facts),
        left_out=selection.left_out,
        examples=tuple(f"{lesson.question} {lesson.answer}" for lesson in shown),
        probes=sum(len(each.probes) for each in probe_sets(study, draw, 1.0)),
    )


def erased_meanwhile() -> InvalidField:
    return InvalidField("memories", "one of them was erased while it was distilled; begin again")


def _keys_of(tenant: str, selection: Selection) -> tuple[str, ...]:
    return _keys(tenant, names_of(selection))


def _keys(tenant: str, memories: Iterable[MemoryVersionName]) -> tuple[str, ...]:
    """Of memories and of their namespaces."""
    names = [(each.namespace, each.memory_id) for each in memories]
    names += [(namespace, "") for namespace in dict.fromkeys(namespace for namespace, _ in names)]
    return tuple(memory_key(tenant, namespace, memory_id) for namespace, memory_id in names)


def _append(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)
