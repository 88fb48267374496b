"""The steps of an erasure. Each may be done again without harm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from memserve.domain import ErasedPlace, Tenant
from memserve.domain.lineage import Erasure, Retraining
from memserve.errors import CacheUnavailable, MemserveError
from memserve.gateway.erasures.jobs import StoppingJobs
from memserve.gateway.erasures.retiring import Retiring, retired_of
from memserve.gateway.erasures.subject import ErasurePlans, Plan, Subject
from memserve.gateway.erasures.texts import NEVER, ErasedTexts
from memserve.gateway.erasures.workers import ForgettingWorkers, Told
from memserve.memory.answers.store import KeptAnswers, module_key
from memserve.memory.erasures.records import ErasureRecord, RetiredVersion
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.erasing import merged
from memserve.memory.texts.index import one_line
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import memory_key
from memserve.policy.lineage.retiring import retrained_by

PINNED_NOTE = "pinned prefixes stay: unpin and evict them"
REPLACED_SHOWN = 8


class ErasureSteps:
    """What an erasure does, by the record of it."""

    def __init__(
        self,
        kept: KeptErasures,
        plans: ErasurePlans,
        retiring: Retiring,
        workers: ForgettingWorkers,
        jobs: StoppingJobs,
        texts: VectorMemory,
        answers: KeptAnswers,
        activation: ActivationMemory,
        modules: ParametricMemory,
    ) -> None:
        self._kept = kept
        self._plans = plans
        self._retiring = retiring
        self._workers = workers
        self._jobs = jobs
        self._erased_texts = ErasedTexts(plans, texts)
        self._answers = answers
        self._activation = activation
        self._modules = modules

    def note_workers(self, record: ErasureRecord) -> None:
        self._workers.note(record)

    async def before(self, tenant: Tenant, record: ErasureRecord) -> None:
        """Nothing new is made of it, and nothing new is answered with what was made of it."""
        if record.erased_s and "versions" in record.done:
            return
        await self._stop_makers(tenant, record)
        await self._take_out(tenant, record)

    async def texts(self, tenant: Tenant, record: ErasureRecord) -> None:
        """Raises as `VectorMemory.erase`, but for what is erased already."""
        if "texts" in record.done:
            return
        await self._erased_texts.erase(tenant, record)
        await self.texts_gone(tenant, record)

    async def texts_gone(self, tenant: Tenant, record: ErasureRecord) -> None:
        """From now on nobody can read them. What was begun with them before that is not published."""
        record.erased_s = time.time()
        names = record.memories or ((record.erasure.namespace, ""),)
        candidates = await self._modules.store.forget_consolidations(tenant.name, names)
        if candidates:
            detail = "consolidations that had its text"
            record.places["consolidations"] = ErasedPlace("consolidations", candidates, detail)
        await self._stop_makers(tenant, record)
        record.done.add("texts")

    async def _stop_makers(self, tenant: Tenant, record: ErasureRecord) -> None:
        """Stop what reads the memories, and note that they are erased from now on."""
        keys = _all_keys(record)
        await self._kept.mark_erased(tenant.name, keys, time.time())
        stopped = await self._jobs.stop(tenant.name, keys)
        if stopped:
            merged(record.places, ErasedPlace("jobs", stopped, "distillations that read it were stopped"))

    async def _take_out(self, tenant: Tenant, record: ErasureRecord) -> None:
        """Nothing points any more at a version that knows it."""
        digests = {version.digest for version in record.versions}
        moved, preloads, versions = await self._retiring.take_out(
            tenant, _subject(record), record.erased_s or NEVER, digests
        )
        known = {(version.module, version.version) for version in record.versions}
        record.versions += tuple(
            RetiredVersion(each.module, each.version, each.digest, str(each.kind), each.probes_digest)
            for each in versions
            if (each.module, each.version) not in known
        )
        await self._kept.mark_erased(
            tenant.name, [module_key(version.digest) for version in record.versions], time.time()
        )
        if moved:
            before = [move for move in record.erasure.aliases if "aliases" in record.places]
            record.erasure = replace(record.erasure, aliases=(*before, *moved))
            dropped = sum(not move.after for move in record.erasure.aliases)
            detail = f"{dropped} dropped; the others point at versions without it"
            merged(record.places, ErasedPlace("aliases", len(moved), detail))
        if preloads:
            merged(record.places, ErasedPlace("preloads", preloads, "of versions that knew it"))

    async def after(self, tenant: Tenant, record: ErasureRecord) -> list[str]:
        """What was made of it goes. Returns what could not be reached."""
        pending: list[str] = []
        await self._erased_texts.bring_back(tenant, record, pending)
        if "versions" not in record.done:
            # Of those that were published while it was erased.
            await self._take_out(tenant, record)
        await self._versions(tenant, record, pending)
        await self._kept_answers(tenant, record, pending)
        await self._plans_of_jobs(tenant, record)
        # Whatever its uses say: pinned prefixes, surprise gates and consolidations put it into prompts too.
        free = await self._free_versions(record)
        told = await self._workers.tell(record, _all_keys(record), free, time.time())
        self._note_told(record, told, pending)
        await self._redis(tenant, record, pending, more=told.workers > 0)
        detail = "cubes and exports that were made before are not reached"
        record.places["exports"] = ErasedPlace("exports", 0, detail)
        if retraining := record.erasure.retraining:
            detail = "modules to be made again without it: `memserve lineage retraining`"
            record.places["retraining"] = ErasedPlace("retraining", len(retraining), detail)
        return pending

    async def _plans_of_jobs(self, tenant: Tenant, record: ErasureRecord) -> None:
        forgotten = await self._modules.store.forget_plans(tenant.name)
        if forgotten:
            detail = "plans of distillations, whose examples may be of it"
            merged(record.places, ErasedPlace("plans", forgotten, detail))

    async def _versions(self, tenant: Tenant, record: ErasureRecord, pending: list[str]) -> None:
        if not record.versions or "versions" in record.done:
            return
        names = [(version.module, version.version) for version in record.versions]
        mark = f"erasure-{record.erasure.erasure_id}"
        freed, in_use = await self._retiring.delete(tenant, names, mark)
        pending += in_use
        detail = "versions that knew it were deleted, with their content and probes"
        detail += f"; {len(in_use)} are in use" if in_use else ""
        record.places["modules"] = ErasedPlace("modules", len(names) - len(in_use), detail, bool(in_use))
        record.erasure = replace(record.erasure, retired=tuple(f"{name}@{number}" for name, number in names))
        known = record.places.get("module_kv")
        freed += known.removed if known is not None else 0
        record.places["module_kv"] = ErasedPlace("module_kv", freed, "chunks in Redis that they computed")
        if not in_use:
            record.done.add("versions")

    async def _kept_answers(self, tenant: Tenant, record: ErasureRecord, pending: list[str]) -> None:
        keys = [module_key(version.digest) for version in record.versions]
        if not keys or "answers" in record.done:
            return
        try:
            removed = await self._answers.forget_memories(tenant.name, list(dict.fromkeys(keys)))
        except MemserveError as error:
            pending.append(f"answers: {one_line(error)}")
            return
        merged(record.places, ErasedPlace("module_answers", removed, "kept answers by versions that knew it"))
        # Requests that a version in use still answers are kept until it is free.
        if "versions" in record.done:
            record.done.add("answers")

    async def _free_versions(self, record: ErasureRecord) -> list[RetiredVersion]:
        """Those whose content no other version of anybody has: workers delete their copies of them."""
        free = {}
        for version in record.versions:
            if not await self._modules.store.referenced(version.digest):
                free[version.digest] = version
        return list(free.values())

    def _note_told(self, record: ErasureRecord, told: Told, pending: list[str]) -> None:
        away = sorted(record.workers)
        pending += [f"worker {name} is away: it is told when it is back" for name in away]
        detail = "the tenant's KV in workers' own memory, blocks and chunks: one may be its"
        if away:
            detail += f"; {len(away)} workers are away"
        before = record.places.get("engines")
        removed = told.blocks + told.chunks + (before.removed if before is not None else 0)
        record.places["engines"] = ErasedPlace("engines", removed, detail, bool(away))
        if told.trainings:
            merged(
                record.places,
                ErasedPlace("trainings", told.trainings, "checkpoints of trainings that had not ended"),
            )

    async def _redis(self, tenant: Tenant, record: ErasureRecord, pending: list[str], *, more: bool) -> None:
        """After the workers, which store no more of it. Nothing says which chunks were computed with it.

        more: workers were told that may have stored some since. Else the tenant's KV goes once.
        """
        known = record.places.get("kv")
        if known is not None and not known.pending and not more:
            return
        try:
            removed, pinned = await self._activation.evict_tenant(tenant.name)
        except CacheUnavailable as error:
            record.places["kv"] = ErasedPlace("kv", 0, f"not removed yet: {one_line(error)}", pending=True)
            pending.append(f"kv: {one_line(error)}")
            return
        note = f"; {pinned} chunks of {PINNED_NOTE}" if pinned else ""
        before = record.places.get("kv")
        removed += before.removed if before is not None else 0
        detail = f"all chunks of the tenant in Redis: one may be its{note}"
        record.places["kv"] = ErasedPlace("kv", removed, detail)

    async def check(self, tenant: Tenant, record: ErasureRecord) -> list[ErasedPlace]:
        """What is found of it now: `removed` counts what is still there."""
        subject = _subject(record)
        places = [await self._erased_texts.found(tenant, record)]
        digests = {version.digest for version in record.versions}
        _, every, versions = await self._plans.versions_of(tenant.name, subject, digests)
        left = retired_of(every, versions, digests, record.erased_s or NEVER)
        names = ", ".join(version.reference for version in left)
        places.append(ErasedPlace("modules", len(left), names or "no version knows it", bool(left)))
        blobs = [
            version.digest
            for version in record.versions
            if not await self._modules.store.referenced(version.digest)
            and await self._modules.files.run_own(partial(self._modules.blobs.exists, version.digest))
        ]
        places.append(ErasedPlace("blobs", len(blobs), "contents that nothing refers to", bool(blobs)))
        answers = 0
        for key in (*_keys(record), *(module_key(version.digest) for version in record.versions)):
            kept = await self._answers.of_memory(tenant.name, key, 1000)
            answers += sum(answer.at_s <= (record.erased_s or NEVER) for answer in kept)
        places.append(ErasedPlace("answers", answers, "kept answers that used it", bool(answers)))
        chunks = 0
        for digest in dict.fromkeys(version.digest for version in record.versions):
            chunks += await self._activation.module_chunks(tenant.name, digest)
        places.append(ErasedPlace("module_kv", chunks, "chunks in Redis of its versions", bool(chunks)))
        away = sorted(record.workers)
        places.append(
            ErasedPlace("workers", len(away), ", ".join(away) or "all have forgotten it", bool(away))
        )
        return places

    async def with_retraining(self, tenant: Tenant, erasures: Sequence[Erasure]) -> list[Erasure]:
        """The same, with the versions that were made since of what is left."""
        if not any(erasure.retraining for erasure in erasures):
            return list(erasures)
        nothing = Subject("")
        _, every, _ = await self._plans.versions_of(tenant.name, nothing)
        told = []
        for erasure in erasures:
            gone = Subject(erasure.namespace, _names(erasure))
            entries = tuple(
                replace(entry, made=retrained_by(entry, every.all, gone.has)) for entry in erasure.retraining
            )
            told.append(replace(erasure, retraining=entries))
        return await self._without_erased(tenant, told)

    async def _without_erased(self, tenant: Tenant, erasures: Sequence[Erasure]) -> list[Erasure]:
        """Without memories that another erasure has taken: a retraining cannot read them."""
        waiting = (entry for erasure in erasures for entry in erasure.retraining if not entry.made)
        names = {memory_key(tenant.name, *name): name for entry in waiting for name in entry.memories}
        erased = [names[key] for key in await self._kept.erased_since(tenant.name, list(names), 0.0)]
        # One that was remembered again is there.
        gone = {
            name for name, known in (await self._plans.memories(tenant.name, erased)).items() if not known
        }

        def left(entry: Retraining) -> Retraining:
            return replace(entry, memories=tuple(name for name in entry.memories if name not in gone))

        return [replace(each, retraining=tuple(map(left, each.retraining))) for each in erasures]


def planned_places(plan: Plan) -> tuple[ErasedPlace, ...]:
    """What an erasure would remove, as far as it can be counted before."""
    places = [
        ErasedPlace("texts", len(plan.subject.memories), "with their histories, words and vectors"),
        ErasedPlace("derived", len(plan.subject.memories) - 1, "memories that were derived from it"),
        ErasedPlace("modules", len(plan.retired), "versions that know it"),
        ErasedPlace("aliases", len(plan.aliases), "that point at one of them"),
        ErasedPlace("retraining", len(plan.retraining), "modules that are queued without it"),
    ]
    if plan.replaced:
        places.append(replaced_place(plan.replaced))
    return (*places, ErasedPlace("kv", 0, "all KV of the tenant, in Redis and on workers"))


def _subject(record: ErasureRecord) -> Subject:
    return Subject(record.erasure.namespace, record.memories)


def _names(erasure: Erasure) -> tuple[tuple[str, str], ...]:
    """As of `Subject`. Empty for a namespace."""
    if not erasure.memory_id:
        return ()
    derived = [name.partition("/") for name in erasure.derived]
    own = erasure.namespace, erasure.memory_id
    return (*((namespace, memory_id) for namespace, _, memory_id in derived), own)


def replaced_place(replaced: Sequence[tuple[str, str]]) -> ErasedPlace:
    named = ", ".join(f"{namespace}/{memory_id}" for namespace, memory_id in replaced[:REPLACED_SHOWN])
    more = f" and {len(replaced) - REPLACED_SHOWN} more" if len(replaced) > REPLACED_SHOWN else ""
    detail = f"memories whose place it had taken keep their texts, and stay out of searches: {named}{more}"
    return ErasedPlace("replaced", 0, detail)


def _all_keys(record: ErasureRecord) -> list[str]:
    """Also of the contents that know it."""
    digests = dict.fromkeys(version.digest for version in record.versions)
    return [*_keys(record), *map(module_key, digests)]


def _keys(record: ErasureRecord) -> list[str]:
    """Of a namespace it is one, which stands for all of its memories."""
    names = record.memories or ((record.erasure.namespace, ""),)
    return [memory_key(record.tenant, namespace, memory_id) for namespace, memory_id in names]
