"""Namespaces that become fewer, better memories: planned, tried, and accepted or not.

1. Rules say which memories become one (`policy/consolidation.py`). Nothing is written for that.
2. Questions over the sources are asked twice, of recall and of the served model: over the memories as they
   are, and as they would be. A merge that loses an answer is dropped.
3. What is left is a candidate. The registry has it, and no search does.
4. Accepted, all its sources are superseded in one step of the journal. Rejected, nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memserve.domain import (
    Consolidation,
    ConsolidationPlan,
    ConsolidationProbes,
    ConsolidationState,
    LeftAlone,
    Memory,
    Merge,
    MergeKind,
    SearchQuery,
    Tenant,
)
from memserve.errors import InvalidField, InvalidModule, MemserveError, NoWorker
from memserve.gateway.modules.progress import Step
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.registry.consolidations import ConsolidationRecords
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.requests import ListQuery
from memserve.policy import consolidation as policy
from memserve.policy.consolidation import MOST_MEMORIES, OF_OTHERS, Question
from memserve.policy.modules.gate import Match, Probe, right
from memserve.turns import FairThreads

log = logging.getLogger("memserve.gateway.consolidation")

PAGE = 256
MOST_QUESTIONS, MOST_OTHERS = 192, 64
"""Over the sources, and over memories that stay as they are."""
RECALLED = 6
"""Memories that a question gets."""
SEARCH_S = 10.0
BUDGET_S, LEAST_BUDGET_S, MOST_BUDGET_S = 60.0, 1.0, 3600.0
"""Of the served model's answers, in seconds."""
ROUNDS = 16
"""Merges are dropped, and what is left is tried again, so often. The served model is asked again only where
the passages have changed."""
WRITING = "Write one short text that says everything that these notes say, in plain sentences."

Vector = npt.NDArray[np.float32]
Event = ConsolidationPlan | Step | Consolidation


class AsksModel(Protocol):
    """The served model. `Gate` is one."""

    async def base_answer(self, tenant: Tenant, probe: Probe) -> str:
        """Raises NoWorker, and InvalidModule for what the model cannot be asked."""


@dataclass(frozen=True, slots=True)
class ConsolidationOptions:
    """How a namespace is consolidated."""

    summaries: bool = True
    """Whether facts about one thing become one memory."""
    model_writes: bool = False
    """Whether the served model writes the summaries. A summary of its that lacks a value, or states another
    one, is made of the sources' sentences."""
    budget_s: float = BUDGET_S


