"""What a memory, a module version or an answer was made of, and what was made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain import KeptAnswer, Memory, Module, ModuleVersion, Tenant
from memserve.domain.lineage import Lineage, MemoryVersionName, memories_of
from memserve.domain.names import is_memory_id, is_name
from memserve.errors import (
    CacheUnavailable,
    InvalidField,
    MemoryNotFound,
    RequestNotKnown,
)
from memserve.gateway.decisions import KEPT
from memserve.gateway.lineage.records import LineageRecords
from memserve.gateway.warm_pinned import WarmPinned
from memserve.memory.answers.store import KeptAnswers, module_key
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.uses import UseLedger
from memserve.policy.lineage.graph import (
    KnownMemory,
    KvFacts,
    LineageGraph,
    build,
    known_memory,
)
from memserve.policy.lineage.sources import Versions

DEPTH_DEFAULT, NODES_DEFAULT = 6, 200
ANSWERS_MAX = 50
"""Of each memory and each version: the newest."""
MEMORIES_MAX = 1024
"""That are looked up. What is behind the others is left out, and said so."""
LINK_STEPS_MAX = 4
DERIVED_MAX = 256
"""Memories that were derived from one. What was derived from more is left out, and said so."""
ANSWERED_MAX = 32
"""Memories whose answers are looked up."""
_ANSWER = re.compile(r"[0-9a-f]{32}")
_MEMORY = re.compile(r"(?P<namespace>[^/@]+)/(?P<memory_id>[^/@]+)(@(?P<version>[1-9][0-9]{0,8}))?")
RULE = "must be namespace/memory, namespace/memory@version, module@version, module@alias, or an answer's id"


@dataclass(frozen=True, slots=True)
class _Read:
    """What a graph is built of."""

    versions: Versions
    modules: Sequence[Module]
    memories: dict[tuple[str, str], KnownMemory | None]
    links: list[tuple[MemoryVersionName, MemoryVersionName]]
    cut: list[str]


class LineageReader:
    """Of all tenants: each sees only its own."""

    def __init__(
        self,
        records: LineageRecords,
        modules: ParametricMemory,
        texts: VectorMemory,
        answers: KeptAnswers,
        ledger: UseLedger,
        activation: ActivationMemory,
        warm: WarmPinned,
    ) -> None:
        self._records = records
        self._modules = modules
        self._texts = texts
        self._answers = answers
        self._ledger = ledger
        self._activation = activation
        self._warm = warm

    async def show(
        self,
        tenant: Tenant,
        of: str,
        *,
        up: bool = True,
        down: bool = True,
        depth: int = 0,
        limit: int = 0,
    ) -> Lineage:
        """of: as RULE says. depth, limit: 0 for the default.

        Raises InvalidField, MemoryNotFound, ModuleNotFound, ModuleNotLive, RequestNotKnown and
        RegistryUnavailable.
        """
        kind, _, rest = of.partition(":")
        depth, limit = depth or DEPTH_DEFAULT, limit or NODES_DEFAULT
        if kind == "answer" or _ANSWER.fullmatch(of):
            graph, root, cut = await self._of_answer(tenant, rest if kind == "answer" else of)
        elif kind == "memory" or "/" in of:
            graph, root, cut = await self._of_memory(tenant, rest if kind == "memory" else of)
        else:
            graph, root, cut = await self._of_module(tenant, rest if kind == "module" else of)
        found = graph.around(root, up=up, down=down, depth=depth, most=limit)
        return Lineage(found.root, found.nodes, found.edges, (*cut, *found.cut))

    async def _of_memory(self, tenant: Tenant, text: str) -> tuple[LineageGraph, str, list[str]]:
        match = _MEMORY.fullmatch(text)
        if match is None or not is_name(match["namespace"]) or not is_memory_id(match["memory_id"]):
            raise InvalidField("of", RULE)
        name = match["namespace"], match["memory_id"]
        known = (await self._records.memories(tenant.name, [name]))[name]
        modules = await self._records.modules(tenant.name)
        every = await self._records.versions(tenant.name, modules)
        version = int(match["version"] or 0)
        cut: list[str] = []
        derived = await self._derived(tenant, name, cut)
        below = {memory.name for _, memory in derived}
        own = every.made_of(
            lambda source: (
                source.memory in below or (source.memory == name and version in (0, source.version))
            )
        )
        if known is None and not own and not derived:
            raise MemoryNotFound(name[1])
        read = await self._around(tenant, Versions(own), modules, [name], derived)
        read.cut.extend(cut)
        names = [name, *sorted(below)][:ANSWERED_MAX]
        keys = [memory_key(tenant.name, *each) for each in names]
        answers = await self._answers_of(tenant, [*keys, *_keys(own)])
        facts = await self._kv(tenant, own)
        if known is not None and (uses := await self._uses(tenant, name)):
            told = f"of {uses} prompts, not told apart from the rest of the tenant's"
            facts.append(KvFacts("prompts", (f"memory:{name[0]}/{name[1]}",), told))
        graph = self._graph(read, answers, facts)
        root = graph.add_memory(*name, known)
        return graph, f"{root}@{version}" if version else root, read.cut

    async def _of_module(self, tenant: Tenant, text: str) -> tuple[LineageGraph, str, list[str]]:
        version = await self._modules.heaviest("of", tenant.name, text)
        modules = await self._records.modules(tenant.name)
        every = await self._records.versions(tenant.name, modules)
        down = every.with_compositions([version])
        own = _with_parents(every, down)
        read = await self._around(tenant, Versions(own), modules, [])
        answers = await self._answers_of(tenant, _keys(down))
        graph = self._graph(read, answers, await self._kv(tenant, down))
        return graph, f"module:{version.reference}", read.cut

    async def _of_answer(self, tenant: Tenant, request_id: str) -> tuple[LineageGraph, str, list[str]]:
        answer = await self._answers.get(tenant.name, request_id)
        if answer is None:
            raise RequestNotKnown(request_id, KEPT)
        modules = await self._records.modules(tenant.name)
        every = await self._records.versions(tenant.name, modules)
        used = [
            version for version in every.all if version.digest in {each.digest for each in answer.modules}
        ]
        passages = [(passage.namespace, passage.memory_id) for passage in answer.passages]
        read = await self._around(tenant, Versions(_with_parents(every, used)), modules, passages)
        return self._graph(read, [answer], []), f"answer:{request_id}", read.cut

    async def _around(
        self,
        tenant: Tenant,
        versions: Versions,
        modules: Sequence[Module],
        names: Sequence[tuple[str, str]],
        derived: Sequence[tuple[tuple[str, str], Memory]] = (),
    ) -> _Read:
        """Look up these memories and those of the versions, and what they were derived from.

        derived: memories, each with what it was derived from.
        """
        cut: list[str] = []
        wanted = [*names, *(name.memory for each in versions.all for name in memories_of(each.sources))]
        wanted = list(dict.fromkeys(wanted))
        if len(wanted) > MEMORIES_MAX:
            cut.append(f"{len(wanted) - MEMORIES_MAX} memories were not looked up")
            wanted = wanted[:MEMORIES_MAX]
        memories = await self._records.memories(tenant.name, wanted)
        links: list[tuple[MemoryVersionName, MemoryVersionName]] = []
        front = wanted
        for _ in range(LINK_STEPS_MAX):
            pairs = [
                (source, name)
                for name in front
                if (known := memories.get(name))
                for source in known.derived_from
            ]
            front = [source for source, _ in pairs if source not in memories]
            memories |= await self._records.memories(tenant.name, front[: MEMORIES_MAX - len(memories)])
            links += [
                (_version(source, memories), _version(name, memories))
                for source, name in pairs
                if source in memories
            ]
            if not front:
                break
        if front:
            cut.append(f"{len(front)} memories that others were derived from were not looked up")
        memories |= {memory.name: known_memory(memory) for _, memory in derived}
        links += [(_version(name, memories), _version(memory.name, memories)) for name, memory in derived]
        return _Read(versions, modules, memories, links, cut)

    async def _derived(
        self, tenant: Tenant, name: tuple[str, str], cut: list[str]
    ) -> list[tuple[tuple[str, str], Memory]]:
        """What was derived from a memory, from that, and so on, each with what it was derived from."""
        found: list[tuple[tuple[str, str], Memory]] = []
        seen = {name}
        front = [name]
        while front and len(seen) <= DERIVED_MAX:
            source = front.pop(0)
            for memory in await self._texts.derived_from(tenant.name, source):
                found.append((source, memory))
                if memory.name not in seen:
                    seen.add(memory.name)
                    front.append(memory.name)
        if front:
            cut.append(f"what was derived from {len(front)} memories was not looked up")
        return found

    def _graph(self, read: _Read, answers: Sequence[KeptAnswer], kv: Sequence[KvFacts]) -> LineageGraph:
        aliases: dict[str, list[str]] = {}
        for module in read.modules:
            for alias in module.aliases:
                for target in alias.targets:
                    aliases.setdefault(f"{module.name}@{target.version}", []).append(alias.name)
        return build(read.versions, read.memories, answers, kv, aliases, read.links)

    async def _answers_of(self, tenant: Tenant, keys: Sequence[str]) -> list[KeptAnswer]:
        found: dict[str, KeptAnswer] = {}
        for key in dict.fromkeys(keys):
            for answer in await self._answers.of_memory(tenant.name, key, ANSWERS_MAX):
                found.setdefault(answer.request_id, answer)
        return sorted(found.values(), key=lambda answer: answer.at_s, reverse=True)

    async def _kv(self, tenant: Tenant, versions: Sequence[ModuleVersion]) -> list[KvFacts]:
        """Beginnings that are kept warm at this gateway, and what Redis holds by each module version."""
        facts = [
            KvFacts(
                f"beginning/{','.join(kept.namespaces)}/{number}",
                tuple(f"memory:{name}" for name in kept.passages),
                f"{kept.tokens} tokens, kept warm in Redis",
            )
            for number, kept in enumerate(self._warm.kept_of(tenant.name), start=1)
        ]
        for digest in dict.fromkeys(version.digest for version in versions):
            try:
                chunks = await self._activation.module_chunks(tenant.name, digest)
            except CacheUnavailable:
                continue
            if chunks:
                made_of = tuple(f"module:{each.reference}" for each in versions if each.digest == digest)
                facts.append(KvFacts(f"module/{digest[:12]}", made_of, f"{chunks} chunks in Redis"))
        return facts

    async def _uses(self, tenant: Tenant, name: tuple[str, str]) -> int:
        counted = await self._ledger.read(tenant.name, [Memory(name[1], name[0], "", "", (), 0.0)])
        return sum(each.uses for each in counted.values())


def _version(name: tuple[str, str], memories: dict[tuple[str, str], KnownMemory | None]) -> MemoryVersionName:
    known = memories.get(name)
    return MemoryVersionName(*name, known.version if known is not None else 1)


def _keys(versions: Sequence[ModuleVersion]) -> list[str]:
    return [module_key(version.digest) for version in versions]


def _with_parents(every: Versions, versions: Sequence[ModuleVersion]) -> list[ModuleVersion]:
    """These, and what they were composed of."""
    digests = {version.digest for version in versions}
    front = list(versions)
    while front:
        parents = {parent for version in front for parent in version.parents} - digests
        digests |= parents
        front = [version for version in every.all if version.digest in parents]
    return [version for version in every.all if version.digest in digests]
