"""No tenant meets the memories of another, over real Milvus Lite."""

import pytest

from memserve.errors import (
    NamespaceNotFound,
)
from memserve.memory.texts.memory import VectorMemory
from tests.memory.texts.handbook import TENANT, remember, search

HOSTILE_TENANTS = [
    "acme",
    'acme" or "1" == "1',
    "acme' or 1 == 1 or '",
    "acme\\",
    "acme\x00",
    "ACME",
    "acme ",
    "%",
    "*",
    "",
    '["acme","handbook"]',
]


@pytest.mark.asyncio
async def test_no_tenant_ever_sees_the_memories_of_another(vector: VectorMemory) -> None:
    for number, tenant in enumerate(HOSTILE_TENANTS):
        await remember(
            vector, f"The vault code of owner {number} is 12345.", tenant=tenant, memory_id="vault"
        )
        await remember(
            vector,
            f"Only owner {number} has this.",
            tenant=tenant,
            namespace=f"own-{number}",
            memory_id="own",
        )
    for number, tenant in enumerate(HOSTILE_TENANTS):
        expected = f"The vault code of owner {number} is 12345."
        assert (await vector.get(tenant, "handbook", "vault")).text == expected
        hits = await search(vector, "vault code 12345 of every owner", tenant=tenant, limit=64)
        assert [hit.memory.text for hit in hits] == [expected]
        assert await vector.count(tenant, "handbook") == 1
        assert await vector.list_namespaces(tenant) == ["handbook", f"own-{number}"]
        other = (number + 1) % len(HOSTILE_TENANTS)
        with pytest.raises(NamespaceNotFound):
            await vector.get(tenant, f"own-{other}", "own")
        with pytest.raises(NamespaceNotFound):
            await search(vector, "Only owner", tenant=tenant, namespace=f"own-{other}")
        assert await vector.forget(tenant, f"own-{other}", "own") is False


@pytest.mark.asyncio
async def test_one_tenants_forget_leaves_the_others_memory_of_the_same_id(vector: VectorMemory) -> None:
    await remember(vector, "of acme", memory_id="m1")
    await remember(vector, "of globex", tenant="globex", memory_id="m1")
    assert await vector.forget("globex", "handbook", "m1")
    assert (await vector.get(TENANT, "handbook", "m1")).text == "of acme"
    assert await search(vector, "of acme", tenant="globex") == []


@pytest.mark.asyncio
async def test_a_small_tenant_gets_all_its_hits_among_many_rows_of_others(vector: VectorMemory) -> None:
    for number in range(120):
        await remember(vector, f"The cat number {number} sleeps.", tenant="large")
    for number in range(5):
        await remember(vector, f"A distant report on tax form {number}.", tenant="small")
    assert len(await search(vector, "cat", tenant="small", limit=5)) == 5
