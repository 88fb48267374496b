"""The local index keeps the contract of a store of records, and what only a local one can promise."""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from memserve.domain import MemoryState
from memserve.errors import VectorStoreHeld
from memserve.memory.texts.local.index import LocalIndex
from memserve.memory.texts.local.schema import ROWS_FILE, IndexNeedsRebuild, RebuildReason
from memserve.memory.texts.records import tenant_key
from memserve.memory.texts.store import ListOrder
from tests.memory.texts.store_contract import each_clause
from tests.memory.texts.store_kept import TIMEOUT_S, Clause, Kept
from tests.memory.texts.store_records import DIM, ids, memory_of, record_of, scope_of, vector_of

EMBEDDER = "a-model"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LocalIndex]:
    opened = LocalIndex.open(tmp_path / "index", DIM, EMBEDDER)
    yield opened
    opened.close()


@each_clause
def test_the_local_index_keeps_the_contract_of_a_store(index: LocalIndex, clause: Clause) -> None:
    clause(Kept(index))


def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as index:
        kept = Kept(index)
        first, second = kept.put(memory_of("one", "lighthouse"), memory_of("two", "lighthouse of the north"))
        kept.replace(second, state=MemoryState.FORGOTTEN)
        counts = index.counts(timeout_s=TIMEOUT_S)
    with opened(tmp_path) as index:
        again = Kept(index, kept.tenant)
        assert again.get(first.key, with_vectors=True) is not None
        assert ids(again.nearest(vector_of(1))) == ["one"]
        assert again.worded("lighthouse") == ["one"]
        assert index.counts(timeout_s=TIMEOUT_S) == counts
        assert counts[tenant_key(kept.tenant), "notes"].live == 1
        assert counts[tenant_key(kept.tenant), "notes"].records == 2


def test_a_namespace_without_a_record_is_not_counted(index: LocalIndex) -> None:
    kept = Kept(index)
    (record,) = kept.put(memory_of("one"))
    assert kept.tenant != "" and index.figures(timeout_s=TIMEOUT_S).rows == 1
    index.delete([record.key], timeout_s=TIMEOUT_S)
    assert index.counts(timeout_s=TIMEOUT_S) == {}


def test_what_was_put_outlives_a_kill(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.memory.texts.local_index_writer", str(tmp_path / "index")],
        stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[3], encoding="utf-8",
    )  # fmt: skip
    assert child.stdout is not None
    acknowledged = [child.stdout.readline().strip() for _ in range(40)]
    child.kill()
    rest = child.communicate()[0].split()
    with opened(tmp_path) as index:
        kept = Kept(index, "writer")
        found = set(kept.worded("lighthouse", 1024))
        assert {*acknowledged, *rest} <= found
        assert found == set(ids(kept.nearest(vector_of(1), 1024)))
        (record,) = kept.put(memory_of("after", "lighthouse"))
        assert index.scan(0, 1024, timeout_s=TIMEOUT_S)[-1][1].key == record.key


def test_words_that_are_missing_on_disk_are_indexed_anew_after_a_kill(tmp_path: Path) -> None:
    with opened(tmp_path) as index:
        kept = Kept(index)
        kept.put(memory_of("one", "lighthouse"))
    shutil.rmtree(tmp_path / "index" / "words")
    # As after a kill: `close` was not reached.
    with sqlite3.connect(tmp_path / "index" / ROWS_FILE) as rows:
        rows.execute("UPDATE meta SET value = '0' WHERE name = 'clean'")
    rows.close()
    with opened(tmp_path) as index:
        assert Kept(index, kept.tenant).worded("lighthouse") == ["one"]


def test_words_of_another_tokenizer_are_indexed_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as index:
        kept = Kept(index)
        kept.put(memory_of("one", "lighthouse"))
    before = set((tmp_path / "index" / "words").rglob("*.idx"))
    with sqlite3.connect(tmp_path / "index" / ROWS_FILE) as rows:
        rows.execute("UPDATE worded SET tokenizer = tokenizer - 1")
    rows.close()
    with opened(tmp_path) as index:
        assert Kept(index, kept.tenant).worded("lighthouse") == ["one"]
    assert before.isdisjoint((tmp_path / "index" / "words").rglob("*.idx"))


