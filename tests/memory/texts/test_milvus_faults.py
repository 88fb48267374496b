"""Milvus that is full, gone, or has something else where the memories should be."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import resource
import string
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from memserve.domain import Link, LinkKind, MemoryAction, MemoryHistory, MemoryVersion
from memserve.errors import StartupError
from memserve.memory.texts.index import MILVUS_ERRORS, OWN_WORK, VectorIndex
from memserve.memory.texts.milvus import MEMORIES, MilvusAccess, MilvusMemories, Vectors
from memserve.memory.texts.milvus_rows import (
    CHUNK_BYTES,
    VARCHAR_MAX_BYTES,
    indexed_words,
    key_filter,
    link_filter,
    place_filter,
    row_of,
    scope_filter,
    word_filter,
)
from memserve.memory.texts.records import RECORD_MAX_BYTES, Record, encode_history
from memserve.memory.texts.store import Scope
from tests.memory.texts.milvus_server import free_port, running_server, start_server
from tests.memory.texts.store_records import DIM, memory_of, record_of, scope_of, vector_of

TENANT = "acme"
TIMEOUT_S = 30.0
VECTORS = Vectors(DIM)
HOSTILE = [
    'x" or tenant_key != "',
    "' or 1 == 1 or '",
    "\\",
    '"]',
    "%",
    "\n",
    "ü" * 300,
    "a" * 5000,
    "\u0000",
]


@pytest.fixture(scope="module", params=["lite", "server"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MilvusMemories]:
    folder = tmp_path_factory.mktemp("milvus")
    with contextlib.ExitStack() as stack:
        if request.param == "lite":
            uri = str(folder / "memories.db")
        else:
            uri = stack.enter_context(running_server(folder))
        opened = MilvusMemories(uri, MilvusAccess(), VECTORS, timeout_s=TIMEOUT_S)
        stack.callback(opened.close)
        yield opened


# Rows


@pytest.fixture
def tenant() -> str:
    """The tests share stores, and none its tenant."""
    return f"tenant-{uuid.uuid4().hex}"


def largest_record(letter: str, tenant: str = TENANT) -> Record:
    """Versions of 8 KiB of text, up to the largest history."""
    size = len(letter.encode())
    memory = memory_of("large", letter * (8192 // size), keywords=(letter * (64 // size),) * 16)
    versions: list[MemoryVersion] = []
    while True:
        longer = (*versions, MemoryVersion(memory, MemoryAction.UPDATED))
        if len(encode_history(MemoryHistory(longer, 7)).encode()) > RECORD_MAX_BYTES:
            break
        versions = list(longer)
    assert len(versions) > 20
    record = record_of(tenant, memory, vector_of(1))
    return Record(record.key, record.tenant_key, MemoryHistory(tuple(versions), 7), record.vector)


@pytest.mark.parametrize("letter", ["a", "ß", "東", "🙂"])
def test_the_largest_record_is_read_as_it_was_put(store: MilvusMemories, tenant: str, letter: str) -> None:
    record = largest_record(letter, tenant)
    store.put([record], timeout_s=TIMEOUT_S)
    assert store.get_many([record.key], timeout_s=TIMEOUT_S) == {record.key: record.without_vector()}
    assert store.nearest(scope_of(tenant), vector_of(1), 1, timeout_s=TIMEOUT_S)[0].memory == record.memory


def test_a_put_of_many_large_records_is_sent_in_calls_that_milvus_takes(
    store: MilvusMemories, tenant: str
) -> None:
    large = largest_record("b", tenant)
    records = [
        Record(record_of(tenant, memory_of(f"m{number}")).key, large.tenant_key, large.history, large.vector)
        for number in range(80)  # 20 MiB
    ]
    store.put(records, timeout_s=TIMEOUT_S)
    held = store.get_many([record.key for record in records], timeout_s=TIMEOUT_S)
    assert len(held) == 80


def test_random_histories_are_cut_into_columns_and_read_again(store: MilvusMemories, tenant: str) -> None:
    draw = random.Random(5)
    letters = string.ascii_letters + "äß東京🙂\n\"\\'"
    records = []
    for number in range(40):
        text = "".join(draw.choices(letters, k=draw.randint(1, 2000)))
        before = [
            memory_of(f"m{number}", text[: draw.randint(1, len(text))]) for _ in range(draw.randint(0, 9))
        ]
        records.append(record_of(tenant, memory_of(f"m{number}", text), before=before))
    store.put(records, timeout_s=TIMEOUT_S)
    held = store.get_many([record.key for record in records], timeout_s=TIMEOUT_S)
    assert held == {record.key: record.without_vector() for record in records}
    digests = store.digests([record.key for record in records], timeout_s=TIMEOUT_S)
    assert len(set(digests.values())) == len(records)


@pytest.mark.parametrize(
    "text",
    ["a " * 4096, "\ufdfa" * 2730, "\u0e01\u0e34" * 1365, "東" * 2730, "\u0301" * 4096],
    ids=lambda text: ascii(text[:2]),
)
def test_the_words_of_any_text_fit(store: MilvusMemories, tenant: str, text: str) -> None:
    """U+FDFA is 18 letters in NFKC."""
    memory = memory_of("wide", text)
    assert len(" ".join(indexed_words(memory)).encode()) <= VARCHAR_MAX_BYTES
    record = record_of(tenant, memory)
    assert all(len(chunk.encode()) <= CHUNK_BYTES for chunk in row_of(record, with_words=True)["current"])
    store.put([record], timeout_s=TIMEOUT_S)
    assert store.get_many([record.key], timeout_s=TIMEOUT_S) == {record.key: record.without_vector()}


# Filters


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_what_callers_wrote_stands_in_a_filter_as_its_digest(hostile: str) -> None:
    def shape(built: str) -> str:
        return re.sub(r'"[0-9a-f]{64}"', "DIGEST", built)

    scope, all_kinds = scope_of(TENANT), frozenset(LinkKind)
    assert shape(place_filter(scope, hostile, -5, 9)) == shape(place_filter(scope, "book", -5, 9))
    assert place_filter(scope, hostile, -5, 9) != place_filter(scope, "book", -5, 9)
    assert shape(link_filter(scope, hostile, hostile, all_kinds)) == shape(
        link_filter(scope, "notes", "m1", all_kinds)
    )
    assert key_filter([hostile, "0" * 64]) == f'pk in ["{"0" * 64}"]'
    assert key_filter([hostile]) == 'pk == ""'


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_names_and_words_that_were_not_checked_are_refused(hostile: str) -> None:
    with pytest.raises(ValueError, match="not checked"):
        scope_filter(scope_of(TENANT, hostile))
    with pytest.raises(ValueError, match="64 hex digits"):
        scope_filter(Scope(hostile, ("notes",)))
    if not hostile.isalnum():
        with pytest.raises(ValueError, match="letters and digits"):
            word_filter(scope_of(TENANT), hostile)


def test_times_of_any_size_are_written_in_digits() -> None:
    for number in (0.0, 1e-300, 1e22, -1e22, 1.7e9 + 1 / 1024, 5e-324):
        assert "e" not in scope_filter(scope_of(TENANT, created_from_s=number)).partition("created_s")[2][2:]
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            scope_filter(scope_of(TENANT, created_until_s=number))


def test_hostile_ids_find_only_themselves(store: MilvusMemories, tenant: str) -> None:
    linking = [
        record_of(tenant, memory_of(f"m{number}", links=(Link(LinkKind.NEXT, text),)))
        for number, text in enumerate(HOSTILE)
    ]
    store.put(linking, timeout_s=TIMEOUT_S)
    for record, text in zip(linking, HOSTILE, strict=True):
        found = store.linking_to(
            scope_of(tenant), "notes", text, frozenset({LinkKind.NEXT}), 10, timeout_s=TIMEOUT_S
        )
        assert found == [record.memory]


# Failures


@pytest.mark.asyncio
async def test_a_server_that_dies_before_a_put_fails_it_and_comes_back_by_itself(tmp_path: Path) -> None:
    port = free_port()
    server = start_server(tmp_path / "server", port)
    records = [record_of(TENANT, memory_of(f"m{number}")) for number in range(300)]
    index = VectorIndex(f"http://127.0.0.1:{port}", VECTORS, None, is_searched=True, call_timeout_s=5)
    try:
        await index.write(OWN_WORK, lambda store: store.put(records[:10], timeout_s=TIMEOUT_S))
        server.kill()
        server.wait()
        began_s = time.monotonic()
        with pytest.raises(MILVUS_ERRORS):
            await index.write(OWN_WORK, lambda store: store.put(records, timeout_s=1))
        assert time.monotonic() - began_s < 5, "its own timeout holds"
        server = start_server(tmp_path / "server", port)
        index.prepare_again()
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(*MILVUS_ERRORS):
                    await index.write(OWN_WORK, lambda store: store.put(records[5:], timeout_s=5))
                    break
                await asyncio.sleep(0.1)
        assert await index.write(OWN_WORK, lambda store: store.row_count(timeout_s=TIMEOUT_S)) == 300
    finally:
        await index.close(clean=False)
        server.kill()
        server.wait()


@contextlib.contextmanager
def files_of_at_most(size_bytes: int, pid: int) -> Iterator[None]:
    """Writes of the process beyond fail, as they do on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
