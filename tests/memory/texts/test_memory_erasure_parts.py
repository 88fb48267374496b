"""What `loadtests.memory_erasure` searches with: a search that finds nothing must be able to find."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from loadtests.texts.memory_erasure.scanning import Scan
from loadtests.texts.memory_erasure.secrets import Secret, draw_secret
from memserve.memory.texts.local.word_index import WordIndex, WordRow
from memserve.memory.texts.records import tenant_key
from tests.kv.redis_server import RedisServer


@pytest.fixture
def secret() -> Secret:
    return draw_secret(random.Random(7))


def test_a_secrets_words_stand_nowhere_else(secret: Secret) -> None:
    other = draw_secret(random.Random(8))
    assert len(secret.words) >= 8
    assert not set(secret.words) & set(other.words)
    assert secret == draw_secret(random.Random(7))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_text_is_found_in_a_file_in_every_spelling(tmp_path: Path, secret: Secret, encoding: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "page").write_bytes(b"\0\xff" + secret.text.encode(encoding) + b"\0")
    scan = Scan(secret.needles)
    scan.folder(tmp_path, secret.words)
    assert len(scan.found) == 1
    assert "deep/page" in scan.found[0]


def test_one_word_alone_and_a_files_name_are_found(tmp_path: Path, secret: Secret) -> None:
    (tmp_path / "a").write_text(f"log: {secret.words[3]}", encoding="utf-8")
    (tmp_path / f"export-{secret.words[0]}").touch()
    scan = Scan(secret.needles)
    scan.folder(tmp_path)
    assert len(scan.found) == 2


def test_values_of_redis_are_found_in_memory_packed_and_in_its_files(
    own_redis_server: RedisServer, secret: Secret
) -> None:
    own_redis_server.start_durably()
    client = own_redis_server.client
    client.hset("hash", "field", zlib.compress(secret.text.encode()))
    client.xadd("stream", {"text": secret.later_text})
    scan = Scan(secret.needles)
    scan.server("registry", client)
    assert len(scan.found) == 2
    scan.redis_files("registry", own_redis_server.socket.parent)
    assert len(scan.found) == 4


def test_a_term_of_an_index_of_words_is_found(tmp_path: Path, secret: Secret) -> None:
    owner = tenant_key("default")
    index = WordIndex(tmp_path / "words")
    row = WordRow(seq=1, key="0" * 64, tenant_key=owner, namespace="n", kind="fact", created_s=1.0,
                  words=(secret.words[0],))  # fmt: skip
    index.replace([], [row])
    index.commit()
    index.release()
    scan = Scan({})
    scan.folder(tmp_path, secret.words)
    assert len(scan.found) == 1
    assert "is a term" in scan.found[0]