@pytest.mark.parametrize("damage", ["header", "middle", "emptied"])
def test_damaged_rows_are_moved_aside_and_the_index_is_empty_then(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path) as index:
        Kept(index).put(*(memory_of(f"m{number}", "lighthouse " * 99) for number in range(200)))
    file = tmp_path / "index" / ROWS_FILE
    content = bytearray(file.read_bytes())
    if damage == "header":
        content[:100] = bytes(100)
    elif damage == "middle":
        content[8192 : len(content) - 8192] = b"x" * (len(content) - 2 * 8192)
    else:
        content = bytearray()
    file.write_bytes(content)
    with pytest.raises(IndexNeedsRebuild) as refusal:
        LocalIndex.open(tmp_path / "index", DIM, EMBEDDER)
    assert refusal.value.reason is RebuildReason.DAMAGED
    assert pickle.loads(pickle.dumps(refusal.value)).reason is RebuildReason.DAMAGED
    (aside,) = (tmp_path / "index").glob("damaged-*")
    assert (aside / ROWS_FILE).exists()
    with opened(tmp_path) as index:
        assert index.row_count(timeout_s=TIMEOUT_S) == 0
        Kept(index).put(memory_of("one"))


@pytest.mark.parametrize(
    ("dim", "embedder", "reason"),
    [(DIM + 1, EMBEDDER, RebuildReason.DIM), (DIM, "another", RebuildReason.EMBEDDER)],
)
def test_an_index_of_other_vectors_is_refused(
    tmp_path: Path, dim: int, embedder: str, reason: RebuildReason
) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(IndexNeedsRebuild) as refusal:
        LocalIndex.open(tmp_path / "index", dim, embedder)
    assert refusal.value.reason is reason
    with opened(tmp_path):
        pass  # it stays as it was


def test_a_rebuild_that_was_not_finished_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with opened(tmp_path) as index:
        Kept(index).put(memory_of("old", "lighthouse"))
    index = LocalIndex.begin_rebuild(folder, DIM, EMBEDDER)
    kept = Kept(index)
    kept.put(memory_of("one", "lighthouse"))
    index.close()
    with pytest.raises(IndexNeedsRebuild) as refusal:
        LocalIndex.open(folder, DIM, EMBEDDER)
    assert refusal.value.reason is RebuildReason.UNFINISHED
    index = LocalIndex.begin_rebuild(folder, DIM, EMBEDDER, resume=True)
    again = Kept(index, kept.tenant)
    again.put(memory_of("two", "lighthouse"), memory_of("one", "lighthouse"))
    index.finish_rebuild()
    assert sorted(again.worded("lighthouse")) == ["one", "two"]
    index.close()
    with opened(tmp_path) as index:
        assert sorted(Kept(index, kept.tenant).worded("lighthouse")) == ["one", "two"]
        assert index.row_count(timeout_s=TIMEOUT_S) == 2


def test_one_process_holds_the_folder(index: LocalIndex, tmp_path: Path) -> None:
    with pytest.raises(VectorStoreHeld):
        LocalIndex.open(tmp_path / "index", DIM, EMBEDDER)


def test_what_is_erased_is_in_no_file(tmp_path: Path) -> None:
    secret, words = "Zanzibar Quagga9 Übermut", ["zanzibar", "quagga9", "übermut"]
    with opened(tmp_path) as index:
        kept = Kept(index)
        records = kept.put(
            *(memory_of(f"m{number}", f"the lighthouse {number}") for number in range(300)),
            memory_of("secret", f"{secret} with {'many words ' * 300}", keywords=(secret,), source=secret),
        )
        kept.replace(records[-1], text=f"{secret} again", metadata={"where": secret})
        kept.put(*(memory_of(f"n{number}", f"the harbour {number}") for number in range(300)))
        assert any(is_in_files(tmp_path, text) for text in (secret, *words)), "the scan finds nothing at all"
        done = index.erase([records[-1].key, "0" * 64], timeout_s=TIMEOUT_S)
        assert done.rows == 1
        for text in (secret, secret.lower(), *words):
            assert not is_in_files(tmp_path, text)
            assert not is_in_files(tmp_path, json.dumps(text)[1:-1])
        assert kept.get(records[-1].key) is None
        assert len(kept.worded("lighthouse", 1024)) == 300
        assert len(kept.nearest(vector_of(1), 1024)) == 600


