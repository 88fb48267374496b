"""A client reaches a gateway through a proxy that speaks TLS. Here gRPC's own server stands for the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from memserve.client import AsyncClient, CallFailed, Client, TlsFiles, wait_until_ready
from tests.client.examples import STATUS, STATUS_PB
from tests.client.stub_gateway import TIMEOUT_S, StubGateway
from tests.kv.transport.tls_front import Certificate, new_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return new_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["any client", "a client with a certificate"])
def front(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[StubGateway]:
    asks = request.param != "any client"
    credentials = grpc.ssl_server_credentials(
        [(certificate.key.read_bytes(), certificate.server.read_bytes())],
        root_certificates=certificate.authority.read_bytes() if asks else None,
        require_client_auth=asks,
    )
    stub = StubGateway(credentials)
    stub.replies["GetStatus"] = [STATUS_PB]
    yield stub
    stub.close()


async def test_a_client_with_the_files_is_served(front: StubGateway, certificate: Certificate) -> None:
    tls = TlsFiles(certificate.authority, certificate.server, str(certificate.key))
    with Client(front.address, "secret", tls=tls, timeout_s=TIMEOUT_S) as blocking:
        assert blocking.status() == STATUS
    async with AsyncClient(front.address, "secret", tls=tls, timeout_s=TIMEOUT_S) as client:
        assert await client.status() == STATUS
    assert front.metadata[-1]["authorization"] == "Bearer secret"
    assert wait_until_ready(front.address, 10.0, tls=tls)


@pytest.mark.parametrize("tls", [None, TlsFiles()], ids=["without TLS", "without the authority"])
def test_a_client_without_the_files_is_not_served(front: StubGateway, tls: TlsFiles | None) -> None:
    with Client(front.address, tls=tls, timeout_s=2.0) as client, pytest.raises(CallFailed):
        client.status()
    assert front.metadata == []


def test_a_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tls\.ca: .* cannot be read"):
        Client(tls=TlsFiles(ca=tmp_path))
