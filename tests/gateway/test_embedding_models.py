"""A gateway whose memories are embedded by an endpoint, and put in order by a cross-encoder."""

import time
from pathlib import Path

import pytest

from memserve.client import CallFailed
from memserve.domain import RecallOutcome
from memserve.errors import StartupError
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.encoders.watched import CHECK_S
from tests.gateway.fixtures import StartGateway
from tests.memory.texts.embedding_server import KEY, Noisy, serving
from tests.memory.texts.test_reranker import tiny_cross_encoder


async def test_an_endpoint_embeds_and_its_failure_costs_the_passages_only(
    start_gateway: StartGateway,
) -> None:
    with serving(BertEmbedder()) as server:
        gateway = await start_gateway(
            embedder_url=server.url, embedder_model="minilm", embedder_key=KEY, embedder_timeout_s=2.0
        )
        client = gateway.client
        await client.remember("notes", "The spare key is in the blue drawer.")
        found = await client.search(["notes"], "Where is the key kept?")
        assert found[0].memory.text == "The spare key is in the blue drawer."
        assert found[0].dense_score is not None
        assert (await client.status()).embedder.startswith("minilm (")
        server.fault = lambda texts: 503
        with pytest.raises(CallFailed, match="no text can be embedded now") as failed:
            await client.search(["notes"], "Where is another key?")
        assert failed.value.code.name == "UNAVAILABLE" and KEY not in str(failed.value)
        answer = await client.generate("Who has which key?", namespaces=["notes"])
        assert answer.route.recall_outcome in (RecallOutcome.UNAVAILABLE, RecallOutcome.LATE)
        server.fault = None
        assert await client.search(["notes"], "Where is another key?")


async def test_a_model_that_changes_behind_the_endpoint_is_told_and_refused_at_the_next_start(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    embedder = BertEmbedder()
    with serving(embedder) as server:
        settings = {"embedder_url": server.url, "embedder_model": "minilm", "embedder_key": KEY}
        gateway = await start_gateway(**settings)
        await gateway.client.remember("notes", "The spare key is in the blue drawer.")
        watched = gateway.parts.watched_embedder
        assert watched is not None
        server.embedder = Noisy(embedder, 0.2)
        await watched.look(lambda: time.monotonic() + CHECK_S)
        with pytest.raises(CallFailed, match="is another one than embedded the memories"):
            await gateway.client.search(["notes"], "key")
        assert gateway.parts.metrics.embedding.changed._value.get() == 1
        with pytest.raises(StartupError, match=r"embedded by minilm \(\w{8}\), and minilm \(\w{8}\) would"):
            await start_gateway(**settings, redis_url=gateway.redis.url)


async def test_a_reranker_puts_searches_in_order_and_the_status_names_it(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    folder = tiny_cross_encoder(tmp_path / "cross")
    gateway = await start_gateway(reranker=str(folder))
    for number in range(6):
        await gateway.client.remember("notes", f"w{number} w{number + 7} of the key")
    found = (await gateway.client.find(["notes"], "w1 key", limit=3, rerank=True)).hits
    reranking = gateway.parts.texts.reranking
    assert reranking is not None
    scores = reranking.reranker.score("w1 key", [hit.memory.text for hit in found])
    assert scores == sorted(scores, reverse=True) and len(found) == 3
    assert (await gateway.client.status()).reranker == f"cross ({reranking.reranker.identity[:12]})"
    assert gateway.parts.metrics.embedding.reranked.labels("whole")._value.get() == 1
