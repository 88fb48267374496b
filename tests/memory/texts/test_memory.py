"""The vector memory over real Milvus Lite."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import Memory, ScoredMemory
from memserve.errors import (
    EmbedderChanged,
    InvalidField,
    MemoryConflict,
    MemoryNotFound,
    NamespaceNotFound,
    VectorStoreHeld,
    VectorStoreUnavailable,
)
from memserve.memory.texts.embedder_files import Prompts, bundled_model_dir, open_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.rules import content_id
from memserve.policy.recall.ranking import fuse, query_words, rank_by_words
from tests.kv.redis_server import RedisServer

TENANT = "acme"
HANDBOOK = [
    ("heating", "To turn off the radiators, press the red button beside the boiler."),
    ("gate", "The north gate opens with the code QX7741B."),
    ("gate-south", "The south gate opens with the code QX7741C."),
    ("lunch", "Lunch is served at noon in the canteen on the second floor."),
    ("printer", "The printer on floor two needs toner cartridge 85A."),
    ("pump", "The pump in hall 3 must be primed by hand after a power cut."),
]


async def remember(
    memory: VectorMemory,
    text: str,
    *,
    tenant: str = TENANT,
    namespace: str = "handbook",
    memory_id: str | None = None,
) -> Memory:
    return await memory.remember(
        tenant, namespace, text, source="handbook.pdf", keywords=(), memory_id=memory_id, now_s=1000.0
    )


async def remember_handbook(memory: VectorMemory) -> None:
    for memory_id, text in HANDBOOK:
        await remember(memory, text, memory_id=memory_id)


async def search(
    memory: VectorMemory, query: str, *, tenant: str = TENANT, namespace: str = "handbook", limit: int = 5
) -> list[ScoredMemory]:
    return await memory.search(tenant, [namespace], query, limit, timeout_s=10)


def ids(hits: list[ScoredMemory]) -> list[str]:
    return [hit.memory.memory_id for hit in hits]


# Remember and get


@pytest.mark.asyncio
async def test_a_memory_comes_back_as_it_was_remembered(vector: VectorMemory) -> None:
    text = "line one\n\"quoted\" 'single' \\ back\\slash 東京 🙂\ttab"
    stored = await vector.remember(
        TENANT,
        "notes",
        text,
        source="https://example.org/?a=1&b='2'",
        keywords=("alpha", 'be"ta'),
        memory_id="m:1",
        now_s=1234.5,
    )
    assert stored == Memory(
        "m:1", "notes", text, "https://example.org/?a=1&b='2'", ("alpha", 'be"ta'), 1234.5
    )
    assert await vector.get(TENANT, "notes", "m:1") == stored


@pytest.mark.asyncio
async def test_a_memory_at_every_limit_is_stored_whole(vector: VectorMemory) -> None:
    text = "ä" * 4096
    stored = await vector.remember(
        TENANT, "a" * 64, text, source="s" * 512, keywords=["k" * 64] * 16, memory_id="i" * 128, now_s=0.0
    )
    assert await vector.get(TENANT, "a" * 64, "i" * 128) == stored
    assert stored.text == text


@pytest.mark.asyncio
async def test_an_accent_in_one_piece_or_in_two_is_the_same_memory(vector: VectorMemory) -> None:
    composed, decomposed = "Le café de Zoë, 가나", unicodedata.normalize("NFD", "Le café de Zoë, 가나")
    assert composed != decomposed
    first = await vector.remember(
        TENANT, "notes", decomposed, source=decomposed, keywords=[decomposed], memory_id=None, now_s=1.0
    )
    assert (first.text, first.source, first.keywords) == (composed, composed, (composed,))
    assert (
        await vector.remember(
            TENANT, "notes", composed, source=composed, keywords=[composed], memory_id=None, now_s=2.0
        )
        == first
    )
    named = await vector.remember(
        TENANT, "notes", decomposed, source="", keywords=(), memory_id="m1", now_s=1.0
    )
    assert (
        await vector.remember(TENANT, "notes", composed, source="", keywords=(), memory_id="m1", now_s=2.0)
        == named
    )
    assert ids(await search(vector, unicodedata.normalize("NFD", "café"), namespace="notes")) == ids(
        await search(vector, "café", namespace="notes")
    )


@pytest.mark.asyncio
async def test_repeating_a_remember_returns_the_memory_stored_first(vector: VectorMemory) -> None:
    first = await vector.remember(
        TENANT, "notes", "one", source="s", keywords=["k"], memory_id="m1", now_s=1.0
    )
    again = await vector.remember(
        TENANT, "notes", "one", source="s", keywords=["k"], memory_id="m1", now_s=2.0
    )
    assert again == first
    assert again.created_s == 1.0
    assert await vector.count(TENANT, "notes") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "source", "keywords"), [("two", "s", ["k"]), ("one", "t", ["k"]), ("one", "s", ["l"])]
)
async def test_an_id_with_other_content_is_a_conflict_and_changes_nothing(
    vector: VectorMemory, text: str, source: str, keywords: list[str]
) -> None:
    first = await vector.remember(
        TENANT, "notes", "one", source="s", keywords=["k"], memory_id="m1", now_s=1.0
    )
    with pytest.raises(MemoryConflict) as conflict:
        await vector.remember(
            TENANT, "notes", text, source=source, keywords=keywords, memory_id="m1", now_s=2.0
        )
    assert conflict.value.memory_id == "m1"
    assert await vector.get(TENANT, "notes", "m1") == first


@pytest.mark.asyncio
async def test_concurrent_remembers_of_one_id_store_one_content(vector: VectorMemory) -> None:
    results = await asyncio.gather(
        *(remember(vector, f"text {n}", memory_id="m1") for n in range(8)), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, Memory)]
    assert len(winners) == 1
    assert all(isinstance(result, MemoryConflict) for result in results if not isinstance(result, Memory))
    assert await vector.get(TENANT, "handbook", "m1") == winners[0]


@pytest.mark.asyncio
async def test_the_same_content_remembered_twice_without_an_id_is_one_memory(vector: VectorMemory) -> None:
    first = await remember(vector, "the same")
    assert await remember(vector, "the same") == first
    assert first.memory_id == content_id("the same", "handbook.pdf", ())
    assert (await remember(vector, "not the same")).memory_id != first.memory_id
    assert await vector.count(TENANT, "handbook") == 2


@pytest.mark.asyncio
async def test_a_namespace_comes_into_being_with_its_first_memory(vector: VectorMemory) -> None:
    assert await vector.list_namespaces(TENANT) == []
    for call in (
        vector.get(TENANT, "notes", "m1"),
        vector.count(TENANT, "notes"),
        vector.search(TENANT, ["notes"], "anything", 5, timeout_s=10),
    ):
        with pytest.raises(NamespaceNotFound) as missing:
            await call
        assert missing.value.namespace == "notes"
    await remember(vector, "one", namespace="notes", memory_id="m1")
    await remember(vector, "two", namespace="a.b_c-d", memory_id="m1")
    assert await vector.list_namespaces(TENANT) == ["a.b_c-d", "notes"]
    assert await vector.count(TENANT, "notes") == 1


@pytest.mark.asyncio
async def test_an_unknown_id_in_a_known_namespace_is_not_found(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="m1")
    with pytest.raises(MemoryNotFound) as missing:
        await vector.get(TENANT, "handbook", "m2")
    assert missing.value.memory_id == "m2"


@pytest.mark.asyncio
async def test_one_id_in_two_namespaces_is_two_memories(vector: VectorMemory) -> None:
    await remember(vector, "one", namespace="first", memory_id="m1")
    await remember(vector, "two", namespace="second", memory_id="m1")
    assert await vector.forget(TENANT, "first", "m1")
    assert (await vector.get(TENANT, "second", "m1")).text == "two"


# Forget


@pytest.mark.asyncio
@pytest.mark.parametrize("flushed", [False, True], ids=["unflushed", "flushed"])
async def test_a_forgotten_memory_is_gone_everywhere_at_once_and_after_reopening(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, flushed: bool
) -> None:
    path = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    await remember_handbook(memory)
    if flushed:
        await memory.close()
        memory = await VectorMemory.open(path, embedder, redis_server.url)
    assert await memory.forget(TENANT, "handbook", "gate") is True

    async def assert_gone() -> None:
        with pytest.raises(MemoryNotFound):
            await memory.get(TENANT, "handbook", "gate")
        assert "gate" not in ids(await search(memory, "QX7741B"))
        assert "gate" not in ids(await search(memory, "The north gate opens with the code", limit=64))
        assert await memory.count(TENANT, "handbook") == len(HANDBOOK) - 1

    await assert_gone()
    assert await memory.forget(TENANT, "handbook", "gate") is False
    await memory.close()
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    await assert_gone()
    await memory.close()


@pytest.mark.asyncio
async def test_a_forgotten_id_may_be_used_again(vector: VectorMemory) -> None:
    await remember(vector, "the old text about otters", memory_id="m1")
    assert await vector.forget(TENANT, "handbook", "m1")
    await remember(vector, "the new text about badgers", memory_id="m1")
    assert (await vector.get(TENANT, "handbook", "m1")).text == "the new text about badgers"
    (hit,) = await search(vector, "otters badgers")
    assert hit.memory.text == "the new text about badgers"


@pytest.mark.asyncio
async def test_a_namespace_outlives_its_last_memory(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="m1")
    await vector.forget(TENANT, "handbook", "m1")
    assert await search(vector, "one") == []
    assert await vector.count(TENANT, "handbook") == 0
    assert await vector.list_namespaces(TENANT) == ["handbook"]


@pytest.mark.asyncio
async def test_forgetting_in_an_unknown_namespace_forgets_nothing(vector: VectorMemory) -> None:
    assert await vector.forget(TENANT, "nowhere", "m1") is False
    assert await vector.list_namespaces(TENANT) == []


# Search


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
    assert best.score == pytest.approx(2 / 61)


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
    await vector.remember(
        TENANT, "handbook", "Ask Mr. Lee.", source="", keywords=["zephyrine"], memory_id="lee", now_s=0.0
    )
    assert ids(await search(vector, "zephyrine"))[0] == "lee"


@pytest.mark.asyncio
async def test_a_search_covers_the_namespaces_it_names_and_no_others(vector: VectorMemory) -> None:
    for namespace in ("a", "b", "c"):
        await remember(vector, f"The cat of {namespace} sleeps.", namespace=namespace, memory_id="cat")
    hits = await vector.search(TENANT, ["a", "c", "a"], "cat", 10, timeout_s=10)
    assert {hit.memory.namespace for hit in hits} == {"a", "c"}
    assert len(hits) == 2
    with pytest.raises(NamespaceNotFound):
        await vector.search(TENANT, ["a", "d"], "cat", 10, timeout_s=10)


@pytest.mark.asyncio
async def test_equal_scores_come_in_the_order_of_their_ids_before_and_after_a_flush(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    path = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    names = [f"m{number:02d}" for number in range(20)]
    for name in random.Random(7).sample(names, len(names)):
        await remember(memory, "Every copy says the same.", memory_id=name)
    before = await search(memory, "which copy says the same?", limit=20)
    await memory.close()
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    after = await search(memory, "which copy says the same?", limit=20)
    await memory.close()
    assert ids(before) == names
    assert ids(after) == names


# Names and values


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
        ("namespaces", vector.search(TENANT, ["handbook", namespace], "q", 5, timeout_s=10)),
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
        ("memory_id", {"memory_id": ""}),
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
        "keywords": [],
        "memory_id": "m1",
        "now_s": 0.0,
        **change,
    }
    with pytest.raises(InvalidField) as invalid:
        await vector.remember(TENANT, "notes", **fields)  # type: ignore[arg-type]
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
        ("limit", ["handbook"], "q", 0),
        ("limit", ["handbook"], "q", 65),
    ],
)
async def test_a_bad_search_is_refused_by_the_name_of_its_field(
    vector: VectorMemory, field: str, namespaces: list[str], query: str, limit: int
) -> None:
    with pytest.raises(InvalidField) as invalid:
        await vector.search(TENANT, namespaces, query, limit, timeout_s=10)
    assert invalid.value.field == field


@pytest.mark.asyncio
async def test_memories_that_another_model_embedded_are_not_searched_with_this_one(
    tmp_path: Path, own_redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    """No search would find them: it is said at once, and with the old model all is there."""
    other = BertEmbedder(open_embedder(bundled_model_dir(), Prompts(query="query: ")))
    uri, redis = str(tmp_path / "memories.db"), own_redis_server.url

    async def opened(by: BertEmbedder) -> VectorMemory:
        return await VectorMemory.open(uri, by, redis)

    for by in (embedder, other, embedder):  # there is nothing yet that one of them embedded
        await (await opened(by)).close()
    memory = await opened(embedder)
    await remember_handbook(memory)
    await memory.close()
    with pytest.raises(EmbedderChanged, match=r"embedded by all-MiniLM-L6-v2 \(English\)"):
        await opened(other)
    memory = await opened(embedder)
    assert ids(await search(memory, "How do I stop the heating?"))[0] == "heating"
    for memory_id, _ in HANDBOOK:
        await memory.forget(TENANT, "handbook", memory_id)
    await memory.close()
    memory = await opened(other)
    await remember_handbook(memory)
    assert ids(await search(memory, "How do I stop the heating?"))[0] == "heating"
    await memory.close()


@pytest.mark.asyncio
async def test_a_path_that_milvus_lite_cannot_use_is_refused(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    with pytest.raises(InvalidField):
        await VectorMemory.open(str(tmp_path / "memories"), embedder, redis_server.url)


# Tenants


HOSTILE_TENANTS = [
    "acme",
    'acme" or "1" == "1',
    "acme' or 1 == 1 or '",
    "acme\\",
    "acme\x00",
    "ACME",
    "acme ",
    "%",
    "*",
    "",
    '["acme","handbook"]',
]


@pytest.mark.asyncio
async def test_no_tenant_ever_sees_the_memories_of_another(vector: VectorMemory) -> None:
    for number, tenant in enumerate(HOSTILE_TENANTS):
        await remember(
            vector, f"The vault code of owner {number} is 12345.", tenant=tenant, memory_id="vault"
        )
        await remember(
            vector,
            f"Only owner {number} has this.",
            tenant=tenant,
            namespace=f"own-{number}",
            memory_id="own",
        )
    for number, tenant in enumerate(HOSTILE_TENANTS):
        expected = f"The vault code of owner {number} is 12345."
        assert (await vector.get(tenant, "handbook", "vault")).text == expected
        hits = await search(vector, "vault code 12345 of every owner", tenant=tenant, limit=64)
        assert [hit.memory.text for hit in hits] == [expected]
        assert await vector.count(tenant, "handbook") == 1
        assert await vector.list_namespaces(tenant) == ["handbook", f"own-{number}"]
        other = (number + 1) % len(HOSTILE_TENANTS)
        with pytest.raises(NamespaceNotFound):
            await vector.get(tenant, f"own-{other}", "own")
        with pytest.raises(NamespaceNotFound):
            await search(vector, "Only owner", tenant=tenant, namespace=f"own-{other}")
        assert await vector.forget(tenant, f"own-{other}", "own") is False


@pytest.mark.asyncio
async def test_one_tenants_forget_leaves_the_others_memory_of_the_same_id(vector: VectorMemory) -> None:
    await remember(vector, "of acme", memory_id="m1")
    await remember(vector, "of globex", tenant="globex", memory_id="m1")
    assert await vector.forget("globex", "handbook", "m1")
    assert (await vector.get(TENANT, "handbook", "m1")).text == "of acme"
    assert await search(vector, "of acme", tenant="globex") == []


@pytest.mark.asyncio
async def test_a_small_tenant_gets_all_its_hits_among_many_rows_of_others(vector: VectorMemory) -> None:
    for number in range(120):
        await remember(vector, f"The cat number {number} sleeps.", tenant="large")
    for number in range(5):
        await remember(vector, f"A distant report on tax form {number}.", tenant="small")
    assert len(await search(vector, "cat", tenant="small", limit=5)) == 5


# Durability and failure


KILLED_WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from memserve.memory.texts.embedding import BertEmbedder
    from memserve.memory.texts.memory import VectorMemory

    async def main() -> None:
        memory = await VectorMemory.open(sys.argv[1], BertEmbedder(), sys.argv[2])
        for number in range(3):
            await memory.remember("acme", "notes", f"note {number}", source="s", keywords=["k"],
            memory_id=f"m{number}", now_s=5.0)
        await memory.forget("acme", "notes", "m1")
        print("acknowledged", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
)


@pytest.fixture
def killed_writer(tmp_path: Path, redis_server: RedisServer) -> Iterator[subprocess.Popen[str]]:
    """A process that has stored memories in `tmp_path / memories.db`, has them acknowledged, and still
    lives.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "memories.db"), redis_server.url],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "acknowledged\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.asyncio
