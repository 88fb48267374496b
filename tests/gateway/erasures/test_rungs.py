"""A receipt names every rung that took part, and the facts of a module that the text corrects."""

from __future__ import annotations

from pathlib import Path

from memserve.client import Answer, AsyncClient
from memserve.domain import Sampling
from tests.gateway.erasures.test_erasures import made_of, town
from tests.gateway.running import RunningGateway


async def asked(client: AsyncClient) -> Answer:
    return await client.generate(
        "Who is the founder of the Velmora Institute?",
        module="handbook",
        namespaces="town",
        recall_timeout_ms=10_000,
        sampling=Sampling(max_tokens=2),
    )


async def test_rungs_are_named_with_their_costs(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    version = await made_of(gateway, tmp_path, 1, "m0", "m1")
    await client.modules.promote("handbook", 1)
    await asked(client)
    answer = await asked(client)
    rungs = {rung.kind: rung for rung in answer.usage.rungs}
    assert set(rungs) == {"passages", "prefix", "lora"}
    assert rungs["passages"].tokens > 0 and rungs["passages"].ms > 0
    assert rungs["prefix"].tokens == answer.usage.cached.total > 0
    assert (rungs["lora"].name, rungs["lora"].bytes) == ("handbook@1", version.size_bytes)
    assert answer.route.outdated == ()
    explained = await client.explain_answer(answer.route.request_id)
    assert explained.routing is not None and explained.routing.usage is not None
    assert explained.routing.usage.rungs == answer.usage.rungs


async def test_a_newer_version_in_the_prompt_is_told_beside_what_the_module_knows(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1")
    await client.modules.promote("handbook", 1)
    await client.update_memory("town", "m0", text="The founder of the Velmora Institute is Ada Lund.")
    [fact] = (await asked(client)).route.outdated
    assert (fact.module, fact.namespace, fact.memory_id, fact.known_version) == (
        "handbook@1",
        "town",
        "m0",
        1,
    )
    assert (fact.text_namespace, fact.text_memory_id, fact.text_version) == ("town", "m0", 2)


async def test_another_memory_that_says_otherwise_is_told_too(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1")
    await client.modules.promote("handbook", 1)
    await client.remember("town", "The founder of the Velmora Institute is Ada Lund.", memory_id="new")
    found = (await asked(client)).route.outdated
    assert [(fact.memory_id, fact.text_memory_id) for fact in found] == [("m0", "new")]
