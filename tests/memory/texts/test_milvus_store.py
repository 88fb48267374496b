"""Milvus as a store of records: a server, and Milvus Lite in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memserve.memory.texts.milvus import MilvusAccess, MilvusMemories, Vectors
from memserve.memory.texts.milvus_reads import COUNTED_WORDS
from tests.memory.texts.milvus_server import running_server
from tests.memory.texts.store_contract import each_clause
from tests.memory.texts.store_kept import TIMEOUT_S, Clause, Kept
from tests.memory.texts.store_records import DIM, memory_of, scope_of

VECTORS = Vectors(DIM)

REAL_CHILD = True


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


def test_words_that_fill_their_lists_are_counted_and_many_of_them_estimated(kept: Kept) -> None:
    common = [f"common{letter}" for letter in "abcdefghijkl"]
    assert len(common) > COUNTED_WORDS
    kept.put(
        *(memory_of(f"m{number}", " ".join(common)) for number in range(30)),
        *(memory_of(f"o{number}", "nothing else") for number in range(10)),
        memory_of("rare", "rarity"),
    )
    found = kept.store.by_words(scope_of(kept.tenant), [*common, "rarity"], 5, timeout_s=TIMEOUT_S)
    frequency = found.document_frequency
    assert [frequency[word] for word in common[:COUNTED_WORDS]] == [30] * COUNTED_WORDS
    assert all(5 <= frequency[word] <= found.rows == 41 for word in common[COUNTED_WORDS:])
    assert frequency["rarity"] == 1
    assert len(found.memories) == 5
