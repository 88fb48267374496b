"""A real Redis that takes TLS and certificates only, as one server, a Cluster or behind Sentinels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from loadtests.harness.certificates import Trial, expired_of, new_trial
from loadtests.harness.tls_redis import TlsRedis, cluster, one_server, watched_master
from memserve.config import Settings
from memserve.errors import RegistryUnavailable, StartupError
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.check import check_cache_servers
from memserve.registry.leases import Registry
from tests.kv.one_chunk import get
from tests.tls.test_pem import internal_files

KEYS = [bytes([number]) * 36 for number in range(9)]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return new_trial(tmp_path_factory.mktemp("trial") / "certs")


@pytest.fixture(scope="module")
def server(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    with one_server(trial.files("redis"), tmp_path_factory.mktemp("redis")) as started:
        yield started


def settings(trial: Trial, url: str, part: str = "internal-worker") -> Settings:
    return Settings(redis_url=SecretStr(url), **internal_files(trial.files(part)))  # type: ignore[arg-type]


async def reached(url: str) -> bool:
    registry = Registry(url)
    try:
        await registry.ping()
    except RegistryUnavailable:
        return False
    finally:
        await registry.close()
    return True


async def test_the_registry_is_reached_with_the_internal_certificate_and_with_no_other(
    trial: Trial, server: TlsRedis, tmp_path: Path
) -> None:
    url = f"rediss://127.0.0.1:{server.port}"
    assert await reached(settings(trial, url).redis)
    assert await reached(settings(trial, url, "internal-gateway").redis)
    authority = trial.files("redis").authorities
    assert not await reached(f"redis://127.0.0.1:{server.port}"), "plaintext"
    assert not await reached(f"{url}?ssl_ca_certs={authority}"), "no certificate"
    assert not await reached(settings(new_trial(tmp_path / "other"), url).redis), "another authority"
    assert not await reached(settings(expired_of(trial, tmp_path / "expired"), url).redis), "expired"
    assert not await reached(settings(trial, url, "client").redis), "a client's"


@contextmanager
def deployment(kind: str, trial: Trial, folder: Path) -> Iterator[str]:
    if kind == "one server":
        with one_server(trial.files("redis"), folder) as server:
            yield f"rediss://127.0.0.1:{server.port}"
    elif kind == "cluster":
        with cluster(trial.files("redis"), folder) as url:
            yield url
    else:
        with watched_master(trial.files("redis"), folder) as url:
            yield url


@pytest.mark.parametrize("kind", ["one server", "cluster", "sentinel"])
def test_the_cache_is_reached_with_the_internal_certificate_and_with_no_other(
    kind: str, trial: Trial, tmp_path: Path
) -> None:
    with deployment(kind, trial, tmp_path / "servers") as url:

        def cache(of: Trial, part: str) -> str:
            files = internal_files(of.files(part))
            return Settings(cache_redis_url=SecretStr(url), **files).cache_redis  # type: ignore[arg-type]

        check_cache_servers(cache(trial, "internal-gateway"))
        store = RedisChunkStore(cache(trial, "internal-worker"), "ab" * 32, ttl_s=100)
        try:
            chunks = [os.urandom(300_000) for _ in KEYS]
            assert store.store(KEYS, chunks, budget_s=20) == [Put.STORED] * len(KEYS)
            assert [get(store, key, 300_000) for key in KEYS] == chunks
        finally:
            store.close()
        other, expired = new_trial(tmp_path / "other"), expired_of(trial, tmp_path / "expired")
        authority = trial.files("redis").authorities
        for refused in (
            cache(other, "internal-gateway"),
            cache(expired, "internal-gateway"),
            cache(trial, "client"),
            f"{url}?ssl_ca_certs={authority}",
            url.replace("rediss", "redis"),
        ):
            with pytest.raises(StartupError, match=r"cannot be reached|does not speak"):
                check_cache_servers(refused)


async def test_connections_that_are_made_after_a_change_take_the_new_certificates(tmp_path: Path) -> None:
    """Of another authority, so that nothing of the one before is accepted."""
    trial, other = new_trial(tmp_path / "certs"), new_trial(tmp_path / "other")
    with one_server(trial.files("redis"), tmp_path / "redis") as server:
        url = settings(trial, f"rediss://127.0.0.1:{server.port}").redis
        registry = Registry(url)
        store = RedisChunkStore(url, "ab" * 32, ttl_s=100)
        try:
            await registry.ping()
            assert store.store(KEYS[:1], [b"chunk"], budget_s=10) == [Put.STORED]
            with server.changing():
                trial.become(other)
            await registry.ping()
            with server.client() as client:
                # All but the asking connection.
                client.client_kill_filter(_type="normal", skipme=True)
            for _ in range(5):
                await registry.ping()
            assert get(store, KEYS[0], 5) == b"chunk"
        finally:
            store.close()
            await registry.close()


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("redis://h:1", "redis://h:1"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("rediss://h:1", "rediss://h:1?ssl_ca_certs=%2Fca&ssl_certfile=%2Fcrt&ssl_keyfile=%2Fkey"),
        (
            "rediss://h:1?db=2&ssl_ca_certs=/own",
            "rediss://h:1?db=2&ssl_ca_certs=/own&ssl_certfile=%2Fcrt&ssl_keyfile=%2Fkey",
        ),
        (
            "rediss+cluster://h?ssl_certfile=/a&ssl_keyfile=/b",
            "rediss+cluster://h?ssl_certfile=/a&ssl_keyfile=/b&ssl_ca_certs=%2Fca",
        ),
    ],
)
def test_what_a_url_leaves_open_comes_from_the_internal_files(url: str, asked: str) -> None:
    files = {"internal_tls_ca_file": "/ca", "internal_tls_cert_file": "/crt", "internal_tls_key_file": "/key"}
    assert Settings(cache_redis_url=SecretStr(url), **files).cache_redis == asked  # type: ignore[arg-type]
    assert Settings(cache_redis_url=SecretStr(url)).cache_redis == url