async def test_a_full_disk_fails_the_put_and_the_same_put_succeeds_later(tmp_path: Path) -> None:
    index = VectorIndex(str(tmp_path / "memories.db"), VECTORS, None, is_searched=True, call_timeout_s=10)
    large = largest_record("c")
    first, second = (
        [
            Record(
                record_of(TENANT, memory_of(f"{name}{number}")).key,
                large.tenant_key,
                large.history,
                large.vector,
            )
            for number in range(20)
        ]
        for name in "ab"
    )
    await index.write(OWN_WORK, lambda store: store.put(first, timeout_s=TIMEOUT_S))
    await index.write(OWN_WORK, lambda store: store.flush(timeout_s=TIMEOUT_S))
    pid = await index.read(OWN_WORK, lambda store: store.process_id)
    assert pid is not None
    with files_of_at_most(1 << 20, pid), pytest.raises(MILVUS_ERRORS):
        await index.write(OWN_WORK, lambda store: store.put(second, timeout_s=TIMEOUT_S))
    await index.reopen(lambda: None)
    keys = [record.key for record in (*first, *second)]
    held = await index.write(OWN_WORK, lambda store: store.digests(keys, timeout_s=TIMEOUT_S))
    assert {record.key for record in first} <= held.keys()
    await index.write(OWN_WORK, lambda store: store.put(second, timeout_s=TIMEOUT_S))
    held = await index.write(OWN_WORK, lambda store: store.digests(keys, timeout_s=TIMEOUT_S))
    assert held.keys() == set(keys)
    await index.close(clean=False)


