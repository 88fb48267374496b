"""Addresses as people write them, the header with the key, and proxies that are none of memserve's
business.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from memserve.channels import bearer, spare_loopback, target_of
from memserve.client import AsyncClient, Client
from memserve.errors import UsageError


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        (" gateway.internal:1\n", "gateway.internal:1"),
        ("localhost", "localhost:50051"),
        ("http://127.0.0.1:7000/", "127.0.0.1:7000"),
        ("grpc://gateway", "gateway:50051"),
        ("HTTP://gateway:7", "gateway:7"),
        ("https://gateway:7", "gateway:7"),
        ("grpcs://gateway", "gateway:50051"),
        ("tcp://[::1]:7", "[::1]:7"),
        ("::1", "[::1]:50051"),
        ("[fe80::1]", "[fe80::1]:50051"),
        ("bücher.example:7", "bücher.example:7"),
        ("unix:///run/memserve.sock", "unix:///run/memserve.sock"),
        ("unix:/run/memserve.sock", "unix:/run/memserve.sock"),
        ("dns:///gateway:7", "dns:///gateway:7"),
        ("dns:7", "dns:7"),
    ],
)
def test_an_address_is_read_as_people_write_it(address: str, target: str) -> None:
    assert target_of(address) == target


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "no address"),
        ("   ", "no address"),
        ("http://", "no address"),
        ("ftp://gateway:50051", "scheme"),
        ("http://gateway:50051/v1", "no address"),
        ("http://user@gateway:50051", "no address"),
        ("two words:50051", "no address"),
        ("gate\x1bway:50051", "no address"),
        (":50051", "no host"),
        ("a:b:50051", "no host"),
        ("gateway:", "no port"),
        ("gateway:0", "no port"),
        ("gateway:65536", "no port"),
        ("gateway:٥٠٠٥١", "no port"),
        ("gateway:port", "no port"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(address: str, why: str) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(UsageError, match=why) as refused:
            make(address)
        assert refused.value.field == "address"


def test_a_key_is_a_header() -> None:
    assert bearer("") == ()
    assert bearer("s3cret") == (("authorization", "Bearer s3cret"),)
    for wrong in ("secret\r", "secret\n", "schlüssel", "\x00"):
        with pytest.raises(UsageError, match="no header takes") as refused:
            Client(api_key=wrong)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy"])
def test_no_proxy_stands_between_the_parts(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            Client(f"127.0.0.1:{port}", timeout_s=10) as client,
            pytest.raises(Exception, match="UNIMPLEMENTED"),
        ):
            client.status()
    finally:
        server.stop(None)


def test_libraries_are_kept_from_proxies_on_this_machine_only() -> None:
    environment = {"http_proxy": "http://proxy:3128", "no_proxy": "intranet.example, 127.0.0.1"}
    spare_loopback(environment)
    assert environment["no_proxy"] == "intranet.example,127.0.0.1,localhost,::1"
    assert environment["no_grpc_proxy"] == "intranet.example,127.0.0.1,localhost,::1"
    assert environment["http_proxy"] == "http://proxy:3128"
    again = dict(environment)
    spare_loopback(again)
    assert again == environment
