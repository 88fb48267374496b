"""Names and values that are refused."""

from pathlib import Path

import pytest

from memserve.domain import NewMemory, SearchQuery
from memserve.errors import InvalidField
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, remember, search


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "namespace",
    [
        "",
        "A",
        ".a",
        "-a",
        "a" * 65,
        "a b",
        "ä",
        'a"',
        'x"] or tenant_key != "',
        "a\n",
        "a/b",
        "a\x00",
        "*",
        "a'",
    ],
)
async def test_a_bad_namespace_is_refused_by_every_call(vector: VectorMemory, namespace: str) -> None:
    await remember(vector, "one", memory_id="m1")
    for field, call in (
        ("namespace", remember(vector, "one", namespace=namespace)),
        ("namespace", vector.get(TENANT, namespace, "m1")),
        ("namespace", vector.forget(TENANT, namespace, "m1")),
        ("namespace", vector.count(TENANT, namespace)),
        ("namespaces", search(vector, "q", namespaces=["handbook", namespace])),
    ):
        with pytest.raises(InvalidField) as invalid:
            await call
        assert invalid.value.field == field


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("text", {"text": ""}),
        ("text", {"text": " \n\t"}),
        ("text", {"text": "x" * 8193}),
        ("text", {"text": "ä" * 4097}),
        ("text", {"text": "\ud800"}),
        ("source", {"source": "s" * 513}),
        ("keywords", {"keywords": ["k"] * 17}),
        ("keywords", {"keywords": ["k" * 65]}),
        ("keywords", {"keywords": ["ok", ""]}),
        ("memory_id", {"memory_id": "m" * 129}),
        ("memory_id", {"memory_id": 'm"] or pk != "'}),
        ("memory_id", {"memory_id": "m 1"}),
    ],
)
async def test_a_bad_memory_is_refused_by_the_name_of_its_field(
    vector: VectorMemory, field: str, change: dict[str, object]
) -> None:
    fields: dict[str, object] = {
        "text": "t",
        "source": "s",
        "keywords": (),
        "memory_id": "m1",
        **change,
    }
    with pytest.raises(InvalidField) as invalid:
        await vector.remember(TENANT, NewMemory("notes", **fields))  # type: ignore[arg-type]
    assert invalid.value.field == field
    assert await vector.list_namespaces(TENANT) == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("field", "namespaces", "query", "limit"),
    [
        ("namespaces", [], "q", 5),
        ("namespaces", [f"n{number}" for number in range(17)], "q", 5),
        ("query", ["handbook"], "", 5),
        ("query", ["handbook"], "q" * 4097, 5),
        ("limit", ["handbook"], "q", -1),
        ("limit", ["handbook"], "q", 65),
    ],
)
async def test_a_bad_search_is_refused_by_the_name_of_its_field(
    vector: VectorMemory, field: str, namespaces: list[str], query: str, limit: int
) -> None:
    with pytest.raises(InvalidField) as invalid:
        await vector.search(TENANT, SearchQuery(tuple(namespaces), query, limit), 10.0)
    assert invalid.value.field == field


@pytest.mark.asyncio
async def test_a_path_that_milvus_lite_cannot_use_is_refused(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    with pytest.raises(InvalidField):
        await VectorMemory.open(str(tmp_path / "memories"), embedder, redis_server.url)
