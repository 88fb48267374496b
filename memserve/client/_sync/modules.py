# Generated from ../_async/modules.py by `make client`; do not edit.
"""The client's calls of `ModuleService`: `Client.modules`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

from memserve.client._sync import _io
from memserve.client._sync.connection import Connection
from memserve.client.downloads import Download, FilePart, VersionContent
from memserve.client.errors import CallFailed
from memserve.client.uploads import Origin, upload_of
from memserve.client.values import DistilWatch, Progress, silent, silent_distil
from memserve.client.wire.modules import (
    alias_change_of,
    alias_of,
    audit_event_of,
    compose_request,
    distil_plan_of,
    distil_progress_of,
    distil_request,
    distillation_of,
    gate_report_of,
    kind_number,
    module_of,
    residency_of,
    shares_of,
    version_of,
)
from memserve.domain import (
    DEFAULT_RECIPE,
    Alias,
    AliasChange,
    AuditEvent,
    DistilChoice,
    DistillationJob,
    DistilPlan,
    GateReport,
    Module,
    ModuleKind,
    ModuleVersion,
    Recipe,
    WorkerResidency,
)
from memserve.pb.v1 import module_pb2 as pb

PAGE_SIZE = 1000
Request = TypeVar("Request")
Progressing = TypeVar("Progressing", pb.RunGateResponse, pb.PromoteModuleResponse, pb.ComposeModuleResponse)


class ModuleCalls:
    """Modules, their versions and aliases.

    A reference is `name` (its alias live), `name@alias` or `name@number`. `progress` is called while a long
    call goes on.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def publish(
        self,
        name: str,
        folder: str | Path,
        *,
        expected_digest: str = "",
        sources: str | Sequence[str] = (),
        recipe: str = "",
        notes: str = "",
        parents: str | Sequence[str] = (),
        progress: Progress = silent,
    ) -> ModuleVersion:
        """Publish a folder as the module's next version. An upload that was cut off goes on where it ended,
        or from its beginning where another gateway has that.

        expected_digest: the digest that the module must have. Empty: any.
        sources, recipe, notes: what the module was made from, how, and anything else.
        parents: digests of the versions that it was composed from, where that was done elsewhere.
        Raises FileNotFoundError when the folder is no module.
        """
        stub, report = self._connection.stubs.modules, _io.reported_here(progress)
        upload = _io.on_thread(
            upload_of, name, folder, expected_digest, Origin(sources, recipe, notes, parents)
        )
        answer = self._connection.call(stub.GetUpload, pb.GetUploadRequest(header=upload.header))
        received: Sequence[int] = answer.received_bytes
        while True:
            parts = _io.iterate(upload.parts(received, report))
            try:
                return version_of(self._connection.send(stub.PublishModule, parts).version)
            except CallFailed as failed:
                if failed.code is not grpc.StatusCode.DATA_LOSS or not any(received):
                    raise
            received = [0] * len(received)

    def get(self, name: str) -> Module:
        stub = self._connection.stubs.modules
        return module_of(self._connection.call(stub.GetModule, pb.GetModuleRequest(name=name)).module)

    def all(self, *, name_prefix: str = "", kind: ModuleKind | None = None) -> list[Module]:
        """Every module, by name."""
        stub = self._connection.stubs.modules
        modules: list[Module] = []
        request = pb.ListModulesRequest(page_size=PAGE_SIZE, name_prefix=name_prefix, kind=kind_number(kind))
        while True:
            page = self._connection.call(stub.ListModules, request)
            modules += map(module_of, page.modules)
            request.page_token = page.next_page_token
            if not request.page_token:
                return modules

    def version(self, reference: str) -> ModuleVersion:
        stub = self._connection.stubs.modules
        request = pb.GetVersionRequest(reference=reference)
        return version_of(self._connection.call(stub.GetVersion, request).version)

    def read(self, reference: str) -> Generator[VersionContent | FilePart, None, None]:
        """A version with all its files: a VersionContent, then the files' bytes in its order.

        Raises CallFailed with DATA_LOSS where a file is not what was announced, behind its last byte.
        """
        stub, download = self._connection.stubs.modules, Download()
        request = pb.ReadVersionRequest(reference=reference)
        with contextlib.closing(self._connection.stream(stub.ReadVersion, request)) as responses:
            for response in responses:
                yield download.take(response)
        download.end()

    def versions(self, name: str) -> list[ModuleVersion]:
        """Every version, newest first."""
        stub = self._connection.stubs.modules
        versions: list[ModuleVersion] = []
        request = pb.ListVersionsRequest(name=name, page_size=PAGE_SIZE)
        while True:
            page = self._connection.call(stub.ListVersions, request)
            versions += map(version_of, page.versions)
            request.page_token = page.next_page_token
            if not request.page_token:
                return versions

    def gate(self, name: str, version: int, *, progress: Progress = silent) -> GateReport:
        """Ask the version's probes. The report stays with the version."""
        stub = self._connection.stubs.modules
        request = pb.RunGateRequest(name=name, version=version)
        return gate_report_of(self._result(stub.RunGate, request, progress).report)

    def promote(
        self,
        name: str,
        version: int,
        *,
        alias: str = "",
        expected_revision: int | None = None,
        force: bool = False,
        reason: str = "",
        progress: Progress = silent,
    ) -> Alias:
        """Run the gate if the version has no report of it, then point the alias (live) at the version.

        expected_revision: fail when the alias is at another revision. 0: fail when the alias exists.
        force: promote although the gate refuses. The audit then says so.
        """
        stub = self._connection.stubs.modules
        request = pb.PromoteModuleRequest(
            name=name,
            version=version,
            alias=alias,
            expected_revision=expected_revision,
            force=force,
            reason=reason,
        )
        return alias_of(self._result(stub.PromoteModule, request, progress).alias)

    def rollback(
        self, name: str, *, alias: str = "", expected_revision: int | None = None, reason: str = ""
    ) -> Alias:
        """Point the alias (live) back at what it was before."""
        stub = self._connection.stubs.modules
        request = pb.RollbackModuleRequest(
            name=name, alias=alias, expected_revision=expected_revision, reason=reason
        )
        return alias_of(self._connection.call(stub.RollbackModule, request).alias)

    def split(
        self,
        name: str,
        weights: Mapping[int, float],
        *,
        alias: str = "",
        expected_revision: int | None = None,
        reason: str = "",
    ) -> Alias:
        """Share the traffic of the alias (live) between versions. weights: version to weight."""
        stub = self._connection.stubs.modules
        request = pb.SetTrafficRequest(
            name=name,
            alias=alias,
            targets=shares_of(weights),
            expected_revision=expected_revision,
            reason=reason,
        )
        return alias_of(self._connection.call(stub.SetTraffic, request).alias)

    def history(self, name: str, *, alias: str = "") -> list[AliasChange]:
        """Every change of the alias (live), oldest first."""
        stub = self._connection.stubs.modules
        history: list[AliasChange] = []
        request = pb.ListAliasHistoryRequest(name=name, alias=alias, page_size=PAGE_SIZE)
        while changes := self._connection.call(stub.ListAliasHistory, request).changes:
            history += map(alias_change_of, changes)
            request.after_revision = history[-1].revision
        return history

    def drop_alias(self, name: str, alias: str, *, expected_revision: int | None = None) -> Alias:
        """Remove an alias. Returns what it was."""
        stub = self._connection.stubs.modules
        request = pb.DropAliasRequest(name=name, alias=alias, expected_revision=expected_revision)
        return alias_of(self._connection.call(stub.DropAlias, request).alias)

    def delete(self, name: str, version: int) -> int:
        """Delete a version. Returns the chunks of KV that were freed in Redis."""
        stub = self._connection.stubs.modules
        request = pb.DeleteVersionRequest(name=name, version=version)
        return self._connection.call(stub.DeleteVersion, request).evicted_chunks

    def preload(self, reference: str, *, worker_id: str = "") -> list[WorkerResidency]:
        """Load the version on every worker, now and after restarts.

        worker_id: load it only on this worker, and only until the worker ends.
        """
        stub = self._connection.stubs.modules
        request = pb.PreloadModuleRequest(reference=reference, worker_id=worker_id)
        response = self._connection.call(stub.PreloadModule, request)
        return [residency_of(worker) for worker in response.workers]

    def residency(self, reference: str) -> list[WorkerResidency]:
        """Where each worker has the version."""
        stub = self._connection.stubs.modules
        request = pb.GetResidencyRequest(reference=reference)
        response = self._connection.call(stub.GetResidency, request)
        return [residency_of(worker) for worker in response.workers]

    def unload(self, reference: str, *, worker_id: str = "") -> list[WorkerResidency]:
        """Take the version out of every worker, and out of what workers load when they start.

        worker_id: take the version out of this worker only.
        """
        stub = self._connection.stubs.modules
        request = pb.UnloadModuleRequest(reference=reference, worker_id=worker_id)
        response = self._connection.call(stub.UnloadModule, request)
        return [residency_of(worker) for worker in response.workers]

    def compose(
        self,
        name: str,
        method: str,
        parents: Mapping[str, float],
        *,
        rank: int = 0,
        density: float = 0.0,
        seed: int = 0,
        notes: str = "",
        progress: Progress = silent,
    ) -> ModuleVersion:
        """Make a version from others.

        method: linear, cat, svd, ties, dare, core or compress.
        parents: reference to weight.
        rank: the rank of the result. 0: the rank that the method gives.
        density: ties and dare keep this share of the weights. For core it is the share of each parent's
        weights that is the parent's core. 0: the method's default.
        seed: of dare's random choice.
        """
        stub = self._connection.stubs.modules
        request = compose_request(name, method, parents, rank=rank, density=density, seed=seed, notes=notes)
        return version_of(self._result(stub.ComposeModule, request, progress).version)

    def distil(
        self,
        name: str,
        choice: DistilChoice,
        *,
        kind: ModuleKind | None = None,
        recipe: Recipe = DEFAULT_RECIPE,
        budget_s: float = 0.0,
        seed: int = 0,
        notes: str = "",
        from_reference: str = "",
        progress: DistilWatch = silent_distil,
    ) -> ModuleVersion | None:
        """Distil memories into a candidate version, which comes back with its gate report. None: stopped.

        The job goes on when this call ends. The same call watches it again, or goes on from its checkpoint.
        kind: None for the module's own; for a new module a cartridge, or a LoRA where the model takes none.
        budget_s: processor seconds; 0 for what suits the served model's size.
        from_reference: a LoRA that is trained on. Empty: a new one is trained.
        progress: called with the plan, and then with how far it is.
        """
        request = distil_request(
            name, kind, choice, recipe, budget_s=budget_s, seed=seed, notes=notes, dry_run=False,
            cancel=False, from_reference=from_reference,
        )  # fmt: skip
        stub = self._connection.stubs.modules
        with contextlib.closing(self._connection.stream(stub.DistilModule, request)) as responses:
            for response in responses:
                match response.WhichOneof("event"):
                    case "version":
                        return version_of(response.version)
                    case "cancelled":
                        return None
                    case "plan":
                        progress(distil_plan_of(response.plan))
                    case "progress":
                        progress(distil_progress_of(response.progress))
        raise RuntimeError("the stream ended without a result")

    def plan_distil(
        self,
        name: str,
        choice: DistilChoice,
        *,
        kind: ModuleKind | None = None,
        recipe: Recipe = DEFAULT_RECIPE,
        seed: int = 0,
        from_reference: str = "",
    ) -> DistilPlan:
        """What `distil` would train on. Nothing is trained."""
        request = distil_request(
            name, kind, choice, recipe, seed=seed, dry_run=True, from_reference=from_reference
        )
        stub = self._connection.stubs.modules
        with contextlib.closing(self._connection.stream(stub.DistilModule, request)) as responses:
            for response in responses:
                return distil_plan_of(response.plan)
        raise RuntimeError("the stream ended without a result")

    def distillations(self) -> list[DistillationJob]:
        """The newest distillation of each module: under way at any gateway, or ended in the last days."""
        stub = self._connection.stubs.modules
        response = self._connection.call(stub.ListDistillations, pb.ListDistillationsRequest())
        return [distillation_of(each) for each in response.distillations]

    def stop_distil(self, name: str) -> None:
        """Stop the distillation of a module. Its checkpoint stays: an equal `distil` goes on from there."""
        request = pb.DistilModuleRequest(name=name, cancel=True)
        stub = self._connection.stubs.modules
        with contextlib.closing(self._connection.stream(stub.DistilModule, request)) as responses:
            for _ in responses:
                pass

    def watch(self, after_event_id: str = "") -> Generator[AuditEvent, None, None]:
        """Audit events as they happen, until the generator is closed or the client's timeout has passed.

        after_event_id: begin after this event. Empty: begin now.
        """
        stub = self._connection.stubs.modules
        request = pb.WatchModulesRequest(after_event_id=after_event_id)
        with contextlib.closing(self._connection.stream(stub.WatchModules, request)) as responses:
            for response in responses:
                yield audit_event_of(response.event)

    def audit(self, after_event_id: str = "") -> Generator[AuditEvent, None, None]:
        """Every audit event of the tenant after that event, oldest first. Empty: from the first event on."""
        stub = self._connection.stubs.modules
        request = pb.ListAuditEventsRequest(page_size=PAGE_SIZE, after_event_id=after_event_id)
        while page := self._connection.call(stub.ListAuditEvents, request).events:
            for event in page:
                yield audit_event_of(event)
            request.after_event_id = page[-1].event_id

    def release_audit(self, through_event_id: str) -> None:
        """Say that all events up to this event are exported. They may be removed when the audit is full."""
        stub = self._connection.stubs.modules
        request = pb.ReleaseAuditRequest(through_event_id=through_event_id)
        self._connection.call(stub.ReleaseAudit, request)

    def _result(
        self,
        rpc: grpc.UnaryStreamMultiCallable[Request, Progressing],
        request: Request,
        progress: Progress,
    ) -> Progressing:
        """The message that ends a stream of progress."""
        with contextlib.closing(self._connection.stream(rpc, request)) as responses:
            for response in responses:
                event = response.WhichOneof("event")
                if event == "progress":
                    progress(response.progress.done, response.progress.total)
                elif event is not None:
                    return response
        raise RuntimeError("the stream ended without a result")
