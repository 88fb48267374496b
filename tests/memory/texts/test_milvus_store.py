"""Milvus as a store of records: a server, and Milvus Lite in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memserve.memory.texts.milvus import MilvusAccess, MilvusMemories, Vectors
from tests.memory.texts.milvus_server import running_server
from tests.memory.texts.store_contract import each_clause
from tests.memory.texts.store_kept import TIMEOUT_S, Clause, Kept
from tests.memory.texts.store_records import DIM

VECTORS = Vectors(DIM)


@pytest.fixture(scope="module", params=["server", "lite"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MilvusMemories]:
    folder = tmp_path_factory.mktemp("milvus")
    if request.param == "lite":
        lite = MilvusMemories(str(folder / "m.db"), MilvusAccess(), VECTORS, timeout_s=TIMEOUT_S)
        yield lite
        lite.close()
        return
    with running_server(folder) as uri:
        remote = MilvusMemories(uri, MilvusAccess(), VECTORS, timeout_s=TIMEOUT_S)
        yield remote
        remote.close()


@pytest.fixture
def kept(store: MilvusMemories) -> Kept:
    return Kept(store)


@each_clause
def test_milvus_keeps_the_contract(kept: Kept, clause: Clause) -> None:
    clause(kept)