@dataclass(slots=True)
class _Trial:
    """A plan that is tried."""

    plan: ConsolidationPlan
    memories: Mapping[str, Memory]
    end_s: float
    probes: ConsolidationProbes = field(default_factory=ConsolidationProbes)
    """Of the last round."""
    model_is_there: bool = True
    answers: dict[tuple[str, tuple[str, ...]], bool] = field(default_factory=dict)
    """By question and passages: whether the served model answered rightly."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """A question, before and after."""

    question: Question
    found: tuple[bool, bool]
    right: tuple[bool, bool] | None
    """None: the served model was not asked."""
    new: frozenset[str] = frozenset()
    """Ids of the summaries that the question gets after."""

    @property
    def is_lost(self) -> bool:
        return (True, False) in (self.found, self.right)


class Consolidations:
    """For all tenants."""

    def __init__(
        self,
        texts: VectorMemory,
        store: ConsolidationRecords,
        gate: AsksModel,
        threads: FairThreads,
        erasures: KeptErasures,
    ) -> None:
        self._texts = texts
        self.store = store
        self._gate = gate
        self._threads = threads
        self.erasures = erasures

    async def plan(self, tenant: Tenant, namespace: str, options: ConsolidationOptions) -> ConsolidationPlan:
        """What would become of the namespace. Raises NamespaceNotFound, and InvalidField for an empty one."""
        return (await self._planned(tenant, namespace, options))[0]

    async def prepare(
        self, tenant: Tenant, namespace: str, options: ConsolidationOptions
    ) -> AsyncGenerator[Event, None]:
        """Plan and try. The consolidation comes last: a candidate, or one that has failed.

        Raises NamespaceNotFound, and InvalidField for an empty namespace and where there is nothing to do.
        """
        if not LEAST_BUDGET_S <= options.budget_s <= MOST_BUDGET_S:
            raise InvalidField("budget_s", f"must be from {LEAST_BUDGET_S:g} to {MOST_BUDGET_S:g}")
        begun_s = time.time()
        plan, memories = await self._planned(tenant, namespace, options)
        if not plan.merges:
            raise InvalidField(
                "namespace", f"nothing to do: none of its {plan.memories} memories can become fewer"
            )
        yield plan
        tried = Consolidation(
            uuid.uuid4().hex, ConsolidationState.FAILED, tenant.principal, 0.0, plan, ConsolidationProbes()
        )
        trial = _Trial(plan, memories, time.monotonic() + options.budget_s)
        try:
            if options.model_writes:
                await self._write(tenant, trial)
            async with contextlib.aclosing(self._tried(tenant, trial)) as steps:
                async for step in steps:
                    yield step
        except MemserveError as error:
            await self._keep(tenant, replace(tried, plan=replace(plan, merges=()), reason=str(error)))
            raise
        tried = replace(tried, plan=trial.plan, probes=trial.probes)
        if trial.plan.merges:
            tried = replace(tried, state=ConsolidationState.CANDIDATE)
        else:
            why = next((each.reason for each in reversed(trial.plan.left_alone)), "")
            tried = replace(tried, reason=f"no merge has passed its probes, the last one because {why}")
        kept = await self._keep(tenant, tried)
        await self._require_kept(tenant, kept, begun_s)
        yield kept

    async def _tried(self, tenant: Tenant, trial: _Trial) -> AsyncGenerator[Step, None]:
        """Ask, and drop merges that lose an answer, until what is left loses none."""
        for round_ in range(ROUNDS):
            compared: list[_Compared] = []
            asked = policy.questions(trial.plan.merges, trial.memories, MOST_QUESTIONS)
            asked += policy.questions_of_others(trial.plan.merges, trial.memories, MOST_OTHERS)
            for question in asked:
                compared.append(await self._compared(tenant, trial, question))
                yield Step(len(compared), len(asked))
            dropped = _losing(trial.plan.merges, compared, is_asked=trial.model_is_there)
            if dropped and round_ == ROUNDS - 1:
                why = "what was left of the consolidation lost answers again and again"
                left = [
                    *trial.plan.left_alone,
                    *(LeftAlone(each.memory_id, why) for each in trial.plan.merges),
                ]
                trial.plan = replace(trial.plan, merges=(), left_alone=tuple(left))
                return
            trial.plan = policy.without(trial.plan, dropped, trial.memories)
            trial.probes = _probes(compared)
            if not dropped or not trial.plan.merges:
                return

    async def accept(self, tenant: Tenant, namespace: str, consolidation_id: str) -> Consolidation:
        """Let the candidate take the place of its sources, but for those that were written meanwhile.

        Repeating it after a failure goes on. Raises InvalidField where there is no such candidate.
        """
        states = (ConsolidationState.CANDIDATE, ConsolidationState.ACCEPTING)
        known = await self._known(tenant, namespace, consolidation_id, states)
        if known.state is ConsolidationState.CANDIDATE:
            begun = replace(known, state=ConsolidationState.ACCEPTING)
            if not await self.store.keep_consolidation(tenant.name, tenant.principal, begun, known.state):
                raise _no_candidate(namespace)
        done = await self._texts.consolidate(tenant.name, namespace, known.plan.merges, tenant.principal)
        plan = replace(known.plan, merges=done.merges, left_alone=(*known.plan.left_alone, *done.left_alone))
        ended = replace(known, state=ConsolidationState.ACCEPTED, plan=plan)
        if not done.merges:
            why = next((each.reason for each in reversed(done.left_alone)), "is gone")
            reason = f"no memory has changed, because one {why}"
            ended = replace(ended, state=ConsolidationState.FAILED, reason=reason)
        await self.store.keep_consolidation(
            tenant.name, tenant.principal, ended, ConsolidationState.ACCEPTING
        )
        newest = await self.store.consolidations(tenant.name, namespace)
        # A new one may have been tried meanwhile.
        return next((each for each in newest if each.consolidation_id == known.consolidation_id), ended)

    async def reject(self, tenant: Tenant, namespace: str, consolidation_id: str) -> Consolidation:
        """Take the candidate away. Raises InvalidField where there is no such candidate."""
        known = await self._known(tenant, namespace, consolidation_id, (ConsolidationState.CANDIDATE,))
        by = f"rejected by {tenant.principal}" if tenant.principal else "rejected"
        ended = replace(known, state=ConsolidationState.REJECTED, reason=by)
        if not await self.store.keep_consolidation(tenant.name, tenant.principal, ended, known.state):
            raise _no_candidate(namespace)
        return ended

    async def newest(self, tenant: Tenant) -> list[Consolidation]:
        """Of each namespace."""
        return await self.store.consolidations(tenant.name)

    async def _known(
        self,
        tenant: Tenant,
        namespace: str,
        consolidation_id: str,
        states: Sequence[ConsolidationState],
    ) -> Consolidation:
        for known in await self.store.consolidations(tenant.name, namespace):
            if consolidation_id in ("", known.consolidation_id) and known.state in states:
                return known
        raise _no_candidate(namespace)

    async def _keep(self, tenant: Tenant, tried: Consolidation) -> Consolidation:
        await self.store.keep_consolidation(tenant.name, tenant.principal, tried)
        return replace(tried, at_s=time.time())

    async def _require_kept(self, tenant: Tenant, tried: Consolidation, begun_s: float) -> None:
        """Raises InvalidField where a memory was erased since then whose text it has. Then it goes."""
        namespace = tried.plan.namespace
        names = [(namespace, memory_id) for memory_id in ("", *sorted(tried.plan.memory_ids))]
        keys = [memory_key(tenant.name, *name) for name in names]
        if await self.erasures.erased_since(tenant.name, keys, begun_s):
            await self.store.forget_consolidations(tenant.name, names)
            raise InvalidField("namespace", "one of its memories was erased meanwhile; consolidate it again")

    async def _planned(
        self, tenant: Tenant, namespace: str, options: ConsolidationOptions
    ) -> tuple[ConsolidationPlan, dict[str, Memory]]:
        """With the memories that were looked at, by id."""
        memories: list[Memory] = []
        token, is_whole = "", False
        while len(memories) < MOST_MEMORIES and not is_whole:
            limit = min(PAGE, MOST_MEMORIES - len(memories))
            page = await self._texts.list_memories(
                tenant.name, ListQuery((namespace,), limit=limit, page_token=token)
            )
            memories += page.memories
            token = page.next_page_token
            is_whole = not token
        if not memories:
            raise InvalidField("namespace", "has no memories")
        more = 0
        if not is_whole:
            counts = await self._texts.counts(tenant.name)
            more = max(1, counts.get(namespace, 0) - len(memories))
        # Comparing a thousand memories takes seconds.
        work = partial(policy.plan, namespace, memories, summaries=options.summaries, not_looked_at=more)
        plan = await self._threads.run(tenant.name, work)
        return plan, {memory.memory_id: memory for memory in memories}

    async def _write(self, tenant: Tenant, trial: _Trial) -> None:
        """Have the served model write the summaries."""
        merges = [await self._written(tenant, trial, merge) for merge in trial.plan.merges]
        trial.plan = replace(trial.plan, merges=tuple(merges))

    async def _written(self, tenant: Tenant, trial: _Trial, merge: Merge) -> Merge:
        """The summary in the served model's words, where it says what the sources say and nothing else."""
        if merge.kind is not MergeKind.SUMMARY:
            return merge
        sources = [trial.memories[source.memory_id] for source in merge.sources]
        probe = Probe(WRITING, ("-",), passages=tuple(source.text for source in sources))
        text = " ".join((await self._asked(tenant, trial, probe) or "").split())
        return replace(merge, text=text) if policy.says_the_same(text, sources) else merge

    async def _asked(self, tenant: Tenant, trial: _Trial, probe: Probe) -> str | None:
        """The served model's answer, within the budget. None: it cannot be asked."""
        left_s = trial.end_s - time.monotonic()
        if not trial.model_is_there or left_s <= 0:
            return None
        try:
            async with asyncio.timeout(left_s):
                return await self._gate.base_answer(tenant, probe)
        except TimeoutError:
            return None
        except NoWorker:
            trial.model_is_there = False
        except InvalidModule as error:
            # A text that has a control token of the model, or is too long for it.
            log.info("a question about %s is not asked: %s", trial.plan.namespace, error)
        return None

    async def _compared(self, tenant: Tenant, trial: _Trial, question: Question) -> _Compared:
        namespace = trial.plan.namespace
        query = SearchQuery((namespace,), question.text, limit=RECALLED)
        before = await self._texts.search(tenant.name, query, SEARCH_S)
        instead = [
            (_candidate(merge, trial.memories), await self._texts.embed(tenant.name, merge.text, query=False))
            for merge in trial.plan.merges
            if not merge.version
        ]
        gone = {(namespace, source.memory_id) for merge in trial.plan.merges for source in merge.sources}
        after = await self._texts.search_as_if(tenant.name, query, SEARCH_S, instead, gone)
        passages = [tuple(hit.memory.text for hit in found.hits) for found in (before, after)]
        found = [any(question.value.casefold() in text.casefold() for text in each) for each in passages]
        answered = [await self._answered(tenant, trial, question, each) for each in passages]
        both = None if None in answered else (bool(answered[0]), bool(answered[1]))
        made = {memory.memory_id for memory, _ in instead}
        new = frozenset(hit.memory.memory_id for hit in after.hits if hit.memory.memory_id in made)
        return _Compared(question, (found[0], found[1]), both, new)

    async def _answered(
        self, tenant: Tenant, trial: _Trial, question: Question, passages: tuple[str, ...]
    ) -> bool | None:
        """Whether the served model answers rightly. None: it was not asked."""
        key = question.text, passages
        if key not in trial.answers:
            probe = Probe(question.text, (question.value,), passages=passages)
            answer = await self._asked(tenant, trial, probe)
            if answer is None:
                return None
            trial.answers[key] = right(answer, probe.answers, Match.CONTAINS)
        return trial.answers[key]


