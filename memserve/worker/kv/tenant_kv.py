"""Whose the KV in an engine's own memory is, so that one tenant's can be freed while requests run.

vLLM keeps blocks by their hash, which does not say whose they are. The scheduler's half of the connector sees
each request with its owner and its blocks' hashes, and notes them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.base import make_offload_key

from memserve.worker.kv.vllm_internals import drop_host_chunk, host_chunk

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
    from vllm.v1.request import Request

FREE = "memserve_free"
"""The key under which a request's `kv_transfer_params` name the tenant whose KV is to be freed."""
FREED = "memserve_freed"
"""The key under which they carry what `Freed.told` returns, once that request has ended."""
NOTED_MIN = 4096


@dataclass(frozen=True, slots=True)
class Freed:
    """What became of a tenant's KV."""

    blocks: int = 0
    """Of device memory: no request finds them any more."""
    chunks: int = 0
    """Of host memory."""
    held: int = 0
    """Chunks of host memory that are on their way to or from Redis, so that they are still there."""

    def told(self) -> list[int]:
        return [self.blocks, self.chunks, self.held]


class TenantKv:
    """The hashes of each tenant's blocks. Belongs to the scheduler's thread.

    A block that a request is using stays with that request, and is found by no other. What such a request
    computes later is dropped when it ends.
    """

    def __init__(self, groups: int, noted_min: int = NOTED_MIN) -> None:
        """groups: of KV caches. noted_min: hashes that are noted before any are looked at again."""
        self._groups = groups
        self._pool: BlockPool | None = None
        self._noted: dict[str, dict[bytes, None]] = {}
        self._noted_min = self._noted_max = noted_min
        self._under_way: dict[str, tuple[str, Request]] = {}
        # Requests that were under way when their tenant's KV was freed.
        self._tainted: set[str] = set()

    def bind(self, pool: BlockPool) -> None:
        self._pool = pool

    def began(self, tenant: str, request: Request) -> None:
        self._under_way[request.request_id] = tenant, request

    def ended(self, request_id: str, host: CPUOffloadingManager | None) -> None:
        """host: what keeps chunks in host memory; None without any."""
        tenant, request = self._under_way.pop(request_id, ("", None))
        if request is None:
            return
        if request_id in self._tainted:
            self._tainted.discard(request_id)
            _, held = self._drop(request.block_hashes, host)
            self._noted.setdefault(tenant, {}).update(held)
            return
        self._noted.setdefault(tenant, {}).update(dict.fromkeys(request.block_hashes))
        if sum(map(len, self._noted.values())) > self._noted_max:
            self._forget_gone(host)

    def free(self, tenant: str, host: CPUOffloadingManager | None) -> tuple[Freed, list[str]]:
        """Returns what was freed, and the requests of the tenant that are under way: they store nothing more.

        What is not free yet is still noted, for the next call.
        """
        own = [request for owner, request in self._under_way.values() if owner == tenant]
        self._tainted.update(request.request_id for request in own)
        noted = self._noted.pop(tenant, {})
        for request in own:
            noted.update(dict.fromkeys(request.block_hashes))
        freed, held = self._drop(noted, host)
        if held:
            self._noted[tenant] = held
        return freed, [request.request_id for request in own]

    def _drop(
        self, hashes: Iterable[bytes], host: CPUOffloadingManager | None
    ) -> tuple[Freed, dict[bytes, None]]:
        """Returns the hashes too whose chunks are held."""
        blocks = chunks = 0
        held: dict[bytes, None] = {}
        for block_hash in hashes:
            for group in range(self._groups):
                blocks += self._drop_blocks(block_hash, group)
                if host is None:
                    continue
                dropped = drop_host_chunk(host, make_offload_key(block_hash, group))
                if dropped is None:
                    held[block_hash] = None
                else:
                    chunks += dropped
        return Freed(blocks, chunks, len(held)), held

    def _drop_blocks(self, block_hash: Any, group: int) -> int:
        """Several blocks may have one hash: requests that ran side by side computed it."""
        dropped = 0
        while self._pool is not None and (found := self._pool.get_cached_block(block_hash, [group])):
            self._pool.evict_blocks({block.block_id for block in found})
            dropped += len(found)
        return dropped

    def _forget_gone(self, host: CPUOffloadingManager | None) -> None:
        """Forget the hashes of what neither memory has any more."""
        groups = range(self._groups)

        def is_there(block_hash: Any) -> bool:
            in_blocks = self._pool is not None and any(
                self._pool.get_cached_block(block_hash, [group]) for group in groups
            )
            return in_blocks or (
                host is not None
                and any(host_chunk(host, make_offload_key(block_hash, group)) for group in groups)
            )

        self._noted = {
            tenant: left
            for tenant, hashes in self._noted.items()
            if (left := dict.fromkeys(filter(is_there, hashes)))
        }
        self._noted_max = max(self._noted_min, 2 * sum(map(len, self._noted.values())))


def tenant_to_free(params: Mapping[str, Any] | None) -> str:
    """params: a request's `kv_transfer_params`. Empty: it frees nothing."""
    return str((params or {}).get(FREE) or "")
