"""A Milvus server behind TLS: Milvus Lite's own server, and a relay in front of it that ends TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loadtests.harness.certificates import Trial, expired_of, new_trial
from loadtests.harness.kept_port import KeptPort
from loadtests.harness.tls_relay import TlsRelay
from memserve.memory.texts.index import MILVUS_ERRORS, VectorIndex
from memserve.memory.texts.milvus import MilvusAccess, Vectors
from memserve.tls.pem import PemFiles
from tests.memory.texts.test_remote_milvus import start_server

TIMEOUT_S = 10.0


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return new_trial(tmp_path / "certs")


@pytest_asyncio.fixture
async def relay(trial: Trial, tmp_path: Path) -> AsyncIterator[tuple[TlsRelay, int]]:
    kept = KeptPort()
    server = await asyncio.to_thread(start_server, tmp_path / "milvus", kept.number)
    relay = TlsRelay(trial.files("milvus"), "127.0.0.1", kept.number)
    try:
        async with relay.listening() as port:
            yield relay, port
    finally:
        server.kill()
        server.wait()


def index(port: int, tls: PemFiles | None, scheme: str = "https") -> VectorIndex:
    return VectorIndex(
        f"{scheme}://localhost:{port}",
        Vectors(4),
        MilvusAccess("user:word", tls),
        is_searched=True,
        call_timeout_s=TIMEOUT_S,
    )


async def count(index: VectorIndex) -> int:
    return await index.read("acme", lambda store: store.row_count(timeout_s=TIMEOUT_S))


async def test_milvus_is_reached_with_the_internal_certificate_and_with_no_other(
    trial: Trial, relay: tuple[TlsRelay, int], tmp_path: Path
) -> None:
    ended_tls, port = relay
    other, expired = new_trial(tmp_path / "other"), expired_of(trial, tmp_path / "expired")
    for who, tls, scheme in (
        ("no certificate, other authorities", None, "https"),
        ("plaintext", None, "http"),
        ("another authority", other.files("internal-gateway"), "https"),
        ("expired", expired.files("internal-gateway"), "https"),
        ("a client's", trial.files("client"), "https"),
    ):
        refused = VectorIndex(
            f"{scheme}://localhost:{port}",
            Vectors(4),
            MilvusAccess("", tls),
            is_searched=True,
            call_timeout_s=1.0,
        )
        with pytest.raises(MILVUS_ERRORS):
            await count(refused)
        assert ended_tls.connections == 0, who
        await refused.close(clean=False)
    served = index(port, trial.files("internal-gateway"))
    assert await count(served) == 0
    await served.close(clean=False)


async def test_a_new_certificate_fails_no_call_and_the_connection_before_ends_with_its_last(
    trial: Trial, relay: tuple[TlsRelay, int], tmp_path: Path
) -> None:
    ended_tls, port = relay
    served = index(port, trial.files("internal-gateway"))
    assert await count(served) == 0
    hold, began = threading.Event(), threading.Event()

    def slow(store: object) -> int:
        began.set()
        hold.wait(TIMEOUT_S)
        return store.row_count(timeout_s=TIMEOUT_S)  # type: ignore[attr-defined,no-any-return]

    under_way = asyncio.create_task(served.read("acme", slow))
    await asyncio.to_thread(began.wait, TIMEOUT_S)
    trial.become(new_trial(tmp_path / "other"))
    connections = ended_tls.connections
    await served.reconnect()
    assert ended_tls.connections > connections
    assert await count(served) == 0
    assert len(served._calls) == 2
    hold.set()
    assert await under_way == 0
    assert len(served._calls) == 1, "the connection before is closed"
    await served.close(clean=False)


async def test_a_new_certificate_that_milvus_refuses_leaves_the_connection(
    trial: Trial, relay: tuple[TlsRelay, int], tmp_path: Path
) -> None:
    _, port = relay
    mine = new_trial(tmp_path / "mine")
    mine.become(trial)
    served = VectorIndex(
        f"https://localhost:{port}",
        Vectors(4),
        MilvusAccess("", mine.files("internal-gateway")),
        is_searched=True,
        call_timeout_s=1.0,
    )
    assert await count(served) == 0
    mine.become(new_trial(tmp_path / "other"))
    with pytest.raises(MILVUS_ERRORS):
        await served.reconnect()
    assert await count(served) == 0
    await served.close(clean=False)
