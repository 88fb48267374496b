"""Distils memories into a candidate version of a module, on a worker's Ray beside serving.

1. The memories are chosen with their ids and versions, and checked (`policy/modules/selection.py`).
2. A worker trains. Where it is lost, another call to a worker goes on from the checkpoint that is there.
3. The result is published as any version is, with its lineage, and faces the gate. Nothing is promoted.

A job goes on when the call that began it ends. It ends with its gateway: an equal call then goes on from the
worker's checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from memserve.domain import (
    DEFAULT_RECIPE,
    DistilChoice,
    DistilPlan,
    DistilProgress,
    GateReport,
    ModuleKind,
    ModuleVersion,
    Recipe,
    Tenant,
)
from memserve.domain.worker_calls import (
    ComposedPiece,
    DistillationRequest,
    WorkerDied,
    WorkerFailure,
    WrongRequest,
)
from memserve.errors import InvalidField, InvalidModule, NoWorker
from memserve.gateway.layout import PromptLayout
from memserve.gateway.modules.chosen_memories import ChosenMemories
from memserve.gateway.modules.gatekeeper import Gatekeeper
from memserve.gateway.modules.trial import ModuleTrial
from memserve.gateway.workers.picking import least_loaded, workers_for
from memserve.gateway.workers.pool import WorkerPool
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.memory import SOURCES_MAX, ParametricMemory, Publication
from memserve.memory.texts.records import memory_key
from memserve.policy.modules.recipes import check_budget, check_recipe
from memserve.policy.modules.selection import Selection
from memserve.policy.modules.self_study.asking import probe_sets
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.readings import Reading, readings_of
from memserve.policy.modules.self_study.study import Study
from memserve.processes.supervised import Background

TELL_EVERY_S = 0.5
EXAMPLES = 8
TRIES = 3
"""Of workers that are lost while they train."""
JOBS_MAX = 16
"""Under way at a gateway."""
KINDS = (ModuleKind.LORA, ModuleKind.CARTRIDGE)
BEGUN = DistilProgress("reading", 0, 0)


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is distilled into what."""

    name: str
    choice: DistilChoice
    kind: ModuleKind = ModuleKind.LORA
    recipe: Recipe = DEFAULT_RECIPE
    budget_s: float = 0.0
    seed: int = 0
    notes: str = ""


@dataclass(frozen=True, slots=True)
class DistillationStopped:
    """Somebody has stopped the job."""


Event = DistilPlan | DistilProgress | ModuleVersion | DistillationStopped


@dataclass(slots=True)
class _Job:
    distillation: Distillation
    task: asyncio.Task[ModuleVersion]
    plan: DistilPlan | None = None
    progress: DistilProgress = BEGUN
    memory_keys: tuple[str, ...] = ()
    """Of the memories that it has read, and of their namespaces."""


