"""An administrator has a gateway embed its memories by another model."""

from pathlib import Path

import pytest

from memserve.client import CallFailed
from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import Prompts, open_embedder
from memserve.memory.texts.embedding import BertEmbedder
from tests.gateway.fixtures import StartGateway
from tests.memory.texts.test_embedding import tiny_model


async def test_the_model_of_the_call_embeds_and_the_setting_has_to_follow(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "other-model")
    gateway = await start_gateway()
    client = gateway.client
    await client.remember("notes", "w1 w2 w3")
    await client.remember("notes", "w4 w5 w6")
    steps = [step async for step in client.reindex_memories(str(folder), query_prompt="w9 ")]
    assert (steps[-1].done, steps[-1].memories_done, steps[-1].memories_total) == (True, 2, 2)
    assert steps[-1].embedder == "other-model"
    status = await client.status()
    assert (status.embedder, status.reindexing) == ("other-model", None)
    again = [step async for step in client.reindex_memories(str(folder), query_prompt="w9 ")]
    assert [step.done for step in again][-1]  # it embeds already
    found = await client.search(["notes"], "w1 w7")
    model = BertEmbedder(open_embedder(folder, Prompts(query="w9 ")))
    cosine = float(model.embed([found[0].memory.text])[0] @ model.embed(["w1 w7"], query=True)[0])
    assert found[0].dense_score == pytest.approx(cosine, abs=1e-3)
    with pytest.raises(StartupError, match="embedded by other-model"):
        await start_gateway(redis_url=gateway.redis.url)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "embedder: must name a model"),
        ({"cancel": True}, "cancel: no reindexing is under way"),
        ({"embedder": "m\nm"}, "embedder: must be at most 1024 bytes on one line"),
        ({"embedder": "bundled", "query_prompt": "q: "}, "query_prompt: is for a model"),
        ({"embedder": "/nowhere/at/all"}, "embedder: "),
    ],
)
async def test_a_model_that_cannot_be_used_is_refused_by_its_field(
    start_gateway: StartGateway, asked: dict[str, str | bool], why: str
) -> None:
    gateway = await start_gateway()
    with pytest.raises(CallFailed, match=why) as failed:
        async for _ in gateway.client.reindex_memories(**asked):  # type: ignore[arg-type]
            pass
    assert failed.value.code.name == "INVALID_ARGUMENT"
    assert (await gateway.client.status()).embedder.startswith("all-MiniLM-L6-v2")