async def test_what_was_acknowledged_outlives_a_kill(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, killed_writer: subprocess.Popen[str]
) -> None:
    killed_writer.send_signal(signal.SIGKILL)
    killed_writer.wait()
    memory = await VectorMemory.open(str(tmp_path / "memories.db"), embedder, redis_server.url)
    assert await memory.get("acme", "notes", "m0") == Memory("m0", "notes", "note 0", "s", ("k",), 5.0)
    assert await memory.list_namespaces("acme") == ["notes"]
    assert set(ids(await search(memory, "note", namespace="notes"))) == {"m0", "m2"}
    with pytest.raises(MemoryNotFound):
        await memory.get("acme", "notes", "m1")
    await memory.close()


@pytest.mark.asyncio
async def test_a_second_process_is_refused_until_the_first_is_gone(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, killed_writer: subprocess.Popen[str]
) -> None:
    path = str(tmp_path / "memories.db")
    with pytest.raises(VectorStoreHeld):
        await VectorMemory.open(path, embedder, redis_server.url)
    killed_writer.kill()
    killed_writer.wait()
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    assert await memory.count("acme", "notes") == 2
    await memory.close()


@pytest.mark.asyncio
async def test_new_rows_are_flushed_by_number_or_when_it_is_quiet(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    def segments(name: str) -> int:
        return len(list((tmp_path / name).rglob("*.parquet")))

    for name, rows, quiet_s in (("rows.db", 4, 3600.0), ("quiet.db", 1000, 0.2)):
        memory = await VectorMemory.open(
            str(tmp_path / name), embedder, redis_server.url, flush_rows=rows, flush_quiet_s=quiet_s
        )
        for number in range(4):
            await remember(memory, f"note {number}")
        for _ in range(200):
            if segments(name):
                break
            await asyncio.sleep(0.05)
        assert segments(name) > 0, name
        await memory.close()


@pytest.mark.asyncio
async def test_a_flush_waits_for_a_quiet_moment_but_not_for_ever(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flushed() -> bool:
        return any(tmp_path.rglob("*.parquet"))

    monkeypatch.setattr("memserve.memory.texts.settling.FLUSH_WITHIN_S", 1.5)
    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"), embedder, redis_server.url, flush_rows=1000, flush_quiet_s=0.5
    )
    stored = await remember(memory, "a note", tenant="acme", namespace="notes")
    remembered_s = time.monotonic()
    while not flushed():
        await memory.get("acme", "notes", stored.memory_id)
        assert time.monotonic() - remembered_s < 30
    assert time.monotonic() - remembered_s > 1.0
    await memory.close()


@pytest.mark.asyncio
async def test_searches_that_have_cost_as_much_as_a_flush_bring_one(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"), embedder, redis_server.url, flush_rows=1000, flush_quiet_s=60
    )
    settling = memory.settling
    for number in range(8):
        await remember(memory, f"note {number}", tenant="acme", namespace="notes")
    settling._flush_s = 0.02  # the cost of so many looks at a row: 200
    searches = 0
    while not settling.figures.flushes and searches < 100:
        await memory.search("acme", ["notes"], "note", 1, timeout_s=5)
        await asyncio.sleep(0.05)
        searches += 1
    # Two calls of a search, eight rows each.
    assert 10 <= searches <= 20
    await memory.close()


@pytest.mark.asyncio
async def test_reads_during_writes_and_flushes_miss_nothing_that_was_acknowledged(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"), embedder, redis_server.url, flush_rows=5, flush_quiet_s=0.05
    )
    acknowledged: list[str] = []

    async def write() -> None:
        for number in range(60):
            acknowledged.append((await remember(memory, f"note {number}")).memory_id)

    async def read(writing: "asyncio.Task[None]") -> int:
        reads = 0
        while not writing.done():
            expected = set(acknowledged)
            if expected:
                found = await search(memory, "note", limit=64)
                assert expected <= set(ids(found))
                await memory.get(TENANT, "handbook", acknowledged[-1])
                reads += 1
            await asyncio.sleep(0)
        return reads

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        reading = [group.create_task(read(writing)) for _ in range(2)]
    assert all(task.result() > 0 for task in reading)
    await memory.close()


@pytest.mark.asyncio
async def test_a_search_that_cannot_be_in_time_says_so_in_time(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    with pytest.raises(VectorStoreUnavailable, match="within"):
        await vector.search(TENANT, ["handbook"], "gate", 5, timeout_s=0.0005)
    assert ids(await search(vector, "QX7741B"))[0] == "gate"


@pytest.mark.asyncio
async def test_a_closed_memory_is_unavailable_and_may_be_closed_again(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="m1")
    await vector.close()
    await vector.close()
    with pytest.raises(VectorStoreUnavailable, match="closed"):
        await vector.get(TENANT, "handbook", "m1")


# A Milvus behind a URI: Milvus Lite's own server in another process


def start_server(data_dir: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        str(Path(sys.executable).with_name("milvus-lite")),
        "server",
        "--data-dir",
        str(data_dir),
        "--host",
        "127.0.0.1",
    ]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    raise AssertionError("the Milvus server did not start")


@pytest.mark.asyncio
async def test_a_remote_milvus_may_be_down_at_the_start_and_be_killed_later(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    memory = await VectorMemory.open(f"http://127.0.0.1:{port}", embedder, redis_server.url, call_timeout_s=5)
    started_s = time.monotonic()
    with pytest.raises(VectorStoreUnavailable):
        await memory.search(TENANT, ["handbook"], "gate", 5, timeout_s=0.3)
    assert time.monotonic() - started_s < 1

    server = start_server(tmp_path / "server", port)
    try:
        await until_available(memory)
        stored = await remember(memory, "The north gate opens with the code QX7741B.", memory_id="gate")
        assert ids(await search(memory, "QX7741B")) == ["gate"]
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        with pytest.raises(VectorStoreUnavailable):
            await memory.search(TENANT, ["handbook"], "gate", 5, timeout_s=0.3)
        server = start_server(tmp_path / "server", port)
        await until_available(memory)
        assert await memory.get(TENANT, "handbook", "gate") == stored
    finally:
        await memory.close()
        server.kill()
        server.wait()


async def until_available(memory: VectorMemory) -> None:
    for _ in range(75):
        try:
            await memory.list_namespaces(TENANT)
        except VectorStoreUnavailable:
            await asyncio.sleep(0.2)
        else:
            return
    raise AssertionError("the vector store did not come back")


# Ranking by word


def note(name: str, text: str) -> Memory:
    return Memory(name, "n", text, "", (), 0.0)


def test_a_new_memory_with_the_rare_word_beats_old_ones_with_three_common_words() -> None:
    common = [note(f"m{number:02d}", f"power key signal {number}") for number in range(32)]
    fresh = note("fresh", "the gate opens with qx7741b")
    rows = rank_by_words(["qx7741b", "power", "key", "signal"], common, [[fresh], common, common, common], 32)
    assert rows[0][0] == fresh
    assert len(rows) == 32


def test_what_holds_no_word_of_the_query_is_not_a_hit_by_word() -> None:
    assert rank_by_words(["gate"], [note("m1", "lunch")], [[]], 32) == []
    assert rank_by_words(["gate"], [], [[]], 32) == []


def test_the_longest_words_of_a_query_are_kept_and_function_words_are_not() -> None:
    assert query_words("Where is THE gate, gate of foo_barbaz?") == ["barbaz", "gate", "foo"]
    assert len(query_words(" ".join(f"word{number}" for number in range(20)))) == 8
    assert query_words("where is the ?!") == []


# Fusion


def scored(name: str, score: float) -> tuple[Memory, float]:
    return Memory(name, "n", name, "", (), 0.0), score


def test_a_memory_that_both_halves_find_beats_one_that_either_finds_first() -> None:
    hits = fuse([scored("a", 0.9), scored("b", 0.8)], [scored("c", 9.0), scored("b", 8.0)], 10)
    assert ids(hits) == ["b", "a", "c"]
    assert hits[0].score == pytest.approx(2 / 62)
    assert (hits[1].dense_score, hits[1].bm25_score) == (0.9, None)
    assert (hits[2].dense_score, hits[2].bm25_score) == (None, 9.0)


def test_fusion_returns_a_memory_once_though_a_half_returns_it_twice() -> None:
    assert ids(fuse([scored("a", 0.9), scored("a", 0.9), scored("b", 0.5)], [], 10)) == ["a", "b"]


@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=12),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_hits_does_not_depend_on_the_order_in_which_milvus_returns_equals(
    scores: list[float], limit: int, shuffler: random.Random
) -> None:
    rows = [scored(f"m{number:02d}", score) for number, score in enumerate(scores)]
    shuffled = rows.copy()
    shuffler.shuffle(shuffled)
    assert fuse(shuffled, shuffled, limit) == fuse(rows, rows, limit)
    assert len(fuse(rows, rows, limit)) == min(limit, len(rows))


@pytest.mark.asyncio
async def test_a_search_in_many_turns_finds_what_one_in_one_turn_finds(
    vector: VectorMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        await remember(
            vector, f"Lantern {number} of the amber harbour opens gate {number % 7} by the north tower."
        )
    query = "Which lantern opens the amber gate of the north tower by the harbour?"
    at_once = await vector.search(TENANT, ["handbook"], query, 16, timeout_s=10)
    monkeypatch.setattr("memserve.memory.texts.search.ROWS_IN_A_TURN", 0)
    assert await vector.search(TENANT, ["handbook"], query, 16, timeout_s=10) == at_once
    assert any(hit.bm25_score for hit in at_once)