class ModuleDistillation:
    """The distillations of this gateway: at most one for each module."""

    def __init__(
        self,
        memory: ParametricMemory,
        memories: ChosenMemories,
        pool: WorkerPool,
        trial: ModuleTrial,
        gatekeeper: Gatekeeper,
        layout: PromptLayout,
        background: Background,
        erasures: KeptErasures,
    ) -> None:
        self._erasures = erasures
        self._memory = memory
        self._memories = memories
        self._pool = pool
        self._trial = trial
        self._gatekeeper = gatekeeper
        self._layout = layout
        self._background = background
        self._jobs: dict[tuple[str, str], _Job] = {}

    async def plan(self, tenant: Tenant, distillation: Distillation) -> DistilPlan:
        """What would be trained on. Raises InvalidField, NamespaceNotFound, MemoryNotFound."""
        await self._check(tenant, distillation)
        return _plan_of(await self._memories.select(tenant, distillation.choice, time.time()), distillation)

    async def distil(self, tenant: Tenant, distillation: Distillation) -> AsyncGenerator[Event, None]:
        """Begin the job, or watch the one that is under way. The version comes last, with its gate report.

        Raises InvalidField, InvalidModule, NamespaceNotFound, MemoryNotFound and NoWorker.
        """
        job = await self._job(tenant, distillation)
        told_plan = False
        while not job.task.done():
            if job.plan is not None and not told_plan:
                told_plan = True
                yield job.plan
            yield job.progress
            await asyncio.wait([job.task], timeout=TELL_EVERY_S)
        if job.task.cancelled():
            yield DistillationStopped()
            return
        if job.plan is not None and not told_plan:
            yield job.plan
        yield job.task.result()

    async def stop(self, tenant: Tenant, name: str) -> None:
        """Stop the job of a module. Its checkpoint stays. Raises InvalidField where there is none."""
        job = self._jobs.get((tenant.name, name))
        if job is None or job.task.done():
            raise InvalidField("cancel", f"no distillation of {name} is under way at this gateway")
        job.task.cancel()
        await asyncio.wait([job.task])

    def stop_those_of(self, tenant: str, keys: Sequence[str]) -> int:
        """Stop the jobs that have read one of these memories. Returns how many they were."""
        erased, stopped = set(keys), 0
        for (owner, _), job in self._jobs.items():
            if owner == tenant and not job.task.done() and not erased.isdisjoint(job.memory_keys):
                stopped += job.task.cancel()
        return stopped

    async def _job(self, tenant: Tenant, distillation: Distillation) -> _Job:
        key = (tenant.name, distillation.name)
        if (job := self._under_way(key, distillation)) is not None:
            return job
        await self._check(tenant, distillation)
        if (job := self._under_way(key, distillation)) is not None:
            return job
        for ended in [each for each, other in self._jobs.items() if other.task.done()]:
            del self._jobs[ended]
        if len(self._jobs) >= JOBS_MAX:
            raise NoWorker(f"{JOBS_MAX} distillations are under way at this gateway; ask again later")
        # The task finds its job, which needs the task.
        begun: asyncio.Future[_Job] = asyncio.get_running_loop().create_future()
        task = self._background.begin("distilling memories", self._run(tenant, distillation, begun))
        job = _Job(distillation, task)
        begun.set_result(job)
        self._jobs[key] = job
        return job

    def _under_way(self, key: tuple[str, str], distillation: Distillation) -> _Job | None:
        job = self._jobs.get(key)
        if job is None or job.task.done():
            return None
        if job.distillation != distillation:
            raise InvalidField("name", f"another distillation of {key[1]} is under way; cancel that first")
        return job

    async def _check(self, tenant: Tenant, distillation: Distillation) -> None:
        if distillation.kind not in KINDS:
            raise InvalidField("kind", f"{distillation.kind} cannot be distilled; {', '.join(KINDS)} can")
        check_recipe(distillation.recipe)
        check_budget(distillation.budget_s)
        await self._memory.check_new_version("name", tenant.name, distillation.name, distillation.kind)

    async def _run(
        self, tenant: Tenant, distillation: Distillation, begun: asyncio.Future[_Job]
    ) -> ModuleVersion:
        job, begun_s = await begun, time.time()
        selection = await self._memories.select(tenant, distillation.choice, time.time())
        job.plan = _plan_of(selection, distillation)
        job.memory_keys = _keys_of(tenant.name, selection)
        request = DistillationRequest(
            kind=distillation.kind,
            texts=tuple(memory.text for memory in selection.memories),
            recipe=distillation.recipe,
            seed=distillation.seed,
            budget_s=distillation.budget_s,
            recall_template=self._layout.recall.source if self._layout.recall.origin == "setting" else "",
            memory_keys=job.memory_keys,
        )
        with tempfile.TemporaryDirectory(prefix="memserve-distil-") as scratch:
            folder, report = await self._trained(tenant, request, Path(scratch), job)
            publication = Publication(
                name=distillation.name,
                kind=distillation.kind,
                files=(),
                sources=_sources(selection),
                recipe=_recipe_text(distillation, selection, report),
                notes=distillation.notes,
            )
            if await self._erasures.erased_since(tenant.name, job.memory_keys, begun_s):
                raise InvalidField("memories", "one of them was erased while it was distilled; begin again")
            version = await self._memory.publish(
                tenant, publication, folder, partial(self._trial.moves_logits, tenant.name)
            )
        async with aclosing(self._gatekeeper.run(tenant, version.module, version.version)) as events:
            async for event in events:
                if isinstance(event, GateReport):
                    return replace(version, gate=event)
                job.progress = replace(job.progress, stage="gate", done=event.done, total=event.total)
        return version

    async def _trained(
        self, tenant: Tenant, request: DistillationRequest, scratch: Path, job: _Job
    ) -> tuple[Path, dict[str, object]]:
        """Returns a folder within `scratch` with the module's files, and the worker's report."""
        for tries_left in reversed(range(TRIES)):
            folder = scratch / f"{tries_left}"
            await self._memory.files.run(tenant.name, folder.mkdir)
            worker = least_loaded(workers_for(self._pool, tenant.name))
            try:
                with worker.calling() as calls:
                    async with aclosing(calls.distil(request)) as events:
                        async for event in events:
                            if isinstance(event, DistilProgress):
                                job.progress = event
                            elif isinstance(event, ComposedPiece):
                                append = partial(_append, folder / Path(event.file_name).name, event.content)
                                await self._memory.files.run(tenant.name, append)
                            else:
                                report: dict[str, object] = json.loads(event.report)
                                return folder, report
            except WrongRequest as error:
                raise InvalidModule("distillation", error.detail) from None
            except WorkerDied as error:
                if not tries_left:
                    raise NoWorker(error.detail) from None
            except WorkerFailure as error:
                raise NoWorker(error.detail) from None
        raise NoWorker("the worker ended its stream without a result")