@pytest.mark.parametrize(
    ("columns", "dim", "difference"),
    [
        ({"pk": DataType.VARCHAR}, DIM, "column .* is missing"),
        (None, 2 * DIM, f"its vectors have {2 * DIM} numbers and not {DIM}"),
    ],
)
def test_a_collection_of_another_schema_is_refused_at_the_start(
    tmp_path: Path, columns: dict[str, DataType] | None, dim: int, difference: str
) -> None:
    with running_server(tmp_path / "server") as uri:
        if columns is None:
            MilvusMemories(uri, MilvusAccess(), Vectors(dim), timeout_s=TIMEOUT_S).close()
        else:
            client = MilvusClient(uri, dedicated=True)
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
            schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dim)
            client.create_collection(MEMORIES, schema=schema)
            client.close()
        with pytest.raises(StartupError, match=difference):
            MilvusMemories(uri, MilvusAccess(), VECTORS, timeout_s=TIMEOUT_S)


def test_a_collection_that_somebody_dropped_fails_and_is_made_again(store: MilvusMemories) -> None:
    record = record_of(TENANT, memory_of("one"))
    store.put([record], timeout_s=TIMEOUT_S)
    store.drop(timeout_s=TIMEOUT_S)
    with pytest.raises(Exception, match=r"[Cc]ollection"):
        store.put([record], timeout_s=5)
    store.prepare(timeout_s=TIMEOUT_S)
    assert store.row_count(timeout_s=TIMEOUT_S) == 0
    store.put([record], timeout_s=TIMEOUT_S)
    assert store.row_count(timeout_s=TIMEOUT_S) == 1


