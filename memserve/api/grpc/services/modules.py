"""`ModuleService`: parametric memory.

Uploads are received here. Work on modules that asks workers is in `gateway/modules`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from memserve.api.entry import require_admin
from memserve.api.grpc.call import Context, Edge
from memserve.api.grpc.convert import modules as convert
from memserve.api.grpc.convert.paging import PAGE_SIZE, foreign_token, from_token, page_size, to_token
from memserve.api.grpc.services.distilling import DistillationCalls
from memserve.domain import Alias, GateReport, ModuleVersion, Tenant
from memserve.errors import InvalidField, InvalidModule, ModuleNotFound
from memserve.gateway.assembly import GatewayServices
from memserve.gateway.shared import Shared
from memserve.memory.modules.contents import files_of
from memserve.memory.modules.kinds.table import check_module_name
from memserve.memory.modules.memory import ParametricMemory, Publication
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.uploads import Upload
from memserve.pb.v1 import module_pb2 as pb
from memserve.pb.v1 import module_pb2_grpc as rpc
from memserve.policy.modules.references import check_alias_name
from memserve.registry.client import patiently

WATCH_S = 5.0
# How long an upload waits for another upload of the same content to end.
WAIT_FOR_EQUAL_S = 300.0


class ModuleService(DistillationCalls, rpc.ModuleServiceServicer):  # type: ignore[misc]
    """Modules, versions, aliases, and the record of what was done with them."""

    def __init__(self, edge: Edge, memory: ParametricMemory, services: GatewayServices) -> None:
        super().__init__(edge, services.distillation)
        self._memory = memory
        self._store = memory.store
        self._trial = services.trial
        self._gatekeeper = services.gatekeeper
        self._placement = services.placement
        self._lifecycle = services.lifecycle
        self._deletion = services.deletion
        self._composition = services.composition
        self._published = Shared[ModuleVersion](WAIT_FOR_EQUAL_S)

    async def PublishModule(
        self, request_iterator: AsyncIterator[pb.PublishModuleRequest], context: Context
    ) -> pb.PublishModuleResponse:
        async with self._edge.call("PublishModule", context) as tenant:
            parts = aiter(request_iterator)
            first = await anext(parts, None)
            if first is None:
                raise InvalidModule("part", "the stream was empty; send the header, then the files")
            if first.WhichOneof("part") != "header":
                raise InvalidModule("part", "the first message must carry the header")
            publication = convert.publication(first.header)
            await self._memory.check_new_version(
                "header.kind", tenant.name, publication.name, publication.kind
            )
            version = await self._published.once(
                (tenant.name, publication.name, publication.kind, publication.files),
                partial(self._publish, tenant, publication, parts),
            )
            if publication.expected_digest not in ("", version.digest):
                raise InvalidModule("header.expected_digest", f"the content's digest is {version.digest}")
            return pb.PublishModuleResponse(version=convert.version(version))

    async def _publish(
        self, tenant: Tenant, publication: Publication, parts: AsyncIterator[pb.PublishModuleRequest]
    ) -> ModuleVersion:
        files = self._memory.files
        upload = await files.run(
            tenant.name, partial(self._memory.open_upload, tenant.name, publication), undo=Upload.close
        )
        try:
            async for part in parts:
                if part.WhichOneof("part") != "chunk":
                    raise InvalidModule("part", "only the first message may carry a header")
                await self._edge.entry.limits.received(tenant.name, len(part.chunk.content))
                await files.run(
                    tenant.name,
                    partial(upload.append, part.chunk.file_name, part.chunk.offset, part.chunk.content),
                )
            async with self._long.of(tenant.name):
                folder = await files.run(tenant.name, upload.finish)
                version = await self._memory.publish(
                    tenant, publication, folder, partial(self._trial.moves_logits, tenant.name)
                )
                await files.run(tenant.name, upload.discard)
            self._changed("publish")
        except (InvalidModule, InvalidField):
            await files.run(tenant.name, upload.discard)
            raise
        finally:
            upload.close()
        return version

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        async with self._edge.call("GetUpload", context) as tenant:
            publication = convert.publication(request.header)
            received = await self._memory.files.run(
                tenant.name, partial(self._memory.received, tenant.name, publication)
            )
            return pb.GetUploadResponse(received_bytes=received)

    async def GetModule(self, request: pb.GetModuleRequest, context: Context) -> pb.GetModuleResponse:
        async with self._edge.call("GetModule", context) as tenant:
            check_module_name("name", request.name)
            found = await self._store.module(tenant.name, request.name)
            if found is None:
                raise ModuleNotFound(request.name)
            return pb.GetModuleResponse(module=convert.module(found))

    async def ListModules(self, request: pb.ListModulesRequest, context: Context) -> pb.ListModulesResponse:
        async with self._edge.call("ListModules", context) as tenant:
            size = page_size(request.page_size)
            if request.name_prefix:
                check_module_name("name_prefix", request.name_prefix)
            kind = convert.kind_of("kind", request.kind) if request.kind else None
            after = from_token(request.page_token)
            if after:
                try:
                    check_module_name("page_token", after)
                except InvalidField:
                    raise foreign_token() from None
            found, more_after = await self._store.modules(
                tenant.name, after=after, limit=size, prefix=request.name_prefix, kind=kind
            )
            token = to_token(more_after) if more_after else ""
            return pb.ListModulesResponse(
                modules=[convert.module(entry) for entry in found], next_page_token=token
            )

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.GetVersionResponse:
        async with self._edge.call("GetVersion", context) as tenant:
            found = await self._memory.heaviest("reference", tenant.name, request.reference)
            return pb.GetVersionResponse(version=convert.version(found))

    async def ReadVersion(
        self, request: pb.ReadVersionRequest, context: Context
    ) -> AsyncIterator[pb.ReadVersionResponse]:
        async with self._edge.call("ReadVersion", context) as tenant:
            found = await self._memory.heaviest("reference", tenant.name, request.reference)
            # A slow reader must not keep a place of the long work: it is for what may fetch a whole module.
            async with self._long.of(tenant.name):
                content = await files_of(self._memory, tenant.name, found)
            sending = self._edge.sending(context)
            with sending:
                yield pb.ReadVersionResponse(content=convert.content(found, content.files))
            async with aclosing(content.parts()) as parts:
                async for part in parts:
                    await self._edge.entry.limits.sent(tenant.name, len(part.content))
                    with sending:
                        yield pb.ReadVersionResponse(chunk=convert.chunk(part))

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        async with self._edge.call("ListVersions", context) as tenant:
            check_module_name("name", request.name)
            size = page_size(request.page_size)
            before = from_token(request.page_token)
            if before and not (before.isascii() and before.isdecimal() and len(before) < 10):
                raise foreign_token()
            if await self._store.module(tenant.name, request.name) is None:
                raise ModuleNotFound(request.name)
            number = int(before) if before else None
            found, more_below = await self._store.versions(
                tenant.name, request.name, before=number, limit=size
            )
            token = to_token(str(more_below)) if more_below else ""
            return pb.ListVersionsResponse(
                versions=[convert.version(entry) for entry in found], next_page_token=token
            )

    async def RunGate(
        self, request: pb.RunGateRequest, context: Context
    ) -> AsyncIterator[pb.RunGateResponse]:
        async with self._edge.call("RunGate", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            events = self._gatekeeper.run(
                tenant, request.name, convert.version_number("version", request.version)
            )
            async with aclosing(events):
                sending = self._edge.sending(context)
                async for event in events:
                    with sending:
                        if isinstance(event, GateReport):
                            yield pb.RunGateResponse(report=convert.gate_report(event))
                        else:
                            yield pb.RunGateResponse(progress=convert.progress(event))

    async def PromoteModule(
        self, request: pb.PromoteModuleRequest, context: Context
    ) -> AsyncIterator[pb.PromoteModuleResponse]:
        async with self._edge.call("PromoteModule", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            events = self._lifecycle.promote(
                tenant,
                request.name,
                convert.version_number("version", request.version),
                convert.alias_name("alias", request.alias),
                expected_revision=convert.expected_revision(request),
                force=request.force,
                reason=convert.reason(request.reason),
            )
            async with aclosing(events):
                sending = self._edge.sending(context)
                async for event in events:
                    if isinstance(event, Alias):
                        self._changed("promote")
                        response = pb.PromoteModuleResponse(alias=convert.alias(event))
                    else:
                        response = pb.PromoteModuleResponse(progress=convert.progress(event))
                    with sending:
                        yield response

    async def RollbackModule(
        self, request: pb.RollbackModuleRequest, context: Context
    ) -> pb.RollbackModuleResponse:
        # A rollback does not wait behind long work. It asks no worker, and it may end an incident.
        async with self._edge.call("RollbackModule", context) as tenant:
            check_module_name("name", request.name)
            changed = await self._lifecycle.rollback(
                tenant,
                request.name,
                convert.alias_name("alias", request.alias),
                reason=convert.reason(request.reason),
                expected_revision=convert.expected_revision(request),
            )
            self._changed("rollback")
            return pb.RollbackModuleResponse(alias=convert.alias(changed))

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        async with self._edge.call("SetTraffic", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            changed = await self._lifecycle.split(
                tenant,
                request.name,
                convert.alias_name("alias", request.alias),
                convert.targets(list(request.targets)),
                expected_revision=convert.expected_revision(request),
                reason=convert.reason(request.reason),
            )
            self._changed("split")
            return pb.SetTrafficResponse(alias=convert.alias(changed))

    async def DropAlias(self, request: pb.DropAliasRequest, context: Context) -> pb.DropAliasResponse:
        async with self._edge.call("DropAlias", context) as tenant:
            check_module_name("name", request.name)
            check_alias_name("alias", request.alias)
            dropped = await self._store.drop_alias(
                AliasRef(tenant.name, request.name, request.alias),
                Change(tenant.principal, expected_revision=convert.expected_revision(request)),
            )
            self._changed("drop")
            return pb.DropAliasResponse(alias=convert.alias(dropped))

    async def ListAliasHistory(
        self, request: pb.ListAliasHistoryRequest, context: Context
    ) -> pb.ListAliasHistoryResponse:
        async with self._edge.call("ListAliasHistory", context) as tenant:
            check_module_name("name", request.name)
            if request.after_revision < 0:
                raise InvalidField("after_revision", "must not be negative")
            alias = convert.alias_name("alias", request.alias)
            size = page_size(request.page_size)
            ref = AliasRef(tenant.name, request.name, alias)
            history = await self._store.history(ref, after=request.after_revision, limit=size)
            return pb.ListAliasHistoryResponse(changes=[convert.alias_change(change) for change in history])

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: Context
    ) -> pb.DeleteVersionResponse:
        async with self._edge.call("DeleteVersion", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            number = convert.version_number("version", request.version)
            evicted = await self._deletion.delete(tenant, request.name, number)
            self._changed("delete")
            return pb.DeleteVersionResponse(evicted_chunks=evicted)

    async def PreloadModule(
        self, request: pb.PreloadModuleRequest, context: Context
    ) -> pb.PreloadModuleResponse:
        async with self._edge.call("PreloadModule", context) as tenant, self._long.of(tenant.name):
            version = self._memory.served(
                await self._memory.heaviest("reference", tenant.name, request.reference)
            )
            self._placement.check_worker(_worker_id(tenant, request.worker_id))
            # This is recorded before the workers are asked. They follow the record even if this call fails.
            await self._store.preload(
                tenant.name, tenant.principal, version.module, version.version, request.worker_id
            )
            loaded = await self._placement.load(version, pin=True, worker_id=request.worker_id)
            return pb.PreloadModuleResponse(workers=[convert.residency(entry) for entry in loaded])

    async def UnloadModule(
        self, request: pb.UnloadModuleRequest, context: Context
    ) -> pb.UnloadModuleResponse:
        async with self._edge.call("UnloadModule", context) as tenant, self._long.of(tenant.name):
            version = await self._memory.heaviest("reference", tenant.name, request.reference)
            worker_id = _worker_id(tenant, request.worker_id)
            await self._store.unload(
                tenant.name, tenant.principal, version.module, version.version, worker_id
            )
            unloaded = await self._placement.unload(version, worker_id)
            return pb.UnloadModuleResponse(workers=[convert.residency(entry) for entry in unloaded])

    async def GetResidency(
        self, request: pb.GetResidencyRequest, context: Context
    ) -> pb.GetResidencyResponse:
        async with self._edge.call("GetResidency", context) as tenant:
            version = await self._memory.heaviest("reference", tenant.name, request.reference)
            places = await self._placement.residency(version)
            return pb.GetResidencyResponse(workers=[convert.residency(entry) for entry in places])

    async def ComposeModule(
        self, request: pb.ComposeModuleRequest, context: Context
    ) -> AsyncIterator[pb.ComposeModuleResponse]:
        async with self._edge.call("ComposeModule", context) as tenant:
            composition = convert.composition(request)
            async with (
                self._long.of(tenant.name),
                aclosing(self._composition.compose(tenant, composition)) as events,
            ):
                sending = self._edge.sending(context)
                async for event in events:
                    if isinstance(event, ModuleVersion):
                        self._changed("publish")
                        response = pb.ComposeModuleResponse(version=convert.version(event))
                    else:
                        response = pb.ComposeModuleResponse(progress=convert.progress(event))
                    with sending:
                        yield response

    async def WatchModules(
        self, request: pb.WatchModulesRequest, context: Context
    ) -> AsyncIterator[pb.WatchModulesResponse]:
        async with self._edge.call("WatchModules", context) as tenant:
            after = request.after_event_id or await self._store.last_event_id(tenant.name)
            sending = self._edge.sending(context)
            while True:
                read = partial(self._store.events, tenant.name, after=after, limit=PAGE_SIZE, block_s=WATCH_S)
                for event in await patiently(read):
                    after = event.event_id
                    with sending:
                        yield pb.WatchModulesResponse(event=convert.audit_event(event))

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Context
    ) -> pb.ListAuditEventsResponse:
        async with self._edge.call("ListAuditEvents", context) as tenant:
            events = await self._store.events(
                tenant.name, after=request.after_event_id, limit=page_size(request.page_size)
            )
            return pb.ListAuditEventsResponse(events=[convert.audit_event(event) for event in events])

    async def ReleaseAudit(
        self, request: pb.ReleaseAuditRequest, context: Context
    ) -> pb.ReleaseAuditResponse:
        async with self._edge.call("ReleaseAudit", context) as tenant:
            await self._store.release_audit(tenant.name, tenant.principal, request.through_event_id)
            return pb.ReleaseAuditResponse()

    def _changed(self, action: str) -> None:
        self._edge.entry.metrics.module_changes.labels(action).inc()


def _worker_id(tenant: Tenant, worker_id: str) -> str:
    """The worker that a request names. Raises InvalidField, and PermissionDenied unless the caller is an
    administrator or names no worker.
    """
    if len(worker_id) > 64:
        raise InvalidField("worker_id", "at most 64 characters")
    if worker_id:
        require_admin(tenant, "worker_id")
    return worker_id
