"""What is to be erased, and what was made of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from memserve.domain import AliasChange, Memory, MemoryState, Module, ModuleVersion
from memserve.domain.lineage import MemoryVersionName, MovedAlias, Retraining
from memserve.errors import InvalidField, MemoryNotFound, NamespaceNotFound
from memserve.gateway.lineage.records import LineageRecords
from memserve.memory.erasures.records import RetiredVersion
from memserve.memory.modules.registry.aliases import AliasRef
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.texts.memory import VectorMemory
from memserve.policy.lineage.graph import KnownMemory
from memserve.policy.lineage.retiring import deletion_order, moved_alias, retrainings
from memserve.policy.lineage.sources import Versions

DERIVED_MAX = 256
HISTORY_PAGE, HISTORY_MAX = 200, 1000


@dataclass(frozen=True, slots=True)
class Subject:
    """A memory with those that were derived from it, or a whole namespace."""

    namespace: str
    memories: tuple[tuple[str, str], ...] = ()
    """Namespace and id: those that were derived first. Empty: all of the namespace."""

    def has(self, name: MemoryVersionName) -> bool:
        return name.memory in self.memories if self.memories else name.namespace == self.namespace


@dataclass(frozen=True, slots=True)
class Plan:
    """What an erasure will do."""

    subject: Subject
    superseded: tuple[tuple[str, str], ...] = ()
    """Memories whose place a derived one had taken: they come back."""
    replaced: tuple[tuple[str, str], ...] = ()
    """Memories whose place the erased one itself had taken: they keep their texts."""
    retired: tuple[ModuleVersion, ...] = ()
    aliases: tuple[MovedAlias, ...] = ()
    retraining: tuple[Retraining, ...] = ()
    modules: tuple[Module, ...] = field(default=())

    @property
    def versions(self) -> tuple[RetiredVersion, ...]:
        return tuple(
            RetiredVersion(each.module, each.version, each.digest, str(each.kind), each.probes_digest)
            for each in self.retired
        )


def taken_by(memory: Memory) -> tuple[str, str] | None:
    """Namespace and id of the memory that has taken its place. None: nothing has."""
    by = memory.superseded_by
    if memory.state is not MemoryState.SUPERSEDED or by is None:
        return None
    return by.namespace or memory.namespace, by.memory_id


class ErasurePlans:
    """Reads what an erasure reaches. Changes nothing."""

    def __init__(self, records: LineageRecords, store: ModuleStore, texts: VectorMemory) -> None:
        self._records = records
        self._store = store
        self._texts = texts

    async def of_memory(self, tenant: str, namespace: str, memory_id: str, now_s: float) -> Plan:
        """Raises NamespaceNotFound, MemoryNotFound, and InvalidField where too much was derived from it."""
        erased = (await self._texts.history(tenant, namespace, memory_id)).current
        derived = await self._derived(tenant, (namespace, memory_id))
        if len(derived) > DERIVED_MAX:
            raise InvalidField(
                "memory_id", f"has more than {DERIVED_MAX} memories derived from it; erase those first"
            )
        names = (*(memory.name for memory in reversed(derived)), (namespace, memory_id))
        return await self._plan(tenant, Subject(namespace, names), [*derived, erased], now_s)

    async def of_namespace(self, tenant: str, namespace: str, now_s: float) -> Plan:
        """What was derived from its memories in other namespaces is not looked for."""
        return await self._plan(tenant, Subject(namespace), [], now_s)

    async def derived_since(
        self, tenant: str, known: Sequence[tuple[str, str]]
    ) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        """Memories that were derived meanwhile from those that are known, which may be gone already: the last
        derived first. And what they have taken the place of.
        """
        more = await self._derived(tenant, *known)
        names = (*(memory.name for memory in reversed(more)), *known)
        back, _ = await self._superseded(tenant, Subject("", tuple(names)), more)
        return tuple(names[: len(more)]), back

    async def memories(
        self, tenant: str, names: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], KnownMemory | None]:
        """By namespace and id. None: there is no such memory."""
        return await self._records.memories(tenant, names)

    async def modules(self, tenant: str) -> list[Module]:
        return await self._records.modules(tenant)

    async def versions_of(
        self, tenant: str, subject: Subject, digests: Collection[str] = ()
    ) -> tuple[list[Module], Versions, list[ModuleVersion]]:
        """All modules and versions of the tenant, and the versions that know the subject.

        digests: of contents that know it, whose versions may be gone already.
        """
        modules = await self._records.modules(tenant)
        every = await self._records.versions(tenant, modules)
        return modules, every, every.made_of(subject.has, digests)

    async def moved(
        self, tenant: str, modules: Sequence[Module], every: Versions, retired: Collection[ModuleVersion]
    ) -> list[MovedAlias]:
        """Where the aliases go that point at one of the retired versions."""
        moved = []
        for module in modules:
            numbers = {version.version for version in retired if version.module == module.name}
            own = [version for version in every.all if version.module == module.name]
            for alias in module.aliases if numbers else ():
                history = await self._history(AliasRef(tenant, module.name, alias.name))
                if (move := moved_alias(module.name, alias, numbers, own, history)) is not None:
                    moved.append(move)
        return moved

    async def _plan(self, tenant: str, subject: Subject, derived: Sequence[Memory], now_s: float) -> Plan:
        """derived: what is erased, with the links that it has."""
        modules, every, retired = await self.versions_of(tenant, subject)
        superseded, replaced = await self._superseded(tenant, subject, derived)
        return Plan(
            subject=subject,
            superseded=superseded,
            replaced=replaced,
            retired=tuple(deletion_order(retired)),
            aliases=tuple(await self.moved(tenant, modules, every, retired)),
            retraining=tuple(retrainings(retired, subject.has, now_s)),
            modules=tuple(modules),
        )

    async def _derived(self, tenant: str, *names: tuple[str, str]) -> list[Memory]:
        """What was derived from memories, from that, and so on: the nearest first. A little more than
        DERIVED_MAX where there are more.
        """
        found: dict[tuple[str, str], Memory] = {}
        front = list(names)
        while front:
            reached: dict[tuple[str, str], Memory] = {}
            for each in front:
                for memory in await self._texts.derived_from(tenant, each):
                    if memory.name not in found and memory.name not in names:
                        reached.setdefault(memory.name, memory)
                if len(found) + len(reached) > DERIVED_MAX:
                    return [*found.values(), *reached.values()]
            found |= reached
            front = list(reached)
        return list(found.values())

    async def _superseded(
        self, tenant: str, subject: Subject, erased: Sequence[Memory]
    ) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        """What is superseded by one that is erased: by a derived one, and by the memory itself."""
        linked = [
            (link.namespace or memory.namespace, link.memory_id) for memory in erased for link in memory.links
        ]
        gone = {memory.name for memory in erased}
        back: list[tuple[str, str]] = []
        replaced: list[tuple[str, str]] = []
        for name in dict.fromkeys(linked):
            if name in subject.memories:
                continue
            try:
                memory = (await self._texts.history(tenant, *name)).current
            except (MemoryNotFound, NamespaceNotFound):
                continue
            by = taken_by(memory)
            if by in gone:
                (replaced if by == subject.memories[-1] else back).append(name)
        return tuple(back), tuple(replaced)

    async def _history(self, ref: AliasRef) -> list[AliasChange]:
        """The newest HISTORY_MAX changes, oldest first."""
        changes: list[AliasChange] = []
        after = 0
        while page := await self._store.history(ref, after=after, limit=HISTORY_PAGE):
            changes = [*changes, *page][-HISTORY_MAX:]
            after = page[-1].revision
        return changes