def test_a_batch_that_does_not_fit_the_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as index:
        kept = Kept(index)
        kept.put(memory_of("before", "lighthouse"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = max(file.stat().st_size for file in (tmp_path / "index").iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + (64 << 10), hard))
        try:
            with pytest.raises(OSError, match=r"local index|words"):
                fill(kept)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert kept.worded("lighthouse") == ["before"]
        kept.put(memory_of("after", "lighthouse"))
        whole = sorted(kept.listed())
    with opened(tmp_path) as index:
        again = Kept(index, kept.tenant)
        assert sorted(again.listed()) == whole
        assert sorted(again.worded("lighthouse")) == ["after", "before"]


def test_a_call_ends_at_its_deadline(index: LocalIndex) -> None:
    kept = Kept(index)
    kept.put(memory_of("one", "lighthouse"))
    scope = scope_of(kept.tenant)
    for late in (
        lambda: index.nearest(scope, vector_of(1), 5, timeout_s=0.0),
        lambda: index.by_words(scope, ["lighthouse"], 5, timeout_s=0.0),
        lambda: index.page(scope, ListOrder.CREATED, 5, timeout_s=0.0),
        lambda: index.put([record_of(kept.tenant, memory_of("two"))], timeout_s=0.0),
    ):
        with pytest.raises(TimeoutError):
            late()
    assert kept.listed() == ["one"]


def test_a_vector_of_another_size_is_refused_with_its_batch(index: LocalIndex) -> None:
    kept = Kept(index)
    good = record_of(kept.tenant, memory_of("one"))
    for vector in (vector_of(1, DIM + 1), np.full(DIM, np.nan, np.float32)):
        bad = record_of(kept.tenant, memory_of("two"), vector)
        with pytest.raises(ValueError, match="16 finite numbers"):
            index.put([good, bad], timeout_s=TIMEOUT_S)
    assert kept.listed() == []


def test_searches_on_several_threads_see_what_was_put_before_them(index: LocalIndex) -> None:
    """One thread puts and forgets, others search. What they find is theirs and whole."""
    kept, other = Kept(index), Kept(index)
    other.put(memory_of("theirs", "lighthouse"))
    present: list[str] = []
    ended = threading.Event()

    def search() -> int:
        searches = 0
        while not ended.is_set():
            expected = set(present[-5:])
            assert expected <= set(kept.worded("lighthouse", 1024))
            assert expected <= set(ids(kept.nearest(vector_of(1), 1024)))
            assert other.worded("lighthouse") == ["theirs"]
            searches += 1
        return searches

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(search) for _ in range(3)]
        try:
            for batch in range(40):
                kept.put(*(memory_of(f"m{batch}-{number}", "lighthouse") for number in range(5)))
                (gone,) = kept.put(memory_of("gone", "lighthouse"))
                present.extend(f"m{batch}-{number}" for number in range(5))
                index.delete([gone.key], timeout_s=TIMEOUT_S)
        finally:
            ended.set()
        assert all(search.result() > 0 for search in running)


def fill(kept: Kept) -> None:
    """Puts 16 MB."""
    for batch in range(200):
        kept.put(*(memory_of(f"b{batch}-{number}", "harbour " * 500) for number in range(20)))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[LocalIndex]:
    index = LocalIndex.open(folder / "index", DIM, EMBEDDER)
    try:
        yield index
    finally:
        index.close()


def is_in_files(folder: Path, text: str) -> bool:
    """Whether a file has the text, in UTF-8 or in UTF-16 of either order."""
    pieces = [text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be")]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return any(piece in file.read_bytes() for file in files for piece in pieces)
