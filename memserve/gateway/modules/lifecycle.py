"""What `ModuleService` does with workers: modules are tried, gated, promoted, loaded, composed, and removed
when nothing uses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from memserve.domain import (
    Alias,
    GateReport,
    ModuleKind,
    ModulePlace,
    ModuleVersion,
    Tenant,
    TrafficShare,
    WorkerResidency,
)
from memserve.errors import (
    AliasConflict,
    CacheUnavailable,
    GateRefused,
    InvalidField,
    InvalidModule,
    MemserveError,
    NoWorker,
    VersionInUse,
)
from memserve.gateway.modules.gate import Gate
from memserve.gateway.pipeline import LOST, Pipeline
from memserve.gateway.workers.pool import PooledWorker, place_of
from memserve.memory.modules.blobs.store import CONDEMNED_S
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.memory import Publication
from memserve.memory.modules.probes import Probes, inherited_probes
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.policy.modules.gate import failing

log = logging.getLogger("memserve.gateway.modules.lifecycle")

T = TypeVar("T")
LOAD_TIMEOUT_S = 120.0
# A request that was resolved before a version is held reaches its worker, and the worker's next word this
# gateway, in less.
SETTLE_S = 1.0
HOLD_S = 30.0
PLACES_TIMEOUT_S = 5.0
# Of a load that a promotion waits for; a worker that takes longer loads when it is asked to answer.
SWAP_TIMEOUT_S = 30.0
# Of an alias's traffic, for versions that have not passed the gate.
UNGATED_SHARE_MAX = 0.5
# Characters of what a worker says why it has not loaded a module.
REFUSAL_MAX = 1000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Step:
    """How far long work is."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Composition:
    """A new version from others. method: linear, cat, svd, ties, dare, core or compress. rank, density: 0 for
    the method's own.
    """

    name: str
    method: str
    parents: tuple[tuple[str, float], ...]
    rank: int = 0
    density: float = 0.0
    seed: int = 0
    notes: str = ""


