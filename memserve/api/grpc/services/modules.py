"""`ModuleService`: parametric memory. Uploads come in here; what modules do with workers is in
`gateway/modules`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from memserve.api.grpc.call import Context, Edge, require_admin
from memserve.api.grpc.convert import modules as convert
from memserve.domain import Alias, GateReport, ModuleVersion, Tenant
from memserve.errors import InvalidField, InvalidModule, ModuleNotFound
from memserve.gateway.modules.lifecycle import Composition, Modules, Step
from memserve.gateway.shared import Shared
from memserve.memory.modules.kinds.table import check_module_name
from memserve.memory.modules.memory import Publication, check_text
from memserve.memory.modules.registry.aliases import AliasRef, Change
from memserve.memory.modules.uploads import Upload
from memserve.pb.v1 import module_pb2 as pb
from memserve.pb.v1 import module_pb2_grpc as rpc
from memserve.policy.modules.traffic import check_alias_name, parse_reference

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1000
WATCH_S = 5.0
# How long a stream waits that sends what another stream is sending already.
WAIT_FOR_EQUAL_S = 300.0
PARENTS_MAX = 8
RANK_MAX = 1024
SEED_MAX = 2**53


class ModuleService(rpc.ModuleServiceServicer):  # type: ignore[misc]
    """Modules, versions, aliases, and the record of what was done with them."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._memory = edge.pipeline.modules
        self._store = edge.pipeline.modules.store
        self._modules = Modules(edge.pipeline)
        self._published = Shared[ModuleVersion](WAIT_FOR_EQUAL_S)
        self._long = edge.limits.long

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
                await self._edge.limits.received(tenant.name, len(part.chunk.content))
                await files.run(
                    tenant.name,
                    partial(upload.append, part.chunk.file_name, part.chunk.offset, part.chunk.content),
                )
            async with self._long.of(tenant.name):
                folder = await files.run(tenant.name, upload.finish)
                version = await self._memory.publish(
                    tenant, publication, folder, partial(self._modules.moves_logits, tenant.name)
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
            size = _page_size(request.page_size)
            if request.name_prefix:
                check_module_name("name_prefix", request.name_prefix)
            kind = convert.kind_of("kind", request.kind) if request.kind else None
            after = _from_token(request.page_token)
            if after:
                try:
                    check_module_name("page_token", after)
                except InvalidField:
                    raise _foreign_token() from None
            found, more_after = await self._store.modules(
                tenant.name, after=after, limit=size, prefix=request.name_prefix, kind=kind
            )
            token = _to_token(more_after) if more_after else ""
            return pb.ListModulesResponse(
                modules=[convert.module(entry) for entry in found], next_page_token=token
            )

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.GetVersionResponse:
        async with self._edge.call("GetVersion", context) as tenant:
            found = await self._memory.heaviest("reference", tenant.name, request.reference)
            return pb.GetVersionResponse(version=convert.version(found))

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        async with self._edge.call("ListVersions", context) as tenant:
            check_module_name("name", request.name)
            size = _page_size(request.page_size)
            before = _from_token(request.page_token)
            if before and not (before.isascii() and before.isdecimal() and len(before) < 10):
                raise _foreign_token()
            if await self._store.module(tenant.name, request.name) is None:
                raise ModuleNotFound(request.name)
            number = int(before) if before else None
            found, more_below = await self._store.versions(
                tenant.name, request.name, before=number, limit=size
            )
            token = _to_token(str(more_below)) if more_below else ""
            return pb.ListVersionsResponse(
                versions=[convert.version(entry) for entry in found], next_page_token=token
            )

    async def RunGate(
        self, request: pb.RunGateRequest, context: Context
    ) -> AsyncIterator[pb.RunGateResponse]:
        async with self._edge.call("RunGate", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            events = self._modules.run_gate(
                tenant, request.name, convert.version_number("version", request.version)
            )
            async with aclosing(events):
                async for event in events:
                    with self._edge.sending(context):
                        if isinstance(event, GateReport):
                            yield pb.RunGateResponse(report=convert.gate_report(event))
                        else:
                            yield pb.RunGateResponse(progress=_progress(event))

    async def PromoteModule(
        self, request: pb.PromoteModuleRequest, context: Context
    ) -> AsyncIterator[pb.PromoteModuleResponse]:
        async with self._edge.call("PromoteModule", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            events = self._modules.promote(
                tenant,
                request.name,
                convert.version_number("version", request.version),
                convert.alias_name("alias", request.alias),
                expected_revision=_expected(request),
                force=request.force,
                reason=convert.reason(request.reason),
            )
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Alias):
                        self._changed("promote")
                        response = pb.PromoteModuleResponse(alias=convert.alias(event))
                    else:
                        response = pb.PromoteModuleResponse(progress=_progress(event))
                    with self._edge.sending(context):
                        yield response

    async def RollbackModule(
        self, request: pb.RollbackModuleRequest, context: Context
    ) -> pb.RollbackModuleResponse:
        # Not in turn with long work: it takes trouble away, and waits for no worker.
        async with self._edge.call("RollbackModule", context) as tenant:
            check_module_name("name", request.name)
            changed = await self._modules.rollback(
                tenant,
                request.name,
                convert.alias_name("alias", request.alias),
                reason=convert.reason(request.reason),
                expected_revision=_expected(request),
            )
            self._changed("rollback")
            return pb.RollbackModuleResponse(alias=convert.alias(changed))

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        async with self._edge.call("SetTraffic", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            changed = await self._modules.split(
                tenant,
                request.name,
                convert.alias_name("alias", request.alias),
                convert.targets(list(request.targets)),
                expected_revision=_expected(request),
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
                Change(tenant.principal, expected_revision=_expected(request)),
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
            size = _page_size(request.page_size)
            ref = AliasRef(tenant.name, request.name, alias)
            history = await self._store.history(ref, after=request.after_revision, limit=size)
            return pb.ListAliasHistoryResponse(changes=[convert.alias_change(change) for change in history])

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: Context
    ) -> pb.DeleteVersionResponse:
        async with self._edge.call("DeleteVersion", context) as tenant, self._long.of(tenant.name):
            check_module_name("name", request.name)
            number = convert.version_number("version", request.version)
            evicted = await self._modules.delete(tenant, request.name, number)
            self._changed("delete")
            return pb.DeleteVersionResponse(evicted_chunks=evicted)

    async def PreloadModule(
        self, request: pb.PreloadModuleRequest, context: Context
    ) -> pb.PreloadModuleResponse:
        async with self._edge.call("PreloadModule", context) as tenant, self._long.of(tenant.name):
            version = self._memory.served(
                await self._memory.heaviest("reference", tenant.name, request.reference)
            )
            self._modules.check_worker(_worker_id(tenant, request.worker_id))
            # Recorded first: the workers follow the record, whatever becomes of this call.
            await self._store.preload(
                tenant.name, tenant.principal, version.module, version.version, request.worker_id
            )
            loaded = await self._modules.load(version, pin=True, worker_id=request.worker_id)
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
            unloaded = await self._modules.unload(version, worker_id)
            return pb.UnloadModuleResponse(workers=[convert.residency(entry) for entry in unloaded])

    async def GetResidency(
        self, request: pb.GetResidencyRequest, context: Context
    ) -> pb.GetResidencyResponse:
        async with self._edge.call("GetResidency", context) as tenant:
            version = await self._memory.heaviest("reference", tenant.name, request.reference)
            places = await self._modules.residency(version)
            return pb.GetResidencyResponse(workers=[convert.residency(entry) for entry in places])

    async def ComposeModule(
        self, request: pb.ComposeModuleRequest, context: Context
    ) -> AsyncIterator[pb.ComposeModuleResponse]:
        async with self._edge.call("ComposeModule", context) as tenant:
            composition = _composition(request)
            async with (
                self._long.of(tenant.name),
                aclosing(self._modules.compose(tenant, composition)) as events,
            ):
                async for event in events:
                    if isinstance(event, ModuleVersion):
                        self._changed("publish")
                        response = pb.ComposeModuleResponse(version=convert.version(event))
                    else:
                        response = pb.ComposeModuleResponse(progress=_progress(event))
                    with self._edge.sending(context):
                        yield response

    async def WatchModules(
        self, request: pb.WatchModulesRequest, context: Context
    ) -> AsyncIterator[pb.WatchModulesResponse]:
        async with self._edge.call("WatchModules", context) as tenant:
            after = request.after_event_id or await self._store.last_event_id(tenant.name)
            while True:
                for event in await self._store.events(
                    tenant.name, after=after, limit=PAGE_SIZE, block_s=WATCH_S
                ):
                    after = event.event_id
                    with self._edge.sending(context):
                        yield pb.WatchModulesResponse(event=convert.audit_event(event))

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Context
    ) -> pb.ListAuditEventsResponse:
        async with self._edge.call("ListAuditEvents", context) as tenant:
            events = await self._store.events(
                tenant.name, after=request.after_event_id, limit=_page_size(request.page_size)
            )
            return pb.ListAuditEventsResponse(events=[convert.audit_event(event) for event in events])

    async def ReleaseAudit(
        self, request: pb.ReleaseAuditRequest, context: Context
    ) -> pb.ReleaseAuditResponse:
        async with self._edge.call("ReleaseAudit", context) as tenant:
            await self._store.release_audit(tenant.name, tenant.principal, request.through_event_id)
            return pb.ReleaseAuditResponse()

    def _changed(self, action: str) -> None:
        self._edge.pipeline.metrics.module_changes.labels(action).inc()


def _composition(request: pb.ComposeModuleRequest) -> Composition:
    """Raises InvalidField."""
    check_module_name("name", request.name)
    method = convert.METHODS.get(request.method)
    if method is None:
        raise InvalidField("method", f"must be one of {', '.join(convert.METHODS.values())}")
    if not 1 <= len(request.parents) <= PARENTS_MAX or (method == "compress") != (len(request.parents) == 1):
        raise InvalidField("parents", f"from 2 to {PARENTS_MAX}, or exactly 1 to compress")
    parents = []
    for number, parent in enumerate(request.parents):
        parse_reference(f"parents[{number}].reference", parent.reference)
        if not (math.isfinite(parent.weight) and 0 <= parent.weight <= 100):
            raise InvalidField(f"parents[{number}].weight", "from 0 (which means 1) to 100")
        parents.append((parent.reference, parent.weight or 1.0))
    if not 0 <= request.rank <= RANK_MAX:
        raise InvalidField("rank", f"from 1 to {RANK_MAX}, or 0 for the method's own")
    if not 0 <= request.density <= 1:  # NaN fails too
        raise InvalidField("density", "above 0 and at most 1, or 0 for the method's own")
    if not 0 <= request.seed <= SEED_MAX:
        raise InvalidField("seed", f"from 0 to {SEED_MAX}")
    check_text("notes", request.notes)
    return Composition(
        request.name, method, tuple(parents), request.rank, request.density, request.seed, request.notes
    )


def _expected(
    request: pb.PromoteModuleRequest | pb.RollbackModuleRequest | pb.SetTrafficRequest | pb.DropAliasRequest,
) -> int | None:
    if not request.HasField("expected_revision"):
        return None
    if request.expected_revision < 0:
        raise InvalidField("expected_revision", "must not be negative")
    return int(request.expected_revision)


def _worker_id(tenant: Tenant, worker_id: str) -> str:
    """Raises InvalidField, and PermissionDenied where one is named by another than an administrator."""
    if len(worker_id) > 64:
        raise InvalidField("worker_id", "at most 64 characters")
    if worker_id:
        require_admin(tenant, "worker_id")
    return worker_id


def _progress(step: Step) -> pb.GateProgress:
    return pb.GateProgress(done=step.done, total=step.total)


def _page_size(size: int) -> int:
    if not 0 <= size <= PAGE_SIZE_MAX:
        raise InvalidField("page_size", f"from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE}")
    return size or PAGE_SIZE


def _to_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _from_token(token: str) -> str:
    try:
        # Strict: the lenient decoder skips foreign letters, and what is left of noise would begin at some
        # page.
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise _foreign_token() from None


def _foreign_token() -> InvalidField:
    return InvalidField("page_token", "must be the next_page_token of the page before")
