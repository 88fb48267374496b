"""A tenant's KV is freed by the hashes that were noted, whoever else's is beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.v1.kv_offload.base import make_offload_key

from memserve.worker.kv.tenant_kv import FREE, Freed, TenantKv, tenant_to_free


class Pool:
    """Blocks by hash; several may have one."""

    def __init__(self, **blocks: int) -> None:
        self.blocks = {name.encode(): [object() for _ in range(count)] for name, count in blocks.items()}
        self.ids: dict[int, tuple[bytes, object]] = {}

    def get_cached_block(self, block_hash: bytes, groups: list[int]) -> list[Any] | None:
        held = self.blocks.get(block_hash)
        if not held or groups != [0]:
            return None
        self.ids[id(held[0])] = (block_hash, held[0])
        return [SimpleNamespace(block_id=id(held[0]))]

    def evict_blocks(self, block_ids: set[int]) -> None:
        for block_id in block_ids:
            block_hash, block = self.ids[block_id]
            self.blocks[block_hash].remove(block)


class Host:
    """What vLLM keeps of chunks in host memory, as far as it is used."""

    def __init__(self, **held: int) -> None:
        self.chunks = {
            make_offload_key(name.encode(), 0): SimpleNamespace(ref_cnt=count) for name, count in held.items()
        }
        self._policy = SimpleNamespace(get=self.chunks.get, remove=self.chunks.__delitem__)
        self._num_evictable_cache_chunks = len(held)
        self.events: list[Any] = []
        self.medium = "cpu"

    def _free_chunk(self, chunk: object) -> None:
        """Its place is another's."""


def request(name: str, *hashes: str) -> Any:
    return SimpleNamespace(request_id=name, block_hashes=[each.encode() for each in hashes])


def test_one_tenants_blocks_and_chunks_go_and_what_is_held_goes_later() -> None:
    pool, host = Pool(a=2, b=1, c=1), Host(a=0, b=1, c=0)
    kept: Any = host
    tenants = TenantKv(groups=1)
    tenants.bind(pool)  # type: ignore[arg-type]
    for owner, each in (("acme", request("r1", "a", "b")), ("other", request("r2", "c"))):
        tenants.began(owner, each)
        tenants.ended(each.request_id, kept)
    assert tenants.free("nobody", kept) == (Freed(), [])
    assert tenants.free("acme", kept) == (Freed(blocks=3, chunks=1, held=1), [])
    assert [len(blocks) for blocks in pool.blocks.values()] == [0, 0, 1]
    assert len(host.events) == 1 and host._num_evictable_cache_chunks == 2
    host.chunks[make_offload_key(b"b", 0)].ref_cnt = 0
    assert tenants.free("acme", kept) == (Freed(chunks=1), [])
    assert tenants.free("acme", kept) == (Freed(), [])
    assert set(host.chunks) == {make_offload_key(b"c", 0)}


def test_what_a_request_under_way_computes_later_goes_when_it_ends() -> None:
    pool = Pool(a=1)
    tenants = TenantKv(groups=1)
    tenants.bind(pool)  # type: ignore[arg-type]
    running = request("r1", "a")
    tenants.began("acme", running)
    assert tenants.free("acme", None) == (Freed(blocks=1), ["r1"])
    running.block_hashes.append(b"late")
    pool.blocks[b"late"] = [object()]
    tenants.ended("r1", None)
    assert pool.blocks[b"late"] == []
    assert tenants.free("acme", None) == (Freed(), [])


def test_hashes_of_what_has_left_are_forgotten() -> None:
    pool = Pool(a=1)
    tenants = TenantKv(groups=1, noted_min=4)
    tenants.bind(pool)  # type: ignore[arg-type]
    for number in range(20):
        each = request(f"r{number}", "a", f"gone{number}")
        tenants.began("acme", each)
        tenants.ended(each.request_id, None)
    assert sum(map(len, tenants._noted.values())) <= 5
    assert tenants.free("acme", None)[0] == Freed(blocks=1)


def test_the_tenant_is_named_in_a_requests_parameters() -> None:
    assert tenant_to_free(None) == tenant_to_free({}) == ""
    assert tenant_to_free({FREE: "acme"}) == "acme"
