"""`memserve kv check`: sound or not, as text and as JSON, and a Redis that does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memserve.cli.app import app
from memserve.errors import StartupError
from tests.kv.redis_server import RedisServer

runner = CliRunner()


@pytest.fixture
def settings_of(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """The settings name a Redis that holds the cache and the registry."""
    monkeypatch.setenv("MEMSERVE_REDIS_URL", redis_server.url)
    return redis_server


def test_an_empty_redis_is_sound(settings_of: RedisServer) -> None:
    result = runner.invoke(app, ["kv", "check"])
    assert (result.exit_code, result.output) == (0, "the cache's ledger: sound\nthe module store: sound\n")


def test_contradictions_are_shown_by_their_keys_and_end_in_status_1(settings_of: RedisServer) -> None:
    settings_of.client.hset("{memserve:kv}:bytes", "anna", 7)
    settings_of.client.zadd("memserve:module:numbers:5:alice4:tone", {"3": 3})
    ledger = ["{memserve:kv}:bytes: anna has more than its entries have together"]
    head = "memserve:module:head:5:alice4:tone"
    module_store = [
        f"{head}: a version has a number above 0, the last one that was given out",
        f"{head}: it has 1 versions, and is not listed",
        f"{head}: it has 1 versions, and is not listed under its kind",
        f"{head}: number 3 has no version",
    ]
    result = runner.invoke(app, ["kv", "check"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "the cache's ledger: 1 contradiction",
        f"  {ledger[0]}",
        "the module store: 4 contradictions",
        *(f"  {sentence}" for sentence in module_store),
    ]
    result = runner.invoke(app, ["kv", "check", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output) == {"ledger": ledger, "module_store": module_store}


def test_without_a_url_the_private_redis_of_the_data_directory_is_asked(tmp_path: Path) -> None:
    result = runner.invoke(app, ["kv", "check", "--data-dir", str(tmp_path)])
    assert isinstance(result.exception, StartupError)
    assert f"{tmp_path}/cache/redis.sock" in str(result.exception)


def test_a_registry_that_does_not_answer_is_said_so(
    settings_of: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMSERVE_CACHE_REDIS_URL", settings_of.url)
    monkeypatch.setenv("MEMSERVE_REDIS_URL", f"unix://{tmp_path}/no.sock")
    result = runner.invoke(app, ["kv", "check"])
    assert isinstance(result.exception, StartupError)
    assert str(result.exception).startswith("the registry does not answer: ")
