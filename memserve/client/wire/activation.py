"""Messages of `ActivationService`."""

from __future__ import annotations

from memserve.client.values import CachedPrefix, CacheUsage, Conversation, Evicted
from memserve.client.wire.inference import turns
from memserve.domain import HeldPrefix, Warmth
from memserve.pb.v1 import activation_pb2 as pb


def prefix_of(messages: Conversation, module: str, model: str) -> pb.Prefix:
    """Raises UsageError."""
    return pb.Prefix(model=model, module=module, messages=turns(messages))


def cached_of(value: pb.LookupPrefixResponse) -> CachedPrefix:
    return CachedPrefix(
        prompt_tokens=value.prompt_tokens,
        chunk_tokens=value.chunk_tokens,
        redis_tokens=value.redis_tokens if value.HasField("redis_tokens") else None,
        workers=tuple(
            HeldPrefix(worker.worker_id, worker.device_tokens, worker.held_tokens) for worker in value.workers
        ),
    )


def warmth_of(value: pb.WarmPrefixResponse) -> Warmth:
    return Warmth(
        worker_id=value.worker_id,
        prompt_tokens=value.prompt_tokens,
        computed_tokens=value.computed_tokens,
        stored_tokens=value.stored_tokens,
        done=value.done,
    )


def evicted_of(
    value: pb.EvictPrefixResponse | pb.EvictModuleResponse | pb.EvictTenantResponse,
) -> Evicted:
    return Evicted(value.removed_chunks, value.pinned_chunks)


def usage_of(value: pb.GetUsageResponse) -> CacheUsage:
    return CacheUsage(
        stored_bytes=value.stored_bytes,
        chunks=value.chunks,
        pinned_bytes=value.pinned_bytes,
        tenant_quota_bytes=value.tenant_quota_bytes,
        cache_stored_bytes=value.cache_stored_bytes,
        cache_quota_bytes=value.cache_quota_bytes,
    )