# Erasing


def files_with(folder: Path, text: str) -> list[str]:
    """Parquet compresses: its rows are read. All other files are searched as bytes."""
    import pyarrow.parquet as parquet

    found = []
    for file in (file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += repr(parquet.read_table(file).to_pylist()).encode()
        if text.encode() in content:
            found.append(file.name)
    return found


@pytest.mark.parametrize("is_searched", [True, False], ids=["searched", "kept"])
def test_after_an_erase_and_a_compaction_the_text_is_in_no_file(tmp_path: Path, is_searched: bool) -> None:
    uri = str(tmp_path / "memories.db")
    store = MilvusMemories(uri, MilvusAccess(), VECTORS, is_searched=is_searched, timeout_s=TIMEOUT_S)
    secret = record_of(
        TENANT, memory_of("secret", "zanzibarsecret is here"), before=[memory_of("secret", "zanzibarsecret")]
    )
    others = [record_of(TENANT, memory_of(f"m{number}", f"note {number}")) for number in range(50)]
    theirs = record_of("globex", memory_of("theirs", "a lighthouse"))
    store.put([*others[:25], secret], timeout_s=TIMEOUT_S)
    store.flush(timeout_s=TIMEOUT_S)
    store.put([*others[25:], secret, theirs], timeout_s=TIMEOUT_S)
    assert files_with(Path(uri), "zanzibarsecret")
    store.delete([secret.key], timeout_s=TIMEOUT_S)
    store.compact([secret.tenant_key], timeout_s=TIMEOUT_S)
    store.sync()
    assert files_with(Path(uri), "zanzibarsecret") == []
    kept = {record.key for page in store.records(timeout_s=TIMEOUT_S) for record in page}
    assert kept == {record.key for record in (*others, theirs)}
    store.close()
    store = MilvusMemories(uri, MilvusAccess(), VECTORS, is_searched=is_searched, timeout_s=TIMEOUT_S)
    kept = {record.key for page in store.records(timeout_s=TIMEOUT_S) for record in page}
    assert kept == {record.key for record in (*others, theirs)}
    if is_searched:
        hits = store.nearest(scope_of(TENANT), vector_of(1), 100, timeout_s=TIMEOUT_S)
        assert len(hits) == len(others)
    store.close()


def test_a_server_is_asked_to_compact_after_an_erase(store: MilvusMemories, tenant: str) -> None:
    gone, kept = (record_of(tenant, memory_of(name)) for name in ("gone", "kept"))
    store.put([gone, kept], timeout_s=TIMEOUT_S)
    store.delete([gone.key], timeout_s=TIMEOUT_S)
    store.compact([gone.tenant_key], timeout_s=TIMEOUT_S)
    assert set(store.get_many([gone.key, kept.key], timeout_s=TIMEOUT_S)) == {kept.key}


def test_a_collection_that_is_only_kept_says_so_when_it_is_searched(tmp_path: Path) -> None:
    store = MilvusMemories(
        str(tmp_path / "m.db"), MilvusAccess(), VECTORS, is_searched=False, timeout_s=TIMEOUT_S
    )
    with pytest.raises(MILVUS_ERRORS, match="not searched"):
        store.nearest(scope_of(TENANT), np.ones(DIM, np.float32), 1, timeout_s=TIMEOUT_S)
    store.close()
