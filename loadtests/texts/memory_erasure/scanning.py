"""Looks for needles everywhere: in files as they are and unpacked, in Redis by its commands, in indexes of
words by their terms.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import redis
import tantivy

from loadtests.harness.redis_server import RedisServer
from memserve.memory.texts.records import tenant_key

PARQUET_HEAD = b"PAR1"
TENANT = "default"
TENANT_CHARS = 32
"""Of the tenant's key, before each word in the index of words."""
RDB_SUFFIXES = (".rdb", ".aof")


@dataclass
class Scan:
    """What was looked at, and what was found where."""

    needles: Mapping[str, bytes]
    files: int = 0
    size_bytes: int = 0
    values: int = 0
    """Of Redis."""
    found: list[str] = field(default_factory=list)

    def look(self, place: str, content: bytes) -> None:
        for name, needle in self.needles.items():
            if needle in content:
                self.found.append(f"{place}: {name}")
                return

    def folder(self, folder: Path, words: Sequence[str] = ()) -> None:
        """Every file below a folder, also what is packed in it. words: looked for in indexes of words."""
        for parent, folders, names in os.walk(folder):
            if "meta.json" in names and any(name.endswith(".store") for name in names):
                self._word_index(Path(parent), words)
            for name in (*names, *(each for each in folders if (Path(parent) / each).is_symlink())):
                self._file(Path(parent) / name, Path(parent, name).relative_to(folder.parent))

    def _file(self, file: Path, shown: Path) -> None:
        self.look(f"the name of {shown}", str(shown).encode())
        if file.is_symlink() or not file.is_file():
            return
        try:
            content = file.read_bytes()
        except OSError:
            return  # it has just left
        self.files += 1
        self.size_bytes += len(content)
        self.look(str(shown), content)
        if content.startswith(PARQUET_HEAD):
            with contextlib.suppress(OSError):
                for column in parquet.read_table(file).columns:
                    self.look(f"{shown}, unpacked", repr(column.to_pylist()).encode())

    def _word_index(self, folder: Path, words: Sequence[str]) -> None:
        """Terms are packed in the files. A term is there as long as one row has it, deleted or not."""
        with tempfile.TemporaryDirectory() as copy:
            copied = Path(shutil.copytree(folder, Path(copy) / "index"))
            for lock in copied.glob(".*lock"):
                lock.unlink()
            searcher = tantivy.Index.open(str(copied)).searcher()
            for word in words:
                if searcher.doc_freq("words", f"{tenant_key(TENANT)[:TENANT_CHARS]}:{word}"):
                    self.found.append(f"{folder.parent.name}/{folder.name}: {word!r} is a term")
                    return

    def server(self, name: str, client: redis.Redis) -> None:
        """Every key and value of a Redis, as its commands give them, and unpacked where they are packed."""
        for key in client.scan_iter(count=1000):
            for value in (key, *_values(client, key)):
                self.values += 1
                self.look(f"{name}: {key!r}", value)
                for unpacked in _unpacked(value):
                    self.look(f"{name}: {key!r}, unpacked", unpacked)

    def redis_files(self, name: str, folder: Path) -> None:
        """What a Redis would read from its files: compressed strings are seen only so."""
        with tempfile.TemporaryDirectory(prefix="scan-") as scratch:
            copied = Path(scratch)
            for file in folder.rglob("*"):
                if file.is_file() and file.suffix in (*RDB_SUFFIXES, ".manifest"):
                    target = copied / file.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
            server = RedisServer(copied)
            server.start("--appendonly", "yes")
            try:
                self.server(f"{name}, read from its files", server.client)
            finally:
                server.stop()


def _values(client: Any, key: bytes) -> Iterator[bytes]:
    kind = client.type(key)
    if kind == b"string":
        yield client.get(key) or b""
    elif kind == b"hash":
        for name, value in client.hgetall(key).items():
            yield from (name, value)
    elif kind == b"list":
        yield from client.lrange(key, 0, -1)
    elif kind == b"set":
        yield from client.smembers(key)
    elif kind == b"zset":
        yield from client.zrange(key, 0, -1)
    elif kind == b"stream":
        yield from _flat(client.xrange(key))


def _flat(entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> Iterator[bytes]:
    for _, fields in entries:
        for name, value in fields.items():
            yield from (name, value)


def _unpacked(value: bytes) -> Iterator[bytes]:
    with contextlib.suppress(zlib.error):
        yield zlib.decompress(value)
