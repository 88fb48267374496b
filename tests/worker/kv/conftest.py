from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from memserve.kv.store import RedisChunkStore
from tests.kv.one_chunk import put
from tests.kv.redis_server import RedisServer
from tests.worker.kv.halves import CHUNK_BYTES, KEYS, NAMESPACE, Halves


@pytest.fixture
def halves(own_redis_server: RedisServer) -> Iterator[Halves]:
    both = Halves(own_redis_server.url, load_budget_s=1.0)
    yield both
    both.close()


@pytest.fixture
def chunks(own_redis_server: RedisServer) -> list[bytes]:
    """What Redis holds under KEYS."""
    random = np.random.default_rng(7)
    values = [random.integers(-128, 127, CHUNK_BYTES, dtype=np.int8).tobytes() for _ in KEYS]
    store = RedisChunkStore(own_redis_server.url, NAMESPACE.digest)
    for key, value in zip(KEYS, values, strict=True):
        put(store, key, value)
    store.close()
    return values