class Modules:
    """Module versions of any tenant, on this gateway's workers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._memory = pipeline.modules
        self._store = pipeline.modules.store
        instruction = pipeline.settings.recall_instruction
        self._gate = Gate(
            pipeline.pool,
            pipeline.tokenizer,
            pipeline.tokenizing,
            pipeline.model.max_context_tokens,
            instruction,
        )

    async def moves_logits(self, tenant: str, kind: ModuleKind, digest: str) -> bool | None:
        """Whether the module changes the canary prompts' logits on a worker; None where none can say.

        Raises InvalidModule when the worker's engine refuses it.
        """
        for worker in self._pipeline.pool.open_to(tenant, time.monotonic()):
            try:
                tried = await worker.stub.TryModule(
                    pb.TryModuleRequest(digest=digest, kind=kind), timeout=LOAD_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise InvalidModule(
                        "module", f"a worker's engine refuses it: {error.details()}"
                    ) from None
                log.warning(
                    "worker %s could not try %s: %s", worker.lease.worker_id, digest[:12], error.details()
                )
                if error.code() in LOST:
                    self._pipeline.pool.lost(worker)
                continue
            return bool(tried.largest_change > 0)
        return None

    async def run_gate(
        self, tenant: Tenant, name: str, number: int
    ) -> AsyncGenerator[Step | GateReport, None]:
        """Ask the version's probes; the report comes last and is kept with the version.

        Raises ModuleNotFound, OtherBase, InvalidModule, NoWorker.
        """
        await self._store.check_audit(tenant.name)
        version = self._memory.served(await self._memory.version(tenant.name, name, number))
        async with aclosing(_with_steps(lambda progress: self._gated(tenant, version, progress))) as events:
            async for event in events:
                yield event

    async def promote(
        self,
        tenant: Tenant,
        name: str,
        number: int,
        alias: str,
        *,
        expected_revision: int | None,
        force: bool,
        reason: str,
    ) -> AsyncGenerator[Step | Alias, None]:
        """Gate the version where it has not passed, load it on every worker, then point the alias at it. The
        alias comes last.

        Raises GateRefused, AliasConflict, ModuleNotFound, OtherBase, InvalidModule, NoWorker.
        """
        await self._store.check_audit(tenant.name)
        version = self._memory.served(await self._memory.version(tenant.name, name, number))
        await self._expect(tenant, name, alias, expected_revision)
        report = version.gate
        if report is None or not report.passed or report.probes_digest != version.probes_digest:
            async with aclosing(self.run_gate(tenant, name, number)) as events:
                async for event in events:
                    if isinstance(event, Step):
                        yield event
                    else:
                        report = event
        assert report is not None
        if not report.passed and not force:
            raise GateRefused(version.reference, failing(report.figures))
        await self._load_for_traffic(version)
        if not report.passed:
            reason = f"{reason} (forced: {failing(report.figures)})".strip()
        change = Change(tenant.principal, reason, expected_revision, forced=not report.passed)
        yield await self._store.set_alias(
            AliasRef(tenant.name, name, alias), (TrafficShare(number, 1.0),), change, action="promote"
        )

    async def split(
        self,
        tenant: Tenant,
        name: str,
        alias: str,
        targets: Sequence[TrafficShare],
        *,
        expected_revision: int | None,
        reason: str,
    ) -> Alias:
        """Share the alias's traffic. Versions that have not passed the gate are watched from then on: see
        `canary.py`.

        Raises AliasConflict, ModuleNotFound, OtherBase, NoWorker, and InvalidField when such versions would
        have more than half of it.
        """
        await self._store.check_audit(tenant.name)
        versions = [
            self._memory.served(await self._memory.version(tenant.name, name, target.version))
            for target in targets
        ]
        await self._expect(tenant, name, alias, expected_revision)
        await asyncio.gather(*(self._load_for_traffic(version) for version in versions))
        return await self._store.set_alias(
            AliasRef(tenant.name, name, alias),
            targets,
            Change(tenant.principal, reason, expected_revision),
            action="split",
            ungated_share_max=UNGATED_SHARE_MAX,
        )

    async def rollback(
        self, tenant: Tenant, name: str, alias: str, *, expected_revision: int | None, reason: str
    ) -> Alias:
        """Point the alias back, and have the workers load what it points at now, without waiting for them.

        Raises NothingToRollBack, AliasConflict, ModuleNotFound.
        """
        changed = await self._store.rollback(
            AliasRef(tenant.name, name, alias), Change(tenant.principal, reason, expected_revision)
        )
        # Requests load it too: this only spares the first of them the wait.
        background = self._pipeline.background
        if not background.is_full:
            background.begin(
                f"loading what {name}@{alias} was rolled back to", self._load_targets(tenant, name, changed)
            )
        return changed

    async def _load_targets(self, tenant: Tenant, name: str, alias: Alias) -> None:
        for target in alias.targets:
            await self.load(
                await self._memory.version(tenant.name, name, target.version),
                pin=False,
                timeout_s=SWAP_TIMEOUT_S,
            )

    async def delete(self, tenant: Tenant, name: str, number: int) -> int:
        """Remove a version that nothing uses, its KV, and its content where no other version has the same.

        Returns the chunks of KV that were freed. Raises VersionInUse, ModuleNotFound.
        """
        version = await self._memory.version(tenant.name, name, number)
        # A caller who goes away leaves nothing half done.
        return await asyncio.shield(
            self._pipeline.background.begin(f"deleting {version.reference}", self._delete(tenant, version))
        )

    async def _delete(self, tenant: Tenant, version: ModuleVersion) -> int:
        name, number = version.module, version.version
        # Where another version has the same content it stays, and requests that use it are in no danger.
        if not await self._store.other_references(tenant.name, name, number):
            self._refuse_while_used(version)
        token = uuid.uuid4().hex
        await self._store.hold_version(tenant.name, name, number, token, HOLD_S)
        try:
            if not await self._store.other_references(tenant.name, name, number):
                await asyncio.sleep(SETTLE_S)
                self._refuse_while_used(version)
            _, unreferenced, tenants_last = await self._store.delete_version(
                tenant.name, tenant.principal, name, number, token=token
            )
        except BaseException:
            # A mark that is not taken off runs out.
            with contextlib.suppress(MemserveError):
                await self._store.release_version(tenant.name, name, number, token)
            raise
        removed = 0
        if tenants_last:
            try:
                removed, _ = await self._pipeline.activation.evict_module(tenant.name, version.digest)
            except CacheUnavailable as error:
                log.warning("KV of the removed %s stays until it expires: %s", version.reference, error)
        if unreferenced:
            await self._ask_workers(
                version.digest, self._ready(""), lambda worker: self._unload_on(worker, version, forget=True)
            )
            await self._remove_content(version.digest, token)
        return removed

    def _refuse_while_used(self, version: ModuleVersion) -> None:
        """Raises VersionInUse."""
        if user := self._user_of(version.digest):
            raise VersionInUse(version.reference, user)

    async def load(
        self, version: ModuleVersion, *, pin: bool, worker_id: str = "", timeout_s: float = LOAD_TIMEOUT_S
    ) -> list[WorkerResidency]:
        """Have the workers load a version, each in its own time; one that cannot says why.

        Raises NoWorker when a worker is named that is not ready.
        """
        request = pb.LoadModuleRequest(digest=version.digest, kind=version.kind, pin=pin)

        async def load_on(worker: PooledWorker) -> ModulePlace:
            return place_of((await worker.stub.LoadModule(request, timeout=timeout_s)).place)

        return await self._ask_workers(version.digest, self._named(worker_id), load_on)

    async def _expect(self, tenant: Tenant, name: str, alias: str, revision: int | None) -> None:
        """Raises AliasConflict now, before long work; the change itself looks again."""
        if revision is None:
            return
        module = await self._store.module(tenant.name, name)
        present = next(
            (
                known.revision
                for known in (module.aliases if module is not None else ())
                if known.name == alias
            ),
            0,
        )
        if present != revision:
            raise AliasConflict(name, alias, present, revision)

    async def _load_for_traffic(self, version: ModuleVersion) -> None:
        """Raises NoWorker when no worker could load it: an alias that pointed at it would answer nothing."""
        found = await self.load(version, pin=False, timeout_s=SWAP_TIMEOUT_S)
        if all(residency.refusal for residency in found):
            refusals = "; ".join(f"{residency.worker_id}: {residency.refusal}" for residency in found)
            raise NoWorker(f"none can load {version.reference}: {refusals}" if found else "none is ready")

    async def unload(self, version: ModuleVersion, worker_id: str) -> list[WorkerResidency]:
        """As `load`. What another version with the same content is preloaded for stays."""
        kept = {
            preload.worker_id for preload in await self._store.preloads() if preload.digest == version.digest
        }
        workers = (
            []
            if "" in kept
            else [worker for worker in self._named(worker_id) if worker.lease.worker_id not in kept]
        )
        return await self._ask_workers(
            version.digest, workers, lambda worker: self._unload_on(worker, version, forget=False)
        )

    async def residency(self, version: ModuleVersion) -> list[WorkerResidency]:
        """Where each ready worker has the version, by its own word."""
        request = pb.GetModulePlacesRequest(digests=[version.digest])

        async def ask(worker: PooledWorker) -> ModulePlace:
            told = (await worker.stub.GetModulePlaces(request, timeout=PLACES_TIMEOUT_S)).modules
            module = next(
                (module for module in told if module.digest == version.digest), pb.ModuleResidency()
            )
            return place_of(module.place)

        return await self._ask_workers(version.digest, self._ready(""), ask)

    async def compose(
        self, tenant: Tenant, composition: Composition
    ) -> AsyncGenerator[Step | ModuleVersion, None]:
        """Have a worker's Ray make a new version from others; it comes last, as any published version does.

        It is asked at the gate what its parents are asked. Raises InvalidModule, ModuleNotFound, NoWorker.
        """
        parents = [
            (
                self._memory.served(
                    await self._memory.heaviest(f"parents[{number}].reference", tenant.name, reference)
                ),
                weight,
            )
            for number, (reference, weight) in enumerate(composition.parents)
        ]
        for number, (parent, _) in enumerate(parents):
            if parent.kind is not ModuleKind.LORA:
                raise InvalidField(
                    f"parents[{number}].reference",
                    f"{parent.reference} is of kind {parent.kind}; only LoRAs compose",
                )
        await self._memory.check_new_version("name", tenant.name, composition.name, ModuleKind.LORA)
        request = pb.ComposeModuleRequest(
            method=composition.method,
            parents=[pb.ComposeParent(digest=parent.digest, weight=weight) for parent, weight in parents],
            rank=composition.rank,
            density=composition.density,
            seed=composition.seed,
        )
        worker = self._least_loaded(tenant.name)
        with tempfile.TemporaryDirectory(prefix="memserve-compose-") as scratch:
            folder = Path(scratch)
            recipe = ""
            try:
                async for event in worker.stub.ComposeModule(request):
                    match event.WhichOneof("event"):
                        case "progress":
                            yield Step(event.progress.done, event.progress.total)
                        case "file":
                            await self._memory.files.run(
                                tenant.name,
                                partial(
                                    _append, folder / Path(event.file.file_name).name, event.file.content
                                ),
                            )
                        case "recipe":
                            recipe = event.recipe
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise InvalidModule("composition", error.details() or "refused") from None
                raise NoWorker(error.details() or error.code().name) from None
            probes = inherited_probes(
                [
                    (name, found)
                    for name, found in await self._probes_of(tenant, [parent for parent, _ in parents])
                    if found is not None
                ]
            )
            if probes is not None:
                await self._memory.files.run(
                    tenant.name, partial((folder / PROBES_FILE).write_bytes, probes.canonical())
                )
            publication = Publication(
                name=composition.name,
                kind=ModuleKind.LORA,
                files=(),
                recipe=recipe,
                notes=composition.notes,
                sources=tuple(parent.reference for parent, _ in parents),
                parents=tuple(parent.digest for parent, _ in parents),
            )
            yield await self._memory.publish(
                tenant, publication, folder, partial(self.moves_logits, tenant.name)
            )

    async def _remove_content(self, digest: str, token: str) -> None:
        """What is left behind when this fails, a sweep finds."""
        try:
            if await self._store.block_publishing(digest, token, CONDEMNED_S):
                try:
                    await self._memory.files.run_own(partial(self._memory.blobs.delete, digest))
                finally:
                    await self._store.allow_publishing(digest, token)
        except MemserveError as error:
            log.warning("the content of %s stays until the next sweep: %s", digest[:12], error)

    async def _probes_of(self, tenant: Tenant, parents: Sequence[ModuleVersion]) -> list[tuple[str, Probes]]:
        """Of the parents that have any, with a name that tells each from the others."""
        times = Counter(parent.module for parent in parents)
        found = [
            (
                parent.module if times[parent.module] == 1 else f"{parent.module}.{parent.version}",
                await self._memory.probes(tenant.name, parent),
            )
            for parent in parents
        ]
        return [(name, probes) for name, probes in found if probes is not None]

    async def ask_canary(self, tenant: Tenant, version: ModuleVersion) -> GateReport:
        """As `run_gate`, again and again: the report is kept when the verdict changes."""
        return await self._gated(tenant, version, lambda done, total: None, once=True)

    async def _gated(
        self, tenant: Tenant, version: ModuleVersion, progress: Progress, *, once: bool = False
    ) -> GateReport:
        if not version.moves_logits:
            moved = await self.moves_logits(tenant.name, version.kind, version.digest)
            if moved is None:
                raise NoWorker("the gate needs one")
            if not moved:
                raise InvalidModule(
                    "module",
                    f"{version.reference} changes nothing: the canary prompts get the same logits with it",
                )
            await self._store.keep_moves_logits(tenant.name, version.module, version.version)
        report = await self._gate.run(
            tenant, version, await self._memory.probes(tenant.name, version), progress=progress
        )
        known = version.gate
        if (
            not once
            or known is None
            or (known.passed, known.probes_digest) != (report.passed, report.probes_digest)
        ):
            await self._store.keep_gate(
                tenant.name, tenant.principal, version.module, version.version, report
            )
        return report

    def _user_of(self, digest: str) -> str:
        """Who uses the module now, for a person; empty: nobody."""
        if self._pipeline.using[digest]:
            return "a request"
        for worker in self._pipeline.pool.workers.values():
            if digest in worker.state.used_modules:
                return f"a request on worker {worker.lease.worker_id}"
        return ""

    async def _unload_on(self, worker: PooledWorker, version: ModuleVersion, *, forget: bool) -> ModulePlace:
        request = pb.UnloadModuleRequest(digest=version.digest, kind=version.kind, forget=forget)
        return place_of((await worker.stub.UnloadModule(request, timeout=LOAD_TIMEOUT_S)).place)

    async def _ask_workers(
        self,
        digest: str,
        workers: Sequence[PooledWorker],
        ask: Callable[[PooledWorker], Awaitable[ModulePlace]],
    ) -> list[WorkerResidency]:
        async def told(worker: PooledWorker) -> WorkerResidency:
            try:
                return WorkerResidency(worker.lease.worker_id, await ask(worker))
            except grpc.aio.AioRpcError as error:
                refusal = (error.details() or error.code().name)[:REFUSAL_MAX]
                return WorkerResidency(worker.lease.worker_id, worker.place_of(digest), refusal)

        return sorted(
            await asyncio.gather(*(told(worker) for worker in workers)),
            key=lambda residency: residency.worker_id,
        )

    def _ready(self, worker_id: str) -> list[PooledWorker]:
        ready = self._pipeline.pool.ready(time.monotonic())
        return [worker for worker in ready if worker_id in ("", worker.lease.worker_id)]

    def check_worker(self, worker_id: str) -> None:
        """Raises NoWorker when a worker is named that is not ready."""
        self._named(worker_id)

    def _named(self, worker_id: str) -> list[PooledWorker]:
        workers = self._ready(worker_id)
        if worker_id and not workers:
            raise NoWorker(f"worker {worker_id} is not ready")
        return workers

    def _least_loaded(self, tenant: str) -> PooledWorker:
        ready = self._pipeline.pool.open_to(tenant, time.monotonic())
        if not ready:
            raise NoWorker("none is ready")
        return min(ready, key=lambda worker: (worker.pending_prefill_tokens, worker.running))


async def _with_steps(work: Callable[[Progress], Awaitable[T]]) -> AsyncGenerator[Step | T, None]:
    """Run `work`, yielding its newest progress as it goes and its result last. Closing the iterator cancels
    it.
    """
    newest: asyncio.Queue[Step] = asyncio.Queue(maxsize=1)

    def progress(done: int, total: int) -> None:
        if newest.full():
            newest.get_nowait()
        newest.put_nowait(Step(done, total))

    task = asyncio.ensure_future(work(progress))
    step = asyncio.ensure_future(newest.get())
    try:
        while not task.done():
            await asyncio.wait((task, step), return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                yield step.result()
                step = asyncio.ensure_future(newest.get())
        yield await task
    finally:
        # Both are over when the caller is: nothing goes on for nobody.
        task.cancel()
        step.cancel()
        await asyncio.gather(task, step, return_exceptions=True)


def _append(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)
