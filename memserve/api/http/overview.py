"""What the page of the HTTP port shows, as JSON: workers, memories and requests, as far as they are the
caller's.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from memserve import __version__
from memserve.domain import Module, Tenant
from memserve.errors import MemserveError
from memserve.gateway.assembly import GatewayParts
from memserve.gateway.live import STEPS, LiveState
from memserve.gateway.workers.pooled_worker import PooledWorker

T = TypeVar("T")
VECTOR_TIMEOUT_S = 0.5
WORKERS_MAX = 64
WORKER_MODULES_MAX = 32
NAMESPACES_MAX = 100
MODULES_MAX = 50
REQUESTS_MAX = 50


class Shown(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ShownModule(Shown):
    reference: str
    """One of the caller's tenant, as name@version."""
    place: str
    """device, host or disk."""


class ShownWorker(Shown):
    worker_id: str
    ready: bool
    silent_s: float | None
    """Since its last word. A worker speaks four times a second. null: it has never spoken."""
    running: int
    """Answers that it has in its batch, of all tenants."""
    max_concurrent: int
    """The most answers in a batch."""
    waiting: int
    """Requests before its engine, of all tenants."""
    queued_tokens: int
    """Prompt tokens that are yet to be computed."""
    kv_tokens: int | None
    """KV of the answers under way. null: the worker does not say."""
    free_kv_tokens: int | None
    known_blocks: int
    """KV blocks of prompts that it holds, as far as this gateway knows."""
    block_tokens: int
    prefill_tokens_per_s: float
    shares_kv: bool
    limits: str
    """What it does not do, and why; empty for nothing."""
    modules: list[ShownModule]
    modules_left_out: int
    others_modules: int | None
    """How many modules of other tenants it holds. null: only administrators see it."""


class ShownNamespace(Shown):
    name: str
    memories: int


class ShownTexts(Shown):
    total: int
    namespaces: list[ShownNamespace]
    left_out: int
    lost: int
    """Memories that the vector store has lost."""


class ShownAlias(Shown):
    name: str
    versions: list[int]
    """Those that share its traffic."""


class ShownParametric(Shown):
    name: str
    kind: str
    versions: int
    newest_version: int
    aliases: list[ShownAlias]


class ShownModules(Shown):
    total: int
    modules: list[ShownParametric]
    left_out: int


class ShownPrefixes(Shown):
    stored_bytes: int
    chunks: int
    pinned_bytes: int
    quota_bytes: int
    """Of the tenant. 0: none."""
    cache_stored_bytes: int | None
    """Of all tenants. null: only administrators see it."""
    cache_quota_bytes: int | None


class ShownRequest(Shown):
    number: int
    request_id: str
    """Empty before routing."""
    worker_id: str
    modules: list[str]
    prompt_tokens: int
    step: Annotated[int, Field(ge=1, le=len(STEPS))]
    step_seconds: list[float]
    """By step, from 1 on. Step 1 is over when the gateway begins to count."""
    seconds: float
    """In all."""
    outcome: str
    """`under way`, or why it ended."""
    ended_ago_s: float | None


class ShownRequests(Shown):
    under_way: list[ShownRequest]
    left_out: int
    ended: list[ShownRequest]
    """The last few, the newest first."""
    others: int | None
    """Under way for other tenants. null: only administrators see it."""


class Overview(Shown):
    version: str
    model: str
    max_context_tokens: int
    at_s: float
    """When this was read, in seconds since the epoch."""
    tenant: str
    role: str
    registry_ok: bool
    vector_store_ok: bool
    short_disk: str
    """The disk that is nearly full, which ends changes; empty for none."""
    steps: list[str]
    """What a request goes through, from step 1 on."""
    workers: list[ShownWorker]
    workers_left_out: int
    texts: ShownTexts | None
    """null, as the next two: its store does not answer."""
    modules: ShownModules | None
    prefixes: ShownPrefixes | None
    requests: ShownRequests


async def overview(parts: GatewayParts, tenant: Tenant) -> Overview:
    """Nothing of another tenant is in it but numbers, and those that are not a worker's for administrators
    only.
    """
    pool, now_s = parts.pool, time.monotonic()
    held = {digest for worker in pool.workers.values() for digest in worker.state.modules}
    own, texts, modules, prefixes, vector_store_ok = await asyncio.gather(
        _answered(parts.modules.store.of_tenant(tenant.name, sorted(held))),
        _answered(_texts(parts, tenant)),
        _answered(_modules(parts, tenant)),
        _answered(_prefixes(parts, tenant)),
        parts.texts.answers(tenant.name, VECTOR_TIMEOUT_S),
    )
    ready = {worker.lease.worker_id for worker in pool.ready(now_s)}
    workers = sorted(pool.workers.items())
    return Overview(
        version=__version__,
        model=parts.model.name,
        max_context_tokens=parts.model.max_context_tokens,
        at_s=time.time(),
        tenant=tenant.name,
        role=tenant.role,
        registry_ok=pool.registry_ok,
        vector_store_ok=vector_store_ok,
        short_disk=parts.disk.short() or "",
        steps=list(STEPS),
        workers=[
            _worker(worker, own or {}, parts, tenant, ready=name in ready, now_s=now_s)
            for name, worker in workers[:WORKERS_MAX]
        ],
        workers_left_out=max(0, len(workers) - WORKERS_MAX),
        texts=texts,
        modules=modules,
        prefixes=prefixes,
        requests=_requests(parts, tenant, now_s),
    )


