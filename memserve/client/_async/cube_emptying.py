"""What comes out of a cube: memories are compared and brought in, versions published, aliases set."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from memserve.client._async import _io
from memserve.client._async.memory_sets import AsyncMemorySetCalls
from memserve.client._async.modules import AsyncModuleCalls
from memserve.client.cube.lines import Known, Lines, memory_lines
from memserve.client.cube.planning import (
    REFUSALS_SHOWN,
    compare_memories,
    compare_version,
    points_there,
    reason_of,
    wanted_weights,
)
from memserve.client.cube.reading import CubeFile
from memserve.client.cube.values import (
    AliasOutcome,
    Cube,
    CubeAlias,
    CubeModule,
    CubeProgress,
    MemoriesOutcome,
    VersionOutcome,
)
from memserve.client.errors import CallFailed
from memserve.domain import Alias, ItemRefusal, Module, ModuleVersion

TOLD_EVERY = 256
TRIES = 8
PAUSE_MAX_S = 60.0
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS)
REFUSED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INVALID_ARGUMENT,
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an import is to do."""

    dry_run: bool
    aliases: bool
    """Set the aliases of the cube."""


class AsyncCubeEmptying:
    """Brings in one cube that was checked."""

    def __init__(
        self,
        memories: AsyncMemorySetCalls,
        modules: AsyncModuleCalls,
        archive: CubeFile,
        cube: Cube,
        progress: CubeProgress,
    ) -> None:
        self._memories = memories
        self._modules = modules
        self._archive = archive
        self._cube = cube
        self._progress = progress

    async def memories(self, dry_run: bool) -> MemoriesOutcome:
        """Bring in the memories, unless all of them are there."""
        outcome = await self._compared()
        if outcome.new and not dry_run:
            return await self._brought()
        return outcome

    async def module(
        self, module: CubeModule, here: Module | None, wishes: Wishes
    ) -> tuple[list[VersionOutcome], list[AliasOutcome]]:
        """Publish what is missing of a module, and set its aliases where that is wished.

        here: the gateway's module of that name.
        """
        outcomes, numbers = await self._versions(module.name, here, wishes.dry_run)
        aliases = [await self._alias(module.name, alias, numbers, here, wishes) for alias in module.aliases]
        return outcomes, aliases

    async def _compared(self) -> MemoriesOutcome:
        """What is to be done with the memories of the cube."""
        cube = self._cube
        if not cube.memories:
            return MemoriesOutcome()
        known = Known()
        here = {used.namespace for used in (await self._memories.memory_usage()).namespaces}
        if shared := sorted(here & cube.manifest.namespaces.keys()):
            reader = Lines()
            async with contextlib.aclosing(self._memories.export_memories(shared)) as lines:
                async for line in lines:
                    if (memory := reader.take(line.encode())) is not None:
                        known.add(memory)
                        if reader.memories % TOLD_EVERY == 0:
                            self._progress("comparing memories", reader.memories, 0)
            reader.end()
        return await _io.on_thread(compare_memories, memory_lines(self._archive.lines()), known)

    async def _brought(self) -> MemoriesOutcome:
        new, refused, total = 0, 0, self._cube.memories
        refusals: list[ItemRefusal] = []
        lines = (line.decode() for line in self._archive.lines())
        async with contextlib.aclosing(self._memories.import_memories(lines)) as results:
            async for result in results:
                if result.refusal is not None:
                    refused += 1
                    if len(refusals) < REFUSALS_SHOWN:
                        why = f"line {result.index + 1}: {result.refusal.message}"
                        refusals.append(replace(result.refusal, message=why))
                elif not result.skipped:
                    new += 1
                self._progress("importing memories", min(result.index, total), total)
        return MemoriesOutcome(new, max(0, total - new - refused), refused, tuple(refusals))

    async def _versions(
        self, module: str, here: Module | None, dry_run: bool
    ) -> tuple[list[VersionOutcome], dict[int, int | None]]:
        """Returns what became of the versions, and number in the cube to number at the gateway."""
        known = await self._modules.versions(module) if here is not None else []
        outcomes: list[VersionOutcome] = []
        numbers: dict[int, int | None] = {}
        for version in self._cube.versions:
            if version.module != module:
                continue
            outcome = compare_version(version, known)
            if outcome.is_new and not dry_run:
                published = await self._publish(version)
                known.insert(0, published)
                outcome = replace(outcome, here=published.reference)
            outcomes.append(outcome)
            numbers[version.version] = int(outcome.here.rpartition("@")[2]) if outcome.here else None
        return outcomes, numbers

    async def _publish(self, version: ModuleVersion) -> ModuleVersion:
        doing = f"publishing {version.reference}"
        with tempfile.TemporaryDirectory(prefix="memserve-cube-") as folder:
            await _io.on_thread(self._archive.extract, version, Path(folder))
            for attempt in range(TRIES):
                try:
                    return await self._modules.publish(
                        version.module,
                        folder,
                        expected_digest=version.digest,
                        sources=version.sources,
                        recipe=version.recipe,
                        notes=version.notes,
                        parents=version.parents,
                        progress=lambda done, total: self._progress(doing, done, total),
                    )
                except CallFailed as failed:
                    await _pause(failed, attempt)
        raise AssertionError("the last attempt raises")

    async def _alias(
        self,
        module: str,
        alias: CubeAlias,
        numbers: Mapping[int, int | None],
        here: Module | None,
        wishes: Wishes,
    ) -> AliasOutcome:
        reference = f"{module}@{alias.alias.name}"
        known = here.aliases if here is not None else ()
        now = next((entry for entry in known if entry.name == alias.alias.name), None)
        weights = wanted_weights(alias, numbers)
        if isinstance(weights, AliasOutcome):
            return replace(weights, reference=reference)
        if weights is not None and points_there(now, weights):
            return AliasOutcome(reference, "unchanged")
        if not wishes.aliases:
            return AliasOutcome(reference, "left", "it was not asked for")
        if wishes.dry_run or weights is None:
            return AliasOutcome(reference, "set")
        for attempt in range(TRIES):
            try:
                await self._point(module, alias.alias.name, now, weights)
                return AliasOutcome(reference, "set")
            except CallFailed as failed:
                if failed.code in REFUSED:
                    # An attempt whose answer was lost may have set it.
                    if attempt and await self._is_set(module, alias.alias.name, weights):
                        return AliasOutcome(reference, "set")
                    return AliasOutcome(reference, "refused", failed.detail)
                await _pause(failed, attempt)
        raise AssertionError("the last attempt raises")

    async def _is_set(self, module: str, alias: str, weights: Mapping[int, float]) -> bool:
        aliases = (await self._modules.get(module)).aliases
        return any(entry.name == alias and points_there(entry, weights) for entry in aliases)

    async def _point(self, module: str, alias: str, now: Alias | None, weights: Mapping[int, float]) -> None:
        """Every version goes through the gate first, and one with the whole traffic must pass."""
        reason = reason_of(self._cube)
        revision = now.revision if now is not None else 0

        def asking(done: int, total: int) -> None:
            self._progress(f"asking the probes of {module}@{alias}", done, total)

        if len(weights) == 1:
            [number] = weights
            await self._modules.promote(
                module, number, alias=alias, expected_revision=revision, reason=reason, progress=asking
            )
            return
        for number in weights:
            await self._modules.gate(module, number, progress=asking)
        await self._modules.split(module, weights, alias=alias, expected_revision=revision, reason=reason)


async def _pause(failed: CallFailed, attempt: int) -> None:
    """Wait before the next attempt. Raises `failed` again where it is the last one, or would change
    nothing.
    """
    passes = failed.code in PASSING or failed.retry_after_s is not None
    if not passes or attempt == TRIES - 1:
        raise failed
    await _io.sleep(min(PAUSE_MAX_S, max(1.0, failed.retry_after_s or 0.0)))
