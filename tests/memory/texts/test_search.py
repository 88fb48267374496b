"""Search by meaning and by word, over real Milvus Lite."""

import random
from pathlib import Path

import pytest

from memserve.domain import Link, LinkKind, NewMemory, SearchQuery
from memserve.errors import (
    NamespaceNotFound,
)
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import HANDBOOK, TENANT, ids, remember, remember_handbook, search


@pytest.mark.asyncio
async def test_every_known_item_is_found_first_by_its_own_words(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    for memory_id, text in HANDBOOK:
        assert ids(await search(vector, text))[0] == memory_id


@pytest.mark.asyncio
async def test_hybrid_finds_the_code_word_that_dense_alone_ranks_lower(vector: VectorMemory) -> None:
    # To MiniLM the parts of such codes look alike: the wanted one is not the nearest.
    codes = [f"KX{number:04d}Z" for number in range(7700, 7760)]
    for code in codes:
        await remember(vector, f"Locker {code} belongs to the workshop.", memory_id=code)
    hits = await search(vector, "who owns KX7741Z", limit=64)
    assert hits[0].memory.memory_id == "KX7741Z"
    assert hits[0].bm25_score is not None
    nearest = max(hits, key=lambda hit: hit.dense_score if hit.dense_score is not None else -1.0)
    assert nearest.memory.memory_id != "KX7741Z"


@pytest.mark.asyncio
async def test_hybrid_finds_the_paraphrase_that_bm25_alone_misses(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    hits = await search(vector, "How do I switch off the central heating?")
    assert hits[0].memory.memory_id == "heating"
    (hit,) = [
        hit for hit in await search(vector, "warmth control shutdown") if hit.memory.memory_id == "heating"
    ]
    assert hit.bm25_score is None
    assert hit.dense_score is not None


@pytest.mark.asyncio
async def test_a_hit_carries_the_score_of_each_half(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    best = (await search(vector, "The north gate opens with the code QX7741B."))[0]
    assert best.memory.memory_id == "gate"
    assert best.dense_score == pytest.approx(1.0, abs=1e-4)
    assert best.bm25_score is not None and best.bm25_score > 1
    assert best.score == pytest.approx(best.relevance, abs=1e-6) and best.relevance > 0.9


@pytest.mark.asyncio
async def test_a_memory_has_the_same_strength_as_a_hit_and_beside_one(vector: VectorMemory) -> None:
    mill = NewMemory("handbook", "The mill stands by the weir.", memory_id="mill", strength=0.5)
    link = Link(LinkKind.CAUSED_BY, "mill", "handbook")
    flour = NewMemory("handbook", "Flour is QX7741B.", memory_id="flour", links=(link,))
    for new in (mill, flour):
        await vector.remember(TENANT, new)
    asked = SearchQuery(("handbook",), "QX7741B", 1, link_depth=1)
    beside = (await vector.search(TENANT, asked, 10)).hits[1]
    hit = next(each for each in await search(vector, "weir") if each.memory.memory_id == "mill")
    (followed,) = await vector.follow_links(TENANT, ("handbook", "flour"))
    assert beside.memory == hit.memory == followed.memory
    assert beside.strength == hit.strength == followed.strength == pytest.approx(0.5, rel=0.01)


@pytest.mark.asyncio
async def test_words_of_scripts_without_spaces_are_found(vector: VectorMemory) -> None:
    texts = [
        "北京的天气今天很好",
        "上海的交通非常拥堵",
        "我喜欢在周末爬山",
        "パスワードは青い箱の中にあります",
        "회의는 화요일 오후에 열립니다",
        "รหัสผ่านอยู่ในกล่องสีฟ้า",
        "लाल किताब अलमारी में है",
    ]
    for number, text in enumerate(texts):
        await remember(vector, text, memory_id=f"m{number}")
    asked = {"天气": 0, "交通": 1, "爬山": 2, "青い箱": 3, "회의": 4, "화요일": 4, "รหัสผ่าน": 5, "किताब": 6}
    for query, number in asked.items():
        best = max(await search(vector, query), key=lambda hit: hit.bm25_score or 0.0)
        assert best.memory.memory_id == f"m{number}", query
        assert best.bm25_score is not None


@pytest.mark.asyncio
async def test_a_long_text_of_such_a_script_is_stored_and_found_by_its_beginning(
    vector: VectorMemory,
) -> None:
    letters = [chr(0x4E00 + (7 * number) % 20_000) for number in range(2600)]
    await remember(vector, "".join(letters), memory_id="long")
    [hit] = await search(vector, "".join(letters[40:44]))
    assert hit.bm25_score is not None


@pytest.mark.asyncio
async def test_function_words_alone_find_nothing_by_word(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    assert all(hit.bm25_score is None for hit in await search(vector, "where is the and what is it with"))


@pytest.mark.asyncio
async def test_a_query_without_words_is_answered(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    assert len(await search(vector, "?!")) == 5


@pytest.mark.asyncio
async def test_a_memory_is_found_by_its_keyword(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    await remember(vector, "Ask Mr. Lee.", keywords=["zephyrine"], memory_id="lee")
    assert ids(await search(vector, "zephyrine"))[0] == "lee"


@pytest.mark.asyncio
async def test_a_search_covers_the_namespaces_it_names_and_no_others(vector: VectorMemory) -> None:
    for namespace in ("a", "b", "c"):
        await remember(vector, f"The cat of {namespace} sleeps.", namespace=namespace, memory_id="cat")
    hits = await search(vector, "cat", namespaces=["a", "c", "a"], limit=10)
    assert {hit.memory.namespace for hit in hits} == {"a", "c"}
    assert len(hits) == 2
    with pytest.raises(NamespaceNotFound):
        await search(vector, "cat", namespaces=["a", "d"])


@pytest.mark.asyncio
async def test_copies_come_newest_first_before_and_after_a_restart(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    path = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    names = [f"m{number:02d}" for number in range(20)]
    random.Random(7).shuffle(names)
    for name in names:
        await remember(memory, "Every copy says the same.", memory_id=name)
    before = await search(memory, "which copy says the same?", limit=20)
    await memory.close()
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    after = await search(memory, "which copy says the same?", limit=20)
    await memory.close()
    assert ids(before) == names[::-1]
    assert ids(after) == names[::-1]
