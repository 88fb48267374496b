"""The client's calls of `ModuleService`: `Client.modules` and `AsyncClient.modules`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from memserve.client.wire.modules import (
    Told,
    alias_change_of,
    alias_of,
    audit_event_of,
    gate_report_of,
    module_of,
    residency_of,
    silent,
    upload_of,
    version_of,
)
from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    GateReport,
    Module,
    ModuleKind,
    ModuleVersion,
    WorkerResidency,
)
from memserve.pb.v1 import module_pb2 as pb

PAGE_SIZE = 1000
T = TypeVar("T")


class ModuleCalls:
    """Blocking calls; each raises CallFailed. A reference is `name` (its alias live), `name@alias` or
    `name@number`.
    """

    def __init__(
        self, call: Callable[[str, Any], Any], stream: Callable[[str, Any], Generator[Any, None, None]]
    ) -> None:
        self._call = call
        self._stream = stream

    def publish(
        self,
        name: str,
        folder: str | Path,
        *,
        expected_digest: str = "",
        sources: str | Sequence[str] = (),
        recipe: str = "",
        notes: str = "",
        told: Told = silent,
    ) -> ModuleVersion:
        """Publish a folder as the module's next version; an upload that was cut off goes on where it ended.

        Raises FileNotFoundError when the folder is no module.
        """
        upload = upload_of(name, folder, expected_digest, sources, recipe, notes)
        received = self._call("GetUpload", pb.GetUploadRequest(header=upload.header)).received_bytes
        return version_of(self._call("PublishModule", upload.parts(received, told)).version)

    def get(self, name: str) -> Module:
        return module_of(self._call("GetModule", pb.GetModuleRequest(name=name)).module)

    def all(self, *, name_prefix: str = "", kind: ModuleKind | None = None) -> list[Module]:
        """Every module, by name."""
        found: list[Module] = []
        number = (
            getattr(pb, f"MODULE_KIND_{kind.upper()}") if kind is not None else pb.MODULE_KIND_UNSPECIFIED
        )
        request = pb.ListModulesRequest(page_size=PAGE_SIZE, name_prefix=name_prefix, kind=number)
        while True:
            page = self._call("ListModules", request)
            found += [module_of(entry) for entry in page.modules]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    def version(self, reference: str) -> ModuleVersion:
        return version_of(self._call("GetVersion", pb.GetVersionRequest(reference=reference)).version)

    def versions(self, name: str) -> list[ModuleVersion]:
        """Every version, newest first."""
        found: list[ModuleVersion] = []
        request = pb.ListVersionsRequest(name=name, page_size=PAGE_SIZE)
        while True:
            page = self._call("ListVersions", request)
            found += [version_of(entry) for entry in page.versions]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    def gate(self, name: str, version: int, *, told: Told = silent) -> GateReport:
        """Ask the version's probes. The report stays with the version."""
        with contextlib.closing(
            self._stream("RunGate", pb.RunGateRequest(name=name, version=version))
        ) as responses:
            return gate_report_of(_last(responses, "report", told))

    def promote(
        self,
        name: str,
        version: int,
        *,
        alias: str = "",
        expected_revision: int | None = None,
        force: bool = False,
        reason: str = "",
        told: Told = silent,
    ) -> Alias:
        """Gate the version and point the alias (live) at it."""
        request = pb.PromoteModuleRequest(
            name=name,
            version=version,
            alias=alias,
            expected_revision=expected_revision,
            force=force,
            reason=reason,
        )
        with contextlib.closing(self._stream("PromoteModule", request)) as responses:
            return alias_of(_last(responses, "alias", told))

    def rollback(
        self, name: str, *, alias: str = "", expected_revision: int | None = None, reason: str = ""
    ) -> Alias:
        """Point the alias (live) back at what it was before."""
        request = pb.RollbackModuleRequest(
            name=name, alias=alias, expected_revision=expected_revision, reason=reason
        )
        return alias_of(self._call("RollbackModule", request).alias)

    def split(
        self,
        name: str,
        weights: dict[int, float],
        *,
        alias: str = "",
        expected_revision: int | None = None,
        reason: str = "",
    ) -> Alias:
        """Share the alias's (live's) traffic. weights: version to weight."""
        request = pb.SetTrafficRequest(
            name=name,
            alias=alias,
            targets=[pb.TrafficShare(version=version, weight=weight) for version, weight in weights.items()],
            expected_revision=expected_revision,
            reason=reason,
        )
        return alias_of(self._call("SetTraffic", request).alias)

    def history(self, name: str, *, alias: str = "") -> list[AliasChange]:
        """Every change of the alias (live), oldest first."""
        found: list[AliasChange] = []
        request = pb.ListAliasHistoryRequest(name=name, alias=alias, page_size=PAGE_SIZE)
        while changes := self._call("ListAliasHistory", request).changes:
            found += [alias_change_of(change) for change in changes]
            request.after_revision = found[-1].revision
        return found

    def drop_alias(self, name: str, alias: str, *, expected_revision: int | None = None) -> Alias:
        """Remove an alias. Returns what it was."""
        request = pb.DropAliasRequest(name=name, alias=alias, expected_revision=expected_revision)
        return alias_of(self._call("DropAlias", request).alias)

    def delete(self, name: str, version: int) -> int:
        """Returns the chunks of KV that were freed in Redis."""
        return int(
            self._call("DeleteVersion", pb.DeleteVersionRequest(name=name, version=version)).evicted_chunks
        )

    def preload(self, reference: str, *, worker_id: str = "") -> list[WorkerResidency]:
        """Load on every worker, now and after restarts; or on one, while it lives."""
        found = self._call("PreloadModule", pb.PreloadModuleRequest(reference=reference, worker_id=worker_id))
        return [residency_of(entry) for entry in found.workers]

    def residency(self, reference: str) -> list[WorkerResidency]:
        """Where each worker has the version."""
        found = self._call("GetResidency", pb.GetResidencyRequest(reference=reference))
        return [residency_of(entry) for entry in found.workers]

    def unload(self, reference: str, *, worker_id: str = "") -> list[WorkerResidency]:
        found = self._call("UnloadModule", pb.UnloadModuleRequest(reference=reference, worker_id=worker_id))
        return [residency_of(entry) for entry in found.workers]

    def compose(
        self,
        name: str,
        method: str,
        parents: dict[str, float],
        *,
        rank: int = 0,
        density: float = 0.0,
        seed: int = 0,
        notes: str = "",
        told: Told = silent,
    ) -> ModuleVersion:
        """Make a version from others. method: linear, cat, svd, ties, dare, core or compress. parents:
        reference to weight.
        """
        request = pb.ComposeModuleRequest(
            name=name,
            method=getattr(pb, f"COMPOSE_METHOD_{method.upper()}", pb.COMPOSE_METHOD_UNSPECIFIED),
            parents=[
                pb.ComposeParent(reference=reference, weight=weight) for reference, weight in parents.items()
            ],
            rank=rank,
            density=density,
            seed=seed,
            notes=notes,
        )
        with contextlib.closing(self._stream("ComposeModule", request)) as responses:
            return version_of(_last(responses, "version", told))

    def watch(self, after_event_id: str = "") -> Iterator[AuditEvent]:
        """Audit events as they happen, until the iterator is closed or the client's timeout has passed."""
        with contextlib.closing(
            self._stream("WatchModules", pb.WatchModulesRequest(after_event_id=after_event_id))
        ) as responses:
            for response in responses:
                yield audit_event_of(response.event)

    def audit(self, after_event_id: str = "") -> Iterator[AuditEvent]:
        """Every audit event of the tenant from after that one, oldest first."""
        request = pb.ListAuditEventsRequest(page_size=PAGE_SIZE, after_event_id=after_event_id)
        while page := self._call("ListAuditEvents", request).events:
            yield from map(audit_event_of, page)
            request.after_event_id = page[-1].event_id

    def release_audit(self, through_event_id: str) -> None:
        """Events up to this one are exported: they may go when the audit is full."""
        self._call("ReleaseAudit", pb.ReleaseAuditRequest(through_event_id=through_event_id))


