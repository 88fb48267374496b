"""The local index keeps the contract of a store of records, and what only a local one can promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memserve.memory.texts.local.index import LocalIndex
from tests.memory.texts.store_contract import Clause, Kept, each_clause
from tests.memory.texts.store_records import DIM

EMBEDDER = "a-model"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LocalIndex]:
    opened = LocalIndex.open(tmp_path / "index", DIM, EMBEDDER)
    yield opened
    opened.close()


@each_clause
def test_the_local_index_keeps_the_contract_of_a_store(index: LocalIndex, clause: Clause) -> None:
    clause(Kept(index))
