"""What is made of one tenant's memories is followed, erased and consolidated for that tenant alone.

Both tenants have the same names: namespaces, memories, modules, even files with equal content.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.client import AsyncClient, ErasureState
from memserve.domain import Sampling
from tests.gateway.access.test_tenants import alice as alice
from tests.gateway.access.test_tenants import bob as bob
from tests.gateway.access.test_tenants import gateway as gateway
from tests.gateway.access.test_tenants import keys_file as keys_file
from tests.gateway.erasures.test_erasures import FACTS
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES
from tests.gateway.running import RunningGateway, eventually
from tests.gateway.test_consolidation import TEXTS

GREEDY = Sampling(max_tokens=2)


async def furnish(gateway: RunningGateway, client: AsyncClient, folder: Path) -> str:
    """Memories, a version that was made of them, and an answer from both. Returns the answer's id."""
    for memory_id, text in FACTS.items():
        await client.remember("town", text, memory_id=memory_id)
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=1)
    files["probes.json"] = json.dumps(PASSES).encode()
    version = await client.modules.publish(
        "handbook", write_files(folder, files), sources=["memory:town/m0@1 memory:town/m1@1"]
    )
    await client.modules.promote("handbook", version.version)
    answer = await client.generate(
        "Who is the founder?", module="handbook", namespaces="town", sampling=GREEDY
    )
    request_id = answer.route.request_id

    async def kept() -> bool:
        return (await client.explain_answer(request_id)).answer is not None

    await eventually(kept)
    return request_id


@pytest_asyncio.fixture
async def answers(
    gateway: RunningGateway, alice: AsyncClient, bob: AsyncClient, tmp_path: Path
) -> tuple[str, str]:
    """Of alice and of bob."""
    return (
        await furnish(gateway, alice, tmp_path / "alice"),
        await furnish(gateway, bob, tmp_path / "bob"),
    )


@pytest.mark.parametrize("of", ["town/m0", "handbook@1"])
async def test_lineage_names_nothing_of_another_tenant(
    answers: tuple[str, str], alice: AsyncClient, bob: AsyncClient, of: str
) -> None:
    of_alice, of_bob = [await client.lineage.show(of) for client in (alice, bob)]
    assert f"answer:{answers[0]}" in {node.name for node in of_alice.nodes}
    assert f"answer:{answers[1]}" not in {node.name for node in of_alice.nodes}
    assert f"answer:{answers[1]}" in {node.name for node in of_bob.nodes}


async def test_an_erasure_leaves_another_tenants_memories_versions_and_answers(
    answers: tuple[str, str], alice: AsyncClient, bob: AsyncClient
) -> None:
    report = await alice.lineage.erase("town", "m0")
    assert report.state is ErasureState.DONE
    assert await alice.modules.all() == []
    [version] = await bob.modules.versions("handbook")
    assert (await bob.modules.get("handbook")).aliases[0].targets[0].version == version.version
    assert (await bob.get_memory("town", "m0")).text == FACTS["m0"]
    assert (await bob.explain_answer(answers[1])).answer is not None
    answer = await bob.generate("Who is the founder?", module="handbook", sampling=GREEDY)
    assert [module.digest for module in answer.route.modules] == [version.digest]
    assert await bob.lineage.erasures() == []


async def test_a_consolidation_that_is_accepted_leaves_another_tenants_memories(
    alice: AsyncClient, bob: AsyncClient
) -> None:
    for client in (alice, bob):
        for memory_id, text in TEXTS.items():
            await client.remember("town", text, memory_id=memory_id)
    await alice.consolidate("town")
    assert await bob.consolidations() == []
    assert (await alice.decide_consolidation("town", accept=True)).plan.merges
    assert len((await alice.list_memories("town")).memories) < len(TEXTS)
    page = await bob.list_memories("town")
    assert {memory.memory_id: (memory.text, memory.version) for memory in page.memories} == {
        memory_id: (text, 1) for memory_id, text in TEXTS.items()
    }