def _no_candidate(namespace: str) -> InvalidField:
    return InvalidField(
        "consolidation_id",
        f"is no candidate of {namespace}; `memserve memories consolidate {namespace}` makes one",
    )


def _candidate(merge: Merge, memories: Mapping[str, Memory]) -> Memory:
    """The summary as it would be."""
    first = memories[merge.sources[0].memory_id]
    return replace(first, memory_id=merge.memory_id, text=merge.text, keywords=(), links=())


def _losing(merges: Sequence[Merge], compared: Sequence[_Compared], *, is_asked: bool) -> dict[int, str]:
    """Merges that lose something, by their places, and what. is_asked: whether the served model is there."""
    dropped: dict[int, str] = {}
    others = [each for each in compared if each.question.merge == OF_OTHERS]
    for place, merge in enumerate(merges):
        own = [each for each in compared if each.question.merge == place]
        found = [sum(each.found[side] for each in own) for side in (0, 1)]
        asked = [each.right for each in own if each.right is not None]
        answered = [sum(each[side] for each in asked) for side in (0, 1)]
        if found[1] < found[0]:
            dropped[place] = f"recall finds {found[1]} of {found[0]} answers with it"
        elif answered[1] < answered[0]:
            dropped[place] = f"the served model gives {answered[1]} of {answered[0]} right answers with it"
        elif own and not asked and is_asked:
            dropped[place] = "the budget ended before the served model was asked"
        elif any(each.is_lost and merge.memory_id in each.new for each in others):
            dropped[place] = "another memory's question loses its answer beside it"
        elif not own and merge.kind is MergeKind.SUMMARY:
            dropped[place] = "no question could be asked for it"
    return dropped


def _probes(compared: Sequence[_Compared]) -> ConsolidationProbes:
    asked = [each.right for each in compared if each.right is not None]
    return ConsolidationProbes(
        questions=len(compared),
        found_before=sum(each.found[0] for each in compared),
        found_after=sum(each.found[1] for each in compared),
        asked=len(asked),
        right_before=sum(each[0] for each in asked),
        right_after=sum(each[1] for each in asked),
    )
