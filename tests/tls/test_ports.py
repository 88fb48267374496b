"""The gateway's three ports with TLS: who is served, who is not, and what a change of files does to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from loadtests.harness.certificates import Trial, expired_of, new_trial
from memserve.api.grpc.front import open_front
from memserve.api.http.server import open_http
from memserve.config import Settings
from memserve.metrics.port import serve_metrics
from memserve.tls.live import LiveTls

NAMES = ("memserve.v1.InferenceService",)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return new_trial(tmp_path / "certs")


@contextlib.asynccontextmanager
async def ports(tls: LiveTls, tmp_path: Path) -> AsyncIterator[dict[str, int]]:
    settings = Settings(data_dir=tmp_path, port=0, http_port=0, metrics_port=0)
    async with open_front(settings, NAMES, tls) as front, open_http(settings, tls) as http:
        assert http is not None
        with serve_metrics(settings, CollectorRegistry(), 0, tls) as metrics:
            await asyncio.sleep(0)
            yield {"grpc": front.port, "http": http.port, "metrics": int(metrics.rpartition(":")[2])}


async def ask(wire: str, port: int, trial: Trial, part: str | None) -> bool:
    """Whether a client with this part's certificate is served. part: "": without one; None: without TLS."""
    if wire == "grpc":
        return await ask_grpc(port, trial, part)
    return await asyncio.to_thread(ask_http, wire, port, trial, part)


async def ask_grpc(port: int, trial: Trial, part: str | None) -> bool:
    address = f"localhost:{port}"
    if part is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        files = trial.files(part or "client")
        assert files.authorities is not None
        own = (files.key.read_bytes(), files.certificate.read_bytes()) if part else (None, None)
        channel = grpc.aio.secure_channel(
            address, grpc.ssl_channel_credentials(files.authorities.read_bytes(), *own)
        )
    async with channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE
    return True


def ask_http(wire: str, port: int, trial: Trial, part: str | None) -> bool:
    path = "health" if wire == "http" else "metrics"
    context = None
    if part is not None:
        context = trial.context(part) if part else ssl.create_default_context(cafile=trial.client().ca)
    scheme = "http" if part is None else "https"
    try:
        with urllib.request.urlopen(
            f"{scheme}://localhost:{port}/{path}", timeout=5, context=context
        ) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("wire", ["grpc", "http", "metrics"])
async def test_only_clients_with_a_certificate_of_the_authority_are_served(
    trial: Trial, tmp_path: Path, wire: str
) -> None:
    other, expired = new_trial(tmp_path / "other"), expired_of(trial, tmp_path / "expired")
    async with ports(trial.live("public"), tmp_path) as by_wire:
        port = by_wire[wire]
        assert await ask(wire, port, trial, "client")
        assert not await ask(wire, port, trial, None), "plaintext"
        assert not await ask(wire, port, trial, ""), "no certificate"
        assert not await ask(wire, port, other, "client"), "another authority"
        assert not await ask(wire, port, expired, "client"), "expired"
        assert await ask(wire, port, trial, "client")


@pytest.mark.parametrize("wire", ["grpc", "http", "metrics"])
async def test_without_authorities_of_clients_any_client_is_served_and_checks_the_gateway(
    trial: Trial, tmp_path: Path, wire: str
) -> None:
    expired = expired_of(trial, tmp_path / "expired")
    async with ports(trial.live("public", mutual=False), tmp_path) as by_wire:
        assert await ask(wire, by_wire[wire], trial, "")
        assert not await ask(wire, by_wire[wire], new_trial(tmp_path / "other"), "")
        assert not await ask(wire, by_wire[wire], trial, None)
    async with ports(expired.live("public", mutual=False), tmp_path) as by_wire:
        assert not await ask(wire, by_wire[wire], trial, "")


@pytest.mark.parametrize("wire", ["grpc", "http", "metrics"])
async def test_new_files_count_from_the_next_connection_on_authorities_too(
    trial: Trial, tmp_path: Path, wire: str
) -> None:
    served = new_trial(tmp_path / "served")
    live = served.live("public")
    async with ports(live, tmp_path) as by_wire:
        assert not await ask(wire, by_wire[wire], trial, "client")
        before = Trial(tmp_path / "before")
        before.folder.mkdir()
        for part in ("client", "public"):
            (before.folder / part).mkdir()
            for name in ("ca.crt", "tls.crt", "tls.key"):
                (before.folder / part / name).write_bytes((served.folder / part / name).read_bytes())
        assert await ask(wire, by_wire[wire], before, "client")
        served.become(trial)
        assert live.look()
        assert await ask(wire, by_wire[wire], trial, "client")
        assert not await ask(wire, by_wire[wire], before, "client")


async def test_http_speaks_tls_1_2_or_later_and_takes_no_session_up_again(
    trial: Trial, tmp_path: Path
) -> None:
    async with ports(trial.live("public"), tmp_path) as by_wire:

        def handshake(version: ssl.TLSVersion) -> tuple[str | None, str | None, bool]:
            context = trial.context()
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            with (
                socket.create_connection(("localhost", by_wire["http"]), 5) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secured,
            ):
                secured.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                secured.recv(1)
                has_ticket = secured.session is not None and secured.session.has_ticket
                return secured.version(), secured.selected_alpn_protocol(), has_ticket

        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            assert await asyncio.to_thread(handshake, version) == (name, "http/1.1", False)
        with (
            pytest.warns(DeprecationWarning, match="TLSv1_1"),
            pytest.raises(OSError, match=r"(?i)ssl|tls|reset|protocol"),
        ):
            await asyncio.to_thread(handshake, ssl.TLSVersion.TLSv1_1)
