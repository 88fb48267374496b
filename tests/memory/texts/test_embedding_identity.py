"""Which model stands behind an endpoint is known by what it makes of a few texts."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from memserve.config import Settings
from memserve.errors import EmbedderUnavailable, StartupError
from memserve.memory.texts.embedder_files import Prompts
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.encoders.references import References, named
from memserve.memory.texts.encoders.watched import CHECK_S, open_endpoint
from tests.kv.redis_server import RedisServer
from tests.memory.texts.embedding_server import KEY, EmbeddingServer, Noisy, serving


@pytest.fixture
def server(embedder: BertEmbedder) -> Iterator[EmbeddingServer]:
    with serving(embedder) as server:
        yield server


def settings(server: EmbeddingServer, redis: RedisServer, **changes: Any) -> Settings:
    return Settings(
        redis_url=SecretStr(redis.url),
        **{"embedder_url": server.url, "embedder_model": "minilm", "embedder_key": KEY, **changes},
    )


async def test_the_size_of_a_vector_is_learned_or_held_to_the_setting(
    server: EmbeddingServer, redis_server: RedisServer
) -> None:
    watched = await open_endpoint(settings(server, redis_server))
    assert watched.embedder.vectors.dim == 384 and len(watched.embedder.vectors.embedder) == 16
    watched.close()
    with pytest.raises(StartupError, match="384 numbers, and 512 are expected"):
        await open_endpoint(settings(server, redis_server, embedder_dim=512))


async def test_a_model_keeps_its_identity_through_noise_and_another_host_and_not_through_a_change(
    server: EmbeddingServer, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    async def identity(of: Any, **changes: Any) -> str:
        server.embedder = of
        watched = await open_endpoint(settings(server, redis_server, **changes))
        watched.close()
        return watched.embedder.vectors.embedder

    first = await identity(embedder)
    for _ in range(3):
        assert await identity(Noisy(embedder, 0.002)) == first
    moved = server.url.replace("localhost", "127.0.0.1")
    assert await identity(embedder, embedder_url=moved) == first
    other = await identity(Noisy(embedder, 0.2))
    prompted = await identity(embedder, embedder_query_prompt="query: ")
    assert len({first, other, prompted}) == 3
    assert await identity(embedder) == first, "put back"


async def test_two_gateways_that_start_at_once_agree(
    embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    noisy = Noisy(embedder, 0.002)
    references = [References(redis_server.url, named("race", Prompts())) for _ in range(8)]
    vectors = [noisy.embed(["a", "b", "c"]) for _ in references]
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in vectors]
    adopted = await asyncio.gather(*(each.adopt(unit) for each, unit in zip(references, units, strict=True)))
    assert len({reference.fingerprint for reference in adopted}) == 1
    for each in references:
        await each.close()


async def test_a_model_that_changes_while_it_serves_embeds_nothing_until_it_is_put_back(
    server: EmbeddingServer,
    embedder: BertEmbedder,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = await open_endpoint(settings(server, redis_server))
    now_s = [time.monotonic()]
    server.calls.clear()
    await watched.look(lambda: now_s[0])
    assert not server.calls, "it is not time"
    for changed, model in ((False, Noisy(embedder, 0.002)), (True, Noisy(embedder, 0.2)), (False, embedder)):
        server.embedder = model
        now_s[0] += CHECK_S + 1
        await watched.look(lambda: now_s[0])
        assert bool(watched.embedder.drift) is changed
        if changed:
            with pytest.raises(EmbedderUnavailable, match="is another one than embedded the memories"):
                watched.embedder.embed(["one"])
        else:
            watched.embedder.embed(["one"])
    assert caplog.text.count("is another one (agreement") == 1
    watched.close()


async def test_a_gateway_starts_beside_an_endpoint_that_is_down_when_it_has_known_it(
    server: EmbeddingServer, redis_server: RedisServer
) -> None:
    known = await open_endpoint(settings(server, redis_server))
    down = {"embedder_url": "http://127.0.0.1:1/v1", "embedder_timeout_s": 0.3}
    with pytest.raises(StartupError, match="embedder_url"):
        await open_endpoint(settings(server, redis_server, **down))
    with pytest.raises(StartupError, match="embedder_url"):
        await open_endpoint(settings(server, redis_server, embedder_dim=384, embedder_model="new", **down))
    started = await open_endpoint(settings(server, redis_server, embedder_dim=384, **down))
    assert started.embedder.vectors == known.embedder.vectors
    with pytest.raises(EmbedderUnavailable):
        started.embedder.embed(["one"])
    known.close()
    started.close()