async def _answered(look: Awaitable[T]) -> T | None:
    """None where what is looked at does not answer."""
    try:
        return await look
    except MemserveError:
        return None


async def _texts(parts: GatewayParts, tenant: Tenant) -> ShownTexts:
    counts = await parts.texts.counts(tenant.name)
    shown = [ShownNamespace(name=name, memories=memories) for name, memories in counts.items()]
    return ShownTexts(
        total=sum(counts.values()),
        namespaces=shown[:NAMESPACES_MAX],
        left_out=max(0, len(shown) - NAMESPACES_MAX),
        lost=parts.texts.lost(tenant.name),
    )


async def _modules(parts: GatewayParts, tenant: Tenant) -> ShownModules:
    store = parts.modules.store
    total, (page, _) = await asyncio.gather(
        store.count(tenant.name), store.modules(tenant.name, limit=MODULES_MAX)
    )
    return ShownModules(
        total=total, modules=[_parametric(module) for module in page], left_out=max(0, total - len(page))
    )


def _parametric(module: Module) -> ShownParametric:
    return ShownParametric(
        name=module.name,
        kind=module.kind,
        versions=module.versions,
        newest_version=module.newest_version,
        aliases=[
            ShownAlias(name=alias.name, versions=[target.version for target in alias.targets])
            for alias in module.aliases
        ],
    )


async def _prefixes(parts: GatewayParts, tenant: Tenant) -> ShownPrefixes:
    own, every = await parts.activation.usage(tenant.name)
    quota_bytes, cache_quota_bytes = parts.activation.quotas
    return ShownPrefixes(
        stored_bytes=own.stored_bytes,
        chunks=own.chunks,
        pinned_bytes=own.pinned_bytes,
        quota_bytes=quota_bytes,
        cache_stored_bytes=every.stored_bytes if tenant.is_admin else None,
        cache_quota_bytes=cache_quota_bytes if tenant.is_admin else None,
    )


def _worker(
    worker: PooledWorker,
    own: Mapping[str, str],
    parts: GatewayParts,
    tenant: Tenant,
    *,
    ready: bool,
    now_s: float,
) -> ShownWorker:
    """own: references of the tenant's modules, by digest."""
    lease, state = worker.lease, worker.state
    places = state.modules.items()
    modules = [ShownModule(reference=own[digest], place=place) for digest, place in places if digest in own]
    report = worker.report
    known = state.engine is not None and math.isfinite(report.free_tokens)
    return ShownWorker(
        worker_id=lease.worker_id,
        ready=ready,
        silent_s=now_s - worker.heard_s if worker.heard_s else None,
        running=state.running,
        max_concurrent=lease.max_concurrent,
        waiting=state.waiting,
        queued_tokens=report.queued_tokens,
        kv_tokens=report.kv_tokens if known else None,
        free_kv_tokens=int(report.free_tokens) if known else None,
        known_blocks=parts.pool.index.held_blocks(lease.worker_id),
        block_tokens=lease.block_tokens,
        prefill_tokens_per_s=worker.prefill_tokens_per_s,
        shares_kv=lease.shares_kv,
        limits=parts.pool.told_of(worker),
        modules=sorted(modules, key=lambda module: module.reference)[:WORKER_MODULES_MAX],
        modules_left_out=max(0, len(modules) - WORKER_MODULES_MAX),
        others_modules=len(state.modules) - len(modules) if tenant.is_admin else None,
    )


def _requests(parts: GatewayParts, tenant: Tenant, now_s: float) -> ShownRequests:
    live = parts.live
    under_way = live.under_way(tenant.name, now_s)
    return ShownRequests(
        under_way=_shown(under_way[:REQUESTS_MAX], now_s),
        left_out=max(0, len(under_way) - REQUESTS_MAX),
        ended=_shown(live.ended(tenant.name), now_s),
        others=live.by_step().total() - len(under_way) if tenant.is_admin else None,
    )


def _shown(states: Sequence[LiveState], now_s: float) -> list[ShownRequest]:
    shown = []
    for state in states:
        fields = asdict(state)
        ended_s = fields.pop("ended_s")
        ago_s = None if ended_s is None else max(now_s - ended_s, 0.0)
        shown.append(ShownRequest(**fields, seconds=sum(state.step_seconds), ended_ago_s=ago_s))
    return shown