def _plan_of(selection: Selection, distillation: Distillation) -> DistilPlan:
    """Raises InvalidField when no memory states a fact."""
    readings: dict[tuple[str, str], Reading] = {}
    for memory in selection.memories:
        for reading in readings_of(memory.text):
            readings.setdefault(reading.key, reading)
    if not readings:
        raise InvalidField("memories", "none states a fact that can be asked for by itself")
    study = Study(list(readings.values()))
    facts = study.facts()
    draw = Draw(random.Random(f"{distillation.seed}:plan").random)
    shown = draw.sample(facts, EXAMPLES)
    return DistilPlan(
        memories=len(selection.memories),
        facts=len(readings),
        questions=len(facts),
        left_out=selection.left_out,
        examples=tuple(f"{lesson.question} {lesson.answer}" for lesson in shown),
        probes=sum(len(each.probes) for each in probe_sets(study, draw, 1.0)),
    )


def _keys_of(tenant: str, selection: Selection) -> tuple[str, ...]:
    names = [(memory.namespace, memory.memory_id) for memory in selection.memories]
    names += [(namespace, "") for namespace in dict.fromkeys(namespace for namespace, _ in names)]
    return tuple(memory_key(tenant, namespace, memory_id) for namespace, memory_id in names)


def _sources(selection: Selection) -> tuple[str, ...]:
    """The memories with their versions: one a source, as many as a version keeps."""
    named = [f"memory:{each.namespace}/{each.memory_id}@{each.version}" for each in selection.memories]
    return tuple(named) if len(named) <= SOURCES_MAX else tuple(_joined(named))


def _joined(named: list[str]) -> list[str]:
    """Several of one line, so that all fit."""
    each = -(-len(named) // SOURCES_MAX)
    return [" ".join(named[start : start + each]) for start in range(0, len(named), each)]


def _recipe_text(distillation: Distillation, selection: Selection, report: dict[str, object]) -> str:
    return json.dumps(
        {
            "method": "distil",
            "kind": str(distillation.kind),
            "recipe": asdict(distillation.recipe),
            "seed": distillation.seed,
            "budget_s": distillation.budget_s,
            "memories": len(selection.memories),
            "left_out": len(selection.left_out),
            "measured": {**report, "without_question": len(_places(report))},
        }
    )


def _places(report: dict[str, object]) -> list[object]:
    places = report.get("without_question")
    return places if isinstance(places, list) else []


def _append(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)
