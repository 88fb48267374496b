"""Reads where a tenant's namespaces stand: their memories, uses, pinned prefixes and modules."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from memserve.domain import Memory, ModuleVersion
from memserve.domain.ladder import WEIGHTS, Rung, RungCost, Subject
from memserve.domain.lineage import MemoryVersionName, memories_of
from memserve.errors import MemoryNotFound, NamespaceNotFound
from memserve.gateway.ladder.record import LadderRecord, NamespaceRecord
from memserve.gateway.pinned import Pinned
from memserve.gateway.warm_pinned import WarmPinned
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.report import UNKNOWN
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.texts import histories
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.requests import ListQuery
from memserve.memory.texts.uses import Counted, UseLedger
from memserve.model.files import ModelFiles
from memserve.policy.modules.recipes import default_budget_s
from memserve.policy.modules.references import LIVE
from memserve.policy.modules.rung_costs import (
    KIND_OF_RUNG,
    Engine,
    NamespaceFigures,
    costs_of,
)
from memserve.policy.modules.selection import MOST_CHANGES
from memserve.policy.modules.use_rate import UseRate

NAMESPACES_MAX = 64
MEMORIES_MAX = 1024
"""Of a namespace. Sources of modules that are not among them are looked up one by one."""
MODULES_MAX = 256
PAGE = 128
BEGUN_MAX_S = 86_400.0
"""A training without a version is lost after so long."""
BYTES_A_TOKEN = 4
"""An estimate, until a prefix has been laid out."""
LORA_RANK, LORA_NUMBER_BYTES = 16, 2


@dataclass(frozen=True, slots=True)
class LadderModule:
    """A version that was made of one namespace's memories."""

    version: ModuleVersion
    rung: Rung
    aliases: frozenset[str]
    """That point at it, alone or with others."""
    is_preloaded: bool
    outdated: bool = False
    """A memory has changed, or is gone, since it was made."""

    @property
    def is_live(self) -> bool:
        return LIVE in self.aliases

    @property
    def misleads(self) -> bool:
        """Requests still reach it, and it is outdated."""
        return self.outdated and bool(self.aliases)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a namespace stands."""

    subject: Subject
    modules: tuple[LadderModule, ...]
    has_pinned: bool

    def live(self, rung: Rung) -> list[LadderModule]:
        return [module for module in self.modules if module.rung is rung and module.is_live]

    def is_made(self, rung: Rung) -> bool:
        """Whether a version of now is live, so that it need only be loaded."""
        return any(not module.outdated for module in self.live(rung))

    @property
    def waiting(self) -> list[LadderModule]:
        """Candidates that somebody has to promote."""
        return [module for module in self.modules if waits(self.modules, module)]


class Standings:
    """Of any tenant."""

    def __init__(
        self,
        texts: VectorMemory,
        ledger: UseLedger,
        pinned: Pinned,
        warm_pinned: WarmPinned,
        store: ModuleStore,
        pool: WorkerPool,
        model: ModelFiles,
        recall_limit: int,
    ) -> None:
        self._texts = texts
        self._ledger = ledger
        self._pinned = pinned
        self._warm_pinned = warm_pinned
        self._store = store
        self._pool = pool
        self._model = model
        self._recall_limit = recall_limit

    async def read(self, tenant: str, record: LadderRecord, now_s: float, *, acts: bool) -> list[Standing]:
        """By namespace, NAMESPACES_MAX of them: those that modules were made of come first. The rates in the
        record go on.

        acts: the ladder decides which prefixes are warm; else all are.
        Raises VectorStoreUnavailable and RegistryUnavailable.
        """
        modules = await self._modules(tenant)
        names = await self._texts.list_namespaces(tenant)
        # A fact that changes must reach what was made of it, in every namespace.
        names = sorted(names, key=lambda name: (name not in modules, name))[:NAMESPACES_MAX]
        known = record.namespaces
        record.cooled = tuple(name for name in record.cooled if name in names)
        record.namespaces = {name: known.get(name) or _new(now_s) for name in names}
        engine = self._engine()
        found = []
        for name in names:
            try:
                cooled = acts and name in record.cooled
                found.append(
                    await self._standing(
                        tenant,
                        name,
                        record.namespaces[name],
                        modules.get(name, []),
                        engine,
                        now_s,
                        cooled=cooled,
                    )
                )
            except NamespaceNotFound:
                del record.namespaces[name]
        return found

    async def _standing(
        self,
        tenant: str,
        namespace: str,
        record: NamespaceRecord,
        modules: Sequence[LadderModule],
        engine: Engine,
        now_s: float,
        *,
        cooled: bool,
    ) -> Standing:
        memories = await self._memories(tenant, namespace)
        pinned = [hit.memory for hit in await self._pinned.shared(tenant, [namespace], time.time())]
        checked = tuple([await self._checked(tenant, namespace, module, memories) for module in modules])
        await self._count_uses(tenant, list(memories.values()), record, now_s)
        rung = _rung(checked, is_warm=bool(pinned) and not cooled)
        if rung is not record.rung:
            record.rung, record.since_s = rung, now_s
        record.has_live = any(module.aliases for module in checked)
        _settle(record, checked, now_s)
        figures = self._figures(tenant, namespace, list(memories.values()), pinned, record, checked, cooled)
        costs = costs_of(figures, engine)
        if rung not in costs:  # it stands there whatever is refused
            held = next(module for module in checked if module.rung is rung)
            costs[rung] = RungCost(
                0, engine.costs.step_s, held.version.size_bytes, engine.train_s.get(rung, 0.0)
            )
        steady = [memory for memory in memories.values() if memory.version <= 1 + MOST_CHANGES]
        subject = Subject(
            namespace,
            rung,
            record.since_s,
            record.rate.per_day(now_s),
            costs,
            changes=min((memory.version - 1 for memory in memories.values()), default=0),
            changed_s=max((memory.updated_s for memory in steady if memory.version > 1), default=None),
            outdated=rung in WEIGHTS and any(module.misleads for module in checked),
        )
        return Standing(subject, checked, bool(pinned))

    def _figures(
        self,
        tenant: str,
        namespace: str,
        memories: Sequence[Memory],
        pinned: Sequence[Memory],
        record: NamespaceRecord,
        modules: Sequence[LadderModule],
        cooled: bool,
    ) -> NamespaceFigures:
        ids = {memory.memory_id for memory in pinned}
        loose = [memory for memory in memories if memory.memory_id not in ids]
        pinned_tokens = self._warm_pinned.tokens_of(tenant, namespace) or _tokens(pinned)
        recalled = min(len(loose), self._recall_limit)
        current: dict[Rung, ModuleVersion] = {}
        for module in sorted(modules, key=lambda each: (each.is_live, each.version.created_s)):
            if not module.outdated:
                current[module.rung] = module.version
        return NamespaceFigures(
            pinned_tokens=pinned_tokens,
            passage_tokens=recalled * _tokens(loose) // max(1, len(loose)),
            memory_tokens=_tokens(memories),
            is_warm=bool(pinned) and not cooled,
            versions=current,
            trained=frozenset(record.begun),
            # A candidate takes no bytes, and is not promoted by the ladder.
            refused=frozenset(record.refused) | {module.rung for module in modules if waits(modules, module)},
        )

    async def _memories(self, tenant: str, namespace: str) -> dict[str, Memory]:
        """Live ones, by id."""
        found: dict[str, Memory] = {}
        token = ""
        while len(found) < MEMORIES_MAX:
            page = await self._texts.list_memories(
                tenant, ListQuery((namespace,), limit=PAGE, page_token=token)
            )
            found |= {memory.memory_id: memory for memory in page.memories}
            token = page.next_page_token
            if not token:
                break
        return found

    async def _checked(
        self, tenant: str, namespace: str, module: LadderModule, memories: Mapping[str, Memory]
    ) -> LadderModule:
        """With whether it is outdated."""
        for source in memories_of(module.version.sources):
            memory = memories.get(source.memory_id)
            if memory is None and len(memories) >= MEMORIES_MAX:
                memory = await self._one(tenant, namespace, source)
            if memory is None or await self._is_changed(tenant, source, memory):
                return LadderModule(
                    module.version, module.rung, module.aliases, module.is_preloaded, outdated=True
                )
        return module

    async def _is_changed(self, tenant: str, source: MemoryVersionName, memory: Memory) -> bool:
        """Whether it says something else than the version that a module was made of. A pin does not count."""
        if memory.version == source.version:
            return False
        try:
            history = await self._texts.history(tenant, memory.namespace, memory.memory_id)
        except MemoryNotFound:
            return True
        before = histories.version_of(history, source.version)
        return before is None or _said(before) != _said(memory)

    async def _one(self, tenant: str, namespace: str, source: MemoryVersionName) -> Memory | None:
        try:
            return await self._texts.get(tenant, namespace, source.memory_id)
        except MemoryNotFound:
            return None

    async def _count_uses(
        self, tenant: str, memories: Sequence[Memory], record: NamespaceRecord, now_s: float
    ) -> None:
        """Answers are as many as the most used memory has uses, or as all passages' uses make."""
        counted = await self._ledger.read(tenant, memories)
        uses = [counted.get(memory_key(tenant, *memory.name), Counted()).uses for memory in memories]
        answers = max(max(uses, default=0), sum(uses) // self._recall_limit)
        record.rate = record.rate.counted(answers - record.uses, now_s)
        record.uses = answers

    async def _modules(self, tenant: str) -> dict[str, list[LadderModule]]:
        """The distilled ones by namespace: what their alias `live` points at, and their newest version."""
        preloaded = {preload.digest for preload in await self._store.preloads()}
        found: dict[str, list[LadderModule]] = {}
        for rung, kind in KIND_OF_RUNG.items():
            after, left = "", MODULES_MAX
            while left > 0:
                page, after = await self._store.modules(tenant, after=after, limit=PAGE, kind=kind)
                left -= len(page)
                for module in page:
                    names: dict[int, set[str]] = {module.newest_version: set()}
                    for alias in module.aliases:
                        for share in alias.targets:
                            names.setdefault(share.version, set()).add(alias.name)
                    for number in sorted(names):
                        version = await self._store.version(tenant, module.name, number)
                        if version is None:
                            continue
                        of = {source.namespace for source in memories_of(version.sources)}
                        if len(of) == 1:
                            found.setdefault(of.pop(), []).append(
                                LadderModule(
                                    version, rung, frozenset(names[number]), version.digest in preloaded
                                )
                            )
                if not after:
                    break
        return found

    def _engine(self) -> Engine:
        reports = [worker.report for worker in self._pool.workers.values()]
        fastest = max(reports, key=lambda each: each.costs.prefill_tokens_per_s, default=None)
        costs = fastest.costs if fastest else UNKNOWN
        lora_bytes, parameters = self._sizes
        train_s = {
            rung: default_budget_s(kind, parameters)
            for rung, kind in KIND_OF_RUNG.items()
            if rung is not Rung.CARTRIDGE or not self._model.no_prefix_reason
        }
        return Engine(costs, self._model.kv_bytes_per_token, lora_bytes, train_s)

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """Bytes of a LoRA, and parameters of the model. Reads the headers of its files."""
        shapes = self._model.tensor_shapes()
        adapted = [shape for name, shape in shapes.items() if len(shape) == 2 and "_proj" in name]
        return LORA_RANK * LORA_NUMBER_BYTES * sum(map(sum, adapted)), sum(map(math.prod, shapes.values()))


def _said(memory: Memory) -> tuple[object, ...]:
    return memory.text, memory.applies_when, memory.valid_from_s, memory.valid_until_s


def _new(now_s: float) -> NamespaceRecord:
    """Of a namespace that nothing is known of. It stays where it is until its use has been measured."""
    return NamespaceRecord(rate=UseRate(0.0, now_s), since_s=now_s)


def _rung(modules: Sequence[LadderModule], *, is_warm: bool) -> Rung:
    """The highest that answers: a module that is live and loaded ahead, or an outdated one that requests
    still reach.
    """
    held = [
        module.rung
        for module in modules
        if module.misleads or (module.is_live and module.is_preloaded and not module.outdated)
    ]
    return max(held, key=lambda rung: rung.height, default=Rung.PREFIX if is_warm else Rung.TEXT)


def waits(modules: Sequence[LadderModule], module: LadderModule) -> bool:
    """Whether it is a version of now that is not live, and no version of now of its rung is."""
    return not (module.is_live or module.outdated) and not any(
        each.rung is module.rung and each.is_live and not each.outdated for each in modules
    )


def _settle(record: NamespaceRecord, modules: Sequence[LadderModule], now_s: float) -> None:
    """Forget trainings that have a version, or are lost, and refusals that are over."""
    made_s = {
        rung: max((each.version.created_s for each in modules if each.rung is rung), default=0.0)
        for rung in record.begun
    }
    record.begun = {
        rung: at_s
        for rung, at_s in record.begun.items()
        if made_s[rung] < at_s and now_s - at_s < BEGUN_MAX_S
    }
    record.refused = {each: until for each, until in record.refused.items() if until[0] > now_s}


def _tokens(memories: Sequence[Memory]) -> int:
    """Of a text at least one: what is pinned has a prefix, however short it is."""
    return math.ceil(sum(len(memory.text.encode()) for memory in memories) / BYTES_A_TOKEN)