class AsyncModuleCalls:
    """The same for asyncio."""

    def __init__(
        self,
        call: Callable[[str, Any], Awaitable[Any]],
        stream: Callable[[str, Any], AsyncGenerator[Any, None]],
    ) -> None:
        self._call = call
        self._stream = stream

    async def publish(
        self,
        name: str,
        folder: str | Path,
        *,
        expected_digest: str = "",
        sources: str | Sequence[str] = (),
        recipe: str = "",
        notes: str = "",
        told: Told = silent,
    ) -> ModuleVersion:
        loop = asyncio.get_running_loop()

        def on_loop(done: int, total: int) -> None:
            loop.call_soon_threadsafe(told, done, total)

        # Files are read and hashed on threads: the loop has other calls to serve.
        upload = await asyncio.to_thread(upload_of, name, folder, expected_digest, sources, recipe, notes)
        received = (await self._call("GetUpload", pb.GetUploadRequest(header=upload.header))).received_bytes
        return version_of(
            (await self._call("PublishModule", _on_threads(upload.parts(received, on_loop)))).version
        )

    async def get(self, name: str) -> Module:
        return module_of((await self._call("GetModule", pb.GetModuleRequest(name=name))).module)

    async def all(self, *, name_prefix: str = "", kind: ModuleKind | None = None) -> list[Module]:
        found: list[Module] = []
        number = (
            getattr(pb, f"MODULE_KIND_{kind.upper()}") if kind is not None else pb.MODULE_KIND_UNSPECIFIED
        )
        request = pb.ListModulesRequest(page_size=PAGE_SIZE, name_prefix=name_prefix, kind=number)
        while True:
            page = await self._call("ListModules", request)
            found += [module_of(entry) for entry in page.modules]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def version(self, reference: str) -> ModuleVersion:
        return version_of((await self._call("GetVersion", pb.GetVersionRequest(reference=reference))).version)

    async def versions(self, name: str) -> list[ModuleVersion]:
        found: list[ModuleVersion] = []
        request = pb.ListVersionsRequest(name=name, page_size=PAGE_SIZE)
        while True:
            page = await self._call("ListVersions", request)
            found += [version_of(entry) for entry in page.versions]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def gate(self, name: str, version: int, *, told: Told = silent) -> GateReport:
        async with contextlib.aclosing(
            self._stream("RunGate", pb.RunGateRequest(name=name, version=version))
        ) as responses:
            return gate_report_of(await _last_of(responses, "report", told))

    async def promote(
        self,
        name: str,
        version: int,
        *,
        alias: str = "",
        expected_revision: int | None = None,
        force: bool = False,
        reason: str = "",
        told: Told = silent,
    ) -> Alias:
        request = pb.PromoteModuleRequest(
            name=name,
            version=version,
            alias=alias,
            expected_revision=expected_revision,
            force=force,
            reason=reason,
        )
        async with contextlib.aclosing(self._stream("PromoteModule", request)) as responses:
            return alias_of(await _last_of(responses, "alias", told))

    async def rollback(
        self, name: str, *, alias: str = "", expected_revision: int | None = None, reason: str = ""
    ) -> Alias:
        request = pb.RollbackModuleRequest(
            name=name, alias=alias, expected_revision=expected_revision, reason=reason
        )
        return alias_of((await self._call("RollbackModule", request)).alias)

    async def split(
        self,
        name: str,
        weights: dict[int, float],
        *,
        alias: str = "",
        expected_revision: int | None = None,
        reason: str = "",
    ) -> Alias:
        request = pb.SetTrafficRequest(
            name=name,
            alias=alias,
            targets=[pb.TrafficShare(version=version, weight=weight) for version, weight in weights.items()],
            expected_revision=expected_revision,
            reason=reason,
        )
        return alias_of((await self._call("SetTraffic", request)).alias)

    async def history(self, name: str, *, alias: str = "") -> list[AliasChange]:
        found: list[AliasChange] = []
        request = pb.ListAliasHistoryRequest(name=name, alias=alias, page_size=PAGE_SIZE)
        while changes := (await self._call("ListAliasHistory", request)).changes:
            found += [alias_change_of(change) for change in changes]
            request.after_revision = found[-1].revision
        return found

    async def drop_alias(self, name: str, alias: str, *, expected_revision: int | None = None) -> Alias:
        request = pb.DropAliasRequest(name=name, alias=alias, expected_revision=expected_revision)
        return alias_of((await self._call("DropAlias", request)).alias)

    async def delete(self, name: str, version: int) -> int:
        return int(
            (
                await self._call("DeleteVersion", pb.DeleteVersionRequest(name=name, version=version))
            ).evicted_chunks
        )

    async def preload(self, reference: str, *, worker_id: str = "") -> list[WorkerResidency]:
        found = await self._call(
            "PreloadModule", pb.PreloadModuleRequest(reference=reference, worker_id=worker_id)
        )
        return [residency_of(entry) for entry in found.workers]

    async def residency(self, reference: str) -> list[WorkerResidency]:
        found = await self._call("GetResidency", pb.GetResidencyRequest(reference=reference))
        return [residency_of(entry) for entry in found.workers]

    async def unload(self, reference: str, *, worker_id: str = "") -> list[WorkerResidency]:
        found = await self._call(
            "UnloadModule", pb.UnloadModuleRequest(reference=reference, worker_id=worker_id)
        )
        return [residency_of(entry) for entry in found.workers]

    async def compose(
        self,
        name: str,
        method: str,
        parents: dict[str, float],
        *,
        rank: int = 0,
        density: float = 0.0,
        seed: int = 0,
        notes: str = "",
        told: Told = silent,
    ) -> ModuleVersion:
        request = pb.ComposeModuleRequest(
            name=name,
            method=getattr(pb, f"COMPOSE_METHOD_{method.upper()}", pb.COMPOSE_METHOD_UNSPECIFIED),
            parents=[
                pb.ComposeParent(reference=reference, weight=weight) for reference, weight in parents.items()
            ],
            rank=rank,
            density=density,
            seed=seed,
            notes=notes,
        )
        async with contextlib.aclosing(self._stream("ComposeModule", request)) as responses:
            return version_of(await _last_of(responses, "version", told))

    async def watch(self, after_event_id: str = "") -> AsyncIterator[AuditEvent]:
        async with contextlib.aclosing(
            self._stream("WatchModules", pb.WatchModulesRequest(after_event_id=after_event_id))
        ) as responses:
            async for response in responses:
                yield audit_event_of(response.event)

    async def audit(self, after_event_id: str = "") -> AsyncIterator[AuditEvent]:
        request = pb.ListAuditEventsRequest(page_size=PAGE_SIZE, after_event_id=after_event_id)
        while page := (await self._call("ListAuditEvents", request)).events:
            for event in page:
                yield audit_event_of(event)
            request.after_event_id = page[-1].event_id

    async def release_audit(self, through_event_id: str) -> None:
        await self._call("ReleaseAudit", pb.ReleaseAuditRequest(through_event_id=through_event_id))


async def _on_threads(parts: Iterator[T]) -> AsyncIterator[T]:
    """What a blocking iterator gives, one item at a time, each read on a thread."""
    end = object()
    while (part := await asyncio.to_thread(next, parts, end)) is not end:
        yield cast(T, part)


def _last(responses: Iterator[Any], wanted: str, told: Told) -> Any:
    """The message that ends a stream of progress."""
    for response in responses:
        if response.WhichOneof("event") == wanted:
            return getattr(response, wanted)
        told(response.progress.done, response.progress.total)
    raise RuntimeError(f"the stream ended without its {wanted}")


async def _last_of(responses: AsyncIterator[Any], wanted: str, told: Told) -> Any:
    async for response in responses:
        if response.WhichOneof("event") == wanted:
            return getattr(response, wanted)
        told(response.progress.done, response.progress.total)
    raise RuntimeError(f"the stream ended without its {wanted}")
