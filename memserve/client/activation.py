"""The client's calls of `ActivationService`: `Client.activation` and `AsyncClient.activation`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from memserve.client.wire.inference import Conversation, turns
from memserve.domain import HeldPrefix, Warmth
from memserve.pb.v1 import activation_pb2 as pb


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Where a prefix is cached. redis_tokens: None when Redis does not answer."""

    prompt_tokens: int
    chunk_tokens: int
    redis_tokens: int | None
    workers: tuple[HeldPrefix, ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """Chunks removed from Redis, and those that stay because they are pinned."""

    removed_chunks: int
    pinned_chunks: int


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Bytes in Redis, headers included: of the tenant, and of all. A quota of 0 is none."""

    stored_bytes: int
    chunks: int
    pinned_bytes: int
    tenant_quota_bytes: int
    cache_stored_bytes: int
    cache_quota_bytes: int


class ActivationCalls:
    """Blocking calls; each raises CallFailed. A prefix is its messages (a string: one of the user), and the
    module they are asked with.
    """

    def __init__(
        self, call: Callable[[str, Any], Any], stream: Callable[[str, Any], Generator[Any, None, None]]
    ) -> None:
        self._call = call
        self._stream = stream

    def lookup(self, messages: Conversation, *, module: str = "", model: str = "") -> CachedPrefix:
        return _cached(
            self._call("LookupPrefix", pb.LookupPrefixRequest(prefix=_prefix(messages, module, model)))
        )

    def warm(
        self, messages: Conversation, *, module: str = "", model: str = "", worker_id: str = ""
    ) -> Iterator[Warmth]:
        """Yields progress; the last is done."""
        request = pb.WarmPrefixRequest(prefix=_prefix(messages, module, model), worker_id=worker_id)
        with contextlib.closing(self._stream("WarmPrefix", request)) as responses:
            for response in responses:
                yield _warmth(response)

    def pin(self, messages: Conversation, duration_s: int, *, module: str = "", model: str = "") -> int:
        """Returns the pinned tokens."""
        request = pb.PinPrefixRequest(prefix=_prefix(messages, module, model), duration_s=duration_s)
        return int(self._call("PinPrefix", request).pinned_tokens)

    def unpin(self, messages: Conversation, *, module: str = "", model: str = "") -> int:
        """Returns the tokens that were pinned."""
        return int(
            self._call(
                "UnpinPrefix", pb.UnpinPrefixRequest(prefix=_prefix(messages, module, model))
            ).unpinned_tokens
        )

    def evict(self, messages: Conversation, *, module: str = "", model: str = "") -> Evicted:
        return _evicted(
            self._call("EvictPrefix", pb.EvictPrefixRequest(prefix=_prefix(messages, module, model)))
        )

    def evict_module(self, module_digest: str) -> Evicted:
        return _evicted(self._call("EvictModule", pb.EvictModuleRequest(module_digest=module_digest)))

    def evict_tenant(self) -> Evicted:
        """All of the caller's tenant."""
        return _evicted(self._call("EvictTenant", pb.EvictTenantRequest()))

    def usage(self) -> CacheUsage:
        return _usage(self._call("GetUsage", pb.GetUsageRequest()))


class AsyncActivationCalls:
    """The same for asyncio."""

    def __init__(
        self,
        call: Callable[[str, Any], Awaitable[Any]],
        stream: Callable[[str, Any], AsyncGenerator[Any, None]],
    ) -> None:
        self._call = call
        self._stream = stream

    async def lookup(self, messages: Conversation, *, module: str = "", model: str = "") -> CachedPrefix:
        return _cached(
            await self._call("LookupPrefix", pb.LookupPrefixRequest(prefix=_prefix(messages, module, model)))
        )

    async def warm(
        self, messages: Conversation, *, module: str = "", model: str = "", worker_id: str = ""
    ) -> AsyncIterator[Warmth]:
        """Yields progress; the last is done."""
        request = pb.WarmPrefixRequest(prefix=_prefix(messages, module, model), worker_id=worker_id)
        async with contextlib.aclosing(self._stream("WarmPrefix", request)) as responses:
            async for response in responses:
                yield _warmth(response)

    async def pin(self, messages: Conversation, duration_s: int, *, module: str = "", model: str = "") -> int:
        """Returns the pinned tokens."""
        request = pb.PinPrefixRequest(prefix=_prefix(messages, module, model), duration_s=duration_s)
        return int((await self._call("PinPrefix", request)).pinned_tokens)

    async def unpin(self, messages: Conversation, *, module: str = "", model: str = "") -> int:
        """Returns the tokens that were pinned."""
        return int(
            (
                await self._call(
                    "UnpinPrefix", pb.UnpinPrefixRequest(prefix=_prefix(messages, module, model))
                )
            ).unpinned_tokens
        )

    async def evict(self, messages: Conversation, *, module: str = "", model: str = "") -> Evicted:
        return _evicted(
            await self._call("EvictPrefix", pb.EvictPrefixRequest(prefix=_prefix(messages, module, model)))
        )

    async def evict_module(self, module_digest: str) -> Evicted:
        return _evicted(await self._call("EvictModule", pb.EvictModuleRequest(module_digest=module_digest)))

    async def evict_tenant(self) -> Evicted:
        """All of the caller's tenant."""
        return _evicted(await self._call("EvictTenant", pb.EvictTenantRequest()))

    async def usage(self) -> CacheUsage:
        return _usage(await self._call("GetUsage", pb.GetUsageRequest()))


def _prefix(messages: Conversation, module: str, model: str) -> pb.Prefix:
    return pb.Prefix(model=model, module=module, messages=turns(messages))


def _cached(value: pb.LookupPrefixResponse) -> CachedPrefix:
    return CachedPrefix(
        prompt_tokens=value.prompt_tokens,
        chunk_tokens=value.chunk_tokens,
        redis_tokens=value.redis_tokens if value.HasField("redis_tokens") else None,
        workers=tuple(HeldPrefix(w.worker_id, w.device_tokens, w.held_tokens) for w in value.workers),
    )


def _warmth(value: pb.WarmPrefixResponse) -> Warmth:
    return Warmth(
        value.worker_id, value.prompt_tokens, value.computed_tokens, value.stored_tokens, value.done
    )


def _evicted(value: Any) -> Evicted:
    return Evicted(value.removed_chunks, value.pinned_chunks)


def _usage(value: pb.GetUsageResponse) -> CacheUsage:
    return CacheUsage(
        stored_bytes=value.stored_bytes,
        chunks=value.chunks,
        pinned_bytes=value.pinned_bytes,
        tenant_quota_bytes=value.tenant_quota_bytes,
        cache_stored_bytes=value.cache_stored_bytes,
        cache_quota_bytes=value.cache_quota_bytes,
    )
