"""Makes a new module version out of others, on a worker's Ray."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memserve.domain import ModuleKind, ModuleVersion, Tenant
from memserve.domain.worker_calls import (
    ComposedPiece,
    ComposeProgress,
    CompositionRequest,
    WorkerFailure,
    WrongRequest,
)
from memserve.errors import InvalidField, InvalidModule, NoWorker
from memserve.gateway.modules.deletion import ModuleDeletion
from memserve.gateway.modules.progress import Step
from memserve.gateway.modules.trial import ModuleTrial
from memserve.gateway.workers.picking import least_loaded, workers_for
from memserve.gateway.workers.pool import WorkerPool
from memserve.memory.answers.store import module_key
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.memory import ParametricMemory, Publication
from memserve.memory.modules.probes import Probes, inherited_probes


@dataclass(frozen=True, slots=True)
class Composition:
    """A new version from others. rank, density: 0 for the method's own."""

    name: str
    method: str
    """linear, cat, svd, ties, dare, core or compress."""
    parents: tuple[tuple[str, float], ...]
    """References and weights."""
    rank: int = 0
    density: float = 0.0
    seed: int = 0
    notes: str = ""


class ModuleComposition:
    """Composes LoRAs, and publishes the result as any version is published."""

    def __init__(
        self,
        memory: ParametricMemory,
        pool: WorkerPool,
        trial: ModuleTrial,
        erasures: KeptErasures,
        deletion: ModuleDeletion,
    ) -> None:
        self._memory = memory
        self._pool = pool
        self._trial = trial
        self._erasures = erasures
        self._deletion = deletion

    async def compose(
        self, tenant: Tenant, composition: Composition
    ) -> AsyncGenerator[Step | ModuleVersion, None]:
        """The new version comes last. At the gate it is asked what its parents are asked.

        Raises InvalidModule, InvalidField, ModuleNotFound, NoWorker.
        """
        begun_s = time.time()
        parents = await self._parents(tenant, composition)
        await self._memory.check_new_version("name", tenant.name, composition.name, ModuleKind.LORA)
        request = CompositionRequest(
            method=composition.method,
            parents=tuple(
                (parent.digest, weight)
                for parent, (_, weight) in zip(parents, composition.parents, strict=True)
            ),
            rank=composition.rank,
            density=composition.density,
            seed=composition.seed,
        )
        with tempfile.TemporaryDirectory(prefix="memserve-compose-") as scratch:
            folder, recipe = Path(scratch), ""
            async with aclosing(self._composed(tenant, request, folder)) as events:
                async for event in events:
                    if isinstance(event, Step):
                        yield event
                    else:
                        recipe = event
            await self._inherit_probes(tenant, parents, folder)
            publication = Publication(
                name=composition.name,
                kind=ModuleKind.LORA,
                files=(),
                recipe=recipe,
                notes=composition.notes,
                sources=tuple(parent.reference for parent in parents),
                parents=tuple(parent.digest for parent in parents),
            )
            await self._require_kept(tenant, parents, begun_s)
            version = await self._memory.publish(
                tenant, publication, folder, partial(self._trial.moves_logits, tenant.name)
            )
            try:
                # It takes seconds to publish a version.
                await self._require_kept(tenant, parents, begun_s)
            except InvalidField:
                await self._deletion.delete(tenant, version.module, version.version)
                raise
            yield version

    async def _require_kept(self, tenant: Tenant, parents: Sequence[ModuleVersion], begun_s: float) -> None:
        """Raises InvalidField where a memory was erased since then that a parent was made of."""
        keys = [module_key(parent.digest) for parent in parents]
        for erased in await self._erasures.erased_since(tenant.name, keys, begun_s):
            number = keys.index(erased)
            raise InvalidField(
                f"parents[{number}].reference",
                f"a memory that {parents[number].reference} was made of was erased while it was composed",
            )

    async def _parents(self, tenant: Tenant, composition: Composition) -> list[ModuleVersion]:
        parents = [
            self._memory.served(
                await self._memory.heaviest(f"parents[{number}].reference", tenant.name, reference)
            )
            for number, (reference, _) in enumerate(composition.parents)
        ]
        for number, parent in enumerate(parents):
            if parent.kind != ModuleKind.LORA:
                raise InvalidField(
                    f"parents[{number}].reference",
                    f"{parent.reference} is of kind {parent.kind}; only LoRAs compose",
                )
        return parents

    async def _composed(
        self, tenant: Tenant, request: CompositionRequest, folder: Path
    ) -> AsyncGenerator[Step | str, None]:
        """Write the result's files into the folder. Yields the progress, and the recipe last."""
        worker = least_loaded(workers_for(self._pool, tenant.name))
        try:
            with worker.calling() as calls:
                async with aclosing(calls.compose(request)) as events:
                    async for event in events:
                        if isinstance(event, ComposeProgress):
                            yield Step(event.done, event.total)
                        elif isinstance(event, ComposedPiece):
                            append = partial(_append, folder / Path(event.file_name).name, event.content)
                            await self._memory.files.run(tenant.name, append)
                        else:
                            yield event.recipe
        except WrongRequest as error:
            raise InvalidModule("composition", error.detail) from None
        except WorkerFailure as error:
            raise NoWorker(error.detail) from None

    async def _inherit_probes(self, tenant: Tenant, parents: Sequence[ModuleVersion], folder: Path) -> None:
        """Write the parents' probes into the folder, each under a name that tells it from the others."""
        times = Counter(parent.module for parent in parents)
        named: list[tuple[str, Probes]] = []
        for parent in parents:
            probes = await self._memory.probes(tenant.name, parent)
            if probes is not None:
                alone = times[parent.module] == 1
                named.append((parent.module if alone else f"{parent.module}.{parent.version}", probes))
        inherited = inherited_probes(named)
        if inherited is not None:
            write = partial((folder / PROBES_FILE).write_bytes, inherited.canonical())
            await self._memory.files.run(tenant.name, write)


def _append(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)
