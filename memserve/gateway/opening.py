"""Opens the parts of a gateway that take more than a line. What is opened is closed by the stack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from memserve.config import Settings
from memserve.disk import DATA_DISK, DiskWatch
from memserve.domain import WorkerLease
from memserve.domain.worker_calls import WorkerCalls
from memserve.errors import (
    EmbedderChanged,
    StartupError,
    VectorStoreDamaged,
    VectorStoreHeld,
    VectorStoreUnavailable,
)
from memserve.gateway.erasure import OutsideTheStore
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.gateway.workers.pool import WorkerPool
from memserve.kv.index import BlockIndex
from memserve.kv.ledger.records import Quotas
from memserve.kv.lookup import PrefixLookup
from memserve.kv.transport.check import check_cache_servers
from memserve.memory.modules.blobs.store import BlobStore
from memserve.memory.modules.kinds.files import BaseModel, EmbeddingShape, KvShape
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.modules.uploads import Uploads
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.encoders.watched import WatchedEndpoint
from memserve.memory.texts.following import SearchParts
from memserve.memory.texts.journal_entries import Quotas as MemoryQuotas
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.milvus import MilvusAccess, is_local_uri
from memserve.memory.texts.opening import open_embedding, open_reranking
from memserve.metrics.instruments import GatewayMetrics
from memserve.model.architectures import no_embeddings_reason
from memserve.model.files import ModelFiles
from memserve.registry.leases import Registry
from memserve.tls.live import LiveTls
from memserve.turns import on_own_thread

TOKENIZER_THREADS = 2


async def open_pool(
    settings: Settings,
    model: ModelFiles,
    connect: Callable[[WorkerLease], WorkerCalls],
    metrics: GatewayMetrics,
    base_digest: str,
    stack: contextlib.AsyncExitStack,
) -> WorkerPool:
    own_model = base_digest or settings.model_digest
    registry = Registry(settings.redis)
    stack.push_async_callback(registry.close)
    pool = WorkerPool(
        registry, BlockIndex(), model.tokenizer_digest(), connect, metrics.loop_failed, own_model
    )
    await pool.start()
    stack.push_async_callback(pool.close)
    return pool


async def open_cache(
    settings: Settings, stack: contextlib.AsyncExitStack
) -> tuple[PrefixLookup, ActivationMemory]:
    await on_own_thread(partial(check_cache_servers, settings.cache_redis))
    lookup = PrefixLookup(settings.cache_redis, budget_s=settings.lookup_timeout_ms / 1000)
    stack.push_async_callback(lookup.close)
    quotas = Quotas(settings.kv_quota_bytes, settings.kv_tenant_quota_bytes)
    activation = ActivationMemory(settings.cache_redis, ttl_s=settings.kv_ttl_s, quotas=quotas)
    stack.push_async_callback(activation.close)
    return lookup, activation


async def open_texts(
    settings: Settings,
    metrics: GatewayMetrics,
    disk: DiskWatch,
    tls: LiveTls | None,
    stack: contextlib.AsyncExitStack,
) -> tuple[VectorMemory, WatchedEndpoint | None]:
    embedding, watched = await open_embedding(settings, metrics.embedding)
    if watched is not None:
        stack.callback(watched.close)
    options = TextOptions(
        access=MilvusAccess(settings.milvus_token.get_secret_value(), None if tls is None else tls.files),
        may_flush=disk.has_room,
        quotas=MemoryQuotas(
            settings.max_memories_per_tenant,
            settings.max_namespaces_per_tenant,
            settings.max_memory_bytes_per_tenant,
        ),
        forgotten_days=settings.forgotten_days,
    )
    try:
        texts = await VectorMemory.open(settings.vector_uri, embedding, settings.redis, options)
    except (EmbedderChanged, VectorStoreDamaged, VectorStoreHeld, VectorStoreUnavailable) as error:
        raise StartupError(str(error)) from error
    stack.push_async_callback(texts.close)
    texts.reranking = await open_reranking(settings, metrics.embedding)
    return texts, watched


def connect_texts(texts: VectorMemory, tokenizer: ChatTokenizer, outside: OutsideTheStore) -> None:
    """What a search has beside its store, and what an erasure has to reach outside it."""
    texts.search_parts = SearchParts(
        count_tokens=lambda text: tokenizer.lengths([text])[0], strengths=outside.ledger.strengths
    )
    texts.erasers += [outside.kept_answers, outside.uses, outside.backups]


async def open_modules(
    settings: Settings, model: ModelFiles, stack: contextlib.AsyncExitStack
) -> ParametricMemory:
    store = ModuleStore(
        settings.redis,
        modules_max=settings.max_modules_per_tenant,
        versions_max=settings.max_versions_per_module,
        audit_days=settings.audit_retention_days,
        audit_max_bytes=settings.audit_max_bytes,
    )
    stack.push_async_callback(store.close)
    shapes = model.tensor_shapes()
    # Without its weights a gateway cannot tell which model it is. Workers still refuse a module that does not
    # fit.
    base_digest = await on_own_thread(model.model_digest) if shapes else ""
    memory = ParametricMemory(
        store,
        BlobStore(settings.module_store_url, settings.modules_root / "modules"),
        Uploads(settings.data / "staging", settings.max_module_bytes, settings.max_staging_bytes_per_tenant),
        BaseModel(
            shapes,
            model.vocab_size,
            settings.max_lora_rank,
            kv_shape(settings, model, base_digest),
            embedding_shape(model, base_digest),
        ),
        base_digest,
    )
    stack.callback(memory.files.close)
    return memory


def kv_shape(settings: Settings, model: ModelFiles, base_digest: str) -> KvShape:
    """What a cartridge for this model is checked against."""
    return KvShape(
        layers=model.layers,
        kv_heads=model.kv_heads,
        head_size=model.head_size,
        context_tokens=model.max_context_tokens,
        block_tokens=settings.block_tokens,
        rope=model.rope,
        base_digest=base_digest,
        refusal=model.no_prefix_reason,
    )


def embedding_shape(model: ModelFiles, base_digest: str) -> EmbeddingShape:
    """What a soft prompt for this model is checked against."""
    return EmbeddingShape(
        width=model.hidden_size,
        dtype=model.dtype,
        context_tokens=model.max_context_tokens,
        base_digest=base_digest,
        refusal=no_embeddings_reason(model.architecture),
    )


def disk_watch(settings: Settings) -> DiskWatch:
    """The disks that this gateway writes to."""
    places = {DATA_DISK: settings.data}
    if settings.module_store_url and "://" not in settings.module_store_url:
        places["the disk of the module store"] = Path(settings.module_store_url)
    if is_local_uri(settings.vector_uri):
        places["the disk of the vector store"] = Path(settings.vector_uri).parent
    return DiskWatch(places, settings.disk_reserve_bytes)
