"""A LoRA that is trained on: the memories that it was made of, and what it must still answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memserve.domain import Distillation, ModuleKind, ModuleVersion, Tenant
from memserve.domain.lineage import memories_of, source_of
from memserve.errors import InvalidField
from memserve.gateway.modules.chosen_memories import ChosenMemories, as_many_as_fit
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.probes import Probes, parse_probes
from memserve.policy.modules.gate import strictest
from memserve.policy.modules.kept_knowledge import what_it_knew


@dataclass(frozen=True, slots=True)
class Parent:
    """The version that is trained on."""

    version: ModuleVersion
    sources: tuple[str, ...]
    """Of the memories that are asked again."""
    texts: tuple[str, ...]
    """Theirs."""


class Continuing:
    """Finds what a new version needs of the one that it goes on from."""

    def __init__(self, memory: ParametricMemory, memories: ChosenMemories) -> None:
        self._memory = memory
        self._memories = memories

    async def parent(self, tenant: Tenant, asked: Distillation) -> Parent | None:
        """None: the distillation begins a new module.

        Memories of the parent that are gone or have changed since are not asked again. Raises InvalidField
        for a version that cannot be trained on, ModuleNotFound, OtherBase.
        """
        if not asked.from_reference:
            return None
        version = self._memory.served(
            await self._memory.heaviest("from_reference", tenant.name, asked.from_reference)
        )
        if version.kind != ModuleKind.LORA or asked.kind != ModuleKind.LORA:
            raise InvalidField(
                "from_reference", f"{version.reference} is of kind {version.kind}; only a LoRA is trained on"
            )
        named = memories_of(version.sources)
        if not asked.recipe.old_share:
            return Parent(version, (), ())
        kept = as_many_as_fit(await self._memories.unchanged(tenant, named, time.time()))
        if not kept:
            raise InvalidField(
                "from_reference",
                f"of the memories that {version.reference} was made of, none is there unchanged; without "
                "them it forgets. recipe.old_share 0 trains it on all the same",
            )
        sources = tuple(source_of(each) for each, _ in kept)
        return Parent(version, sources, tuple(text for _, text in kept))

    async def ask_what_it_knew(self, tenant: Tenant, parent: Parent, folder: Path) -> None:
        """Have the gate of the module in the folder ask for what the parent knew. Raises InvalidField."""
        probes = await self._memory.probes(tenant.name, parent.version)
        if probes is None:
            return
        gate = parent.version.gate
        measured = {figure.name: figure.module for figure in gate.figures} if gate else {}
        kept = what_it_knew(parent.version.module, parent.version.version, probes.sets, measured)
        file = folder / PROBES_FILE

        def write() -> None:
            own = parse_probes(file.read_bytes())
            asked = Probes((*own.sets, *kept), strictest([own.thresholds, probes.thresholds]))
            file.write_bytes(parse_probes(asked.canonical()).canonical())

        await self._memory.files.run(tenant.name, partial(write))
