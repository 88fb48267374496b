"""What an erasure reaches outside the store of texts: computed state, kept answers, uses."""

from __future__ import annotations

from pathlib import Path

from memserve.demo import MODEL_DIR
from memserve.domain import Sampling
from memserve.kv.ledger.records import Owner
from tests.gateway.running import RunningGateway, eventually, open_gateway
from tests.gateway.test_prefixes import TEXT, members, store

SECRET = "The captain of the Amber Lantern is Berit Nordahl."


async def used(gateway: RunningGateway, memory_id: str) -> str:
    """Remember, answer with it, and store KV as a worker does. Returns the answer's request id."""
    client = gateway.client
    await client.remember("ships", SECRET, memory_id=memory_id)
    answer = await client.generate(
        "Who is the captain of the Amber Lantern?", namespaces="ships", sampling=Sampling(max_tokens=2)
    )
    assert [hit.memory.memory_id for hit in answer.route.passages] == [memory_id]

    async def kept() -> bool:
        return (await client.explain_answer(answer.route.request_id)).answer is not None

    await eventually(kept)
    store(gateway.redis, members(gateway, TEXT), Owner("default"))
    assert (await client.activation.usage()).chunks > 0
    return answer.route.request_id


async def test_what_used_an_erased_memory_goes_with_it(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, MODEL_DIR, recall_timeout_ms=10_000) as gateway:
        request_id = await used(gateway, "a")
        told = {place.place: place for place in await gateway.client.erase_memory("ships", "a")}
        assert told["kv"].removed > 0
        assert told["answers"].removed == 1
        assert told["backups"].detail == "there are none"
        assert (await gateway.client.activation.usage()).chunks == 0
        assert (await gateway.client.explain_answer(request_id)).answer is None


async def test_a_namespaces_report_says_what_was_removed_elsewhere(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, MODEL_DIR, recall_timeout_ms=10_000) as gateway:
        request_id = await used(gateway, "a")
        await gateway.client.remember("ships", "The harbour closes at nine.", memory_id="b")
        reports = [report async for report in gateway.client.delete_namespace("ships", confirm="ships")]
        told = {place.place: place for place in reports[-1].places}
        assert told["index"].removed == 2
        assert told["kv"].removed > 0
        assert told["answers"].removed == 1
        assert (await gateway.client.explain_answer(request_id)).answer is None


async def test_backups_that_may_have_it_are_told(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, MODEL_DIR, workers=()) as gateway:
        (gateway.settings.data / "backups" / "monday").mkdir(parents=True)
        await gateway.client.remember("ships", SECRET, memory_id="a")
        told = {place.place: place for place in await gateway.client.erase_memory("ships", "a")}
        assert "1 may have it" in told["backups"].detail
