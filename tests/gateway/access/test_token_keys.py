"""The keys of tokens: which of a set are used, a file that changes, a provider that is slow, odd or away."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import RSAAlgorithm

from memserve.errors import StartupError, TokenKeysUnavailable
from memserve.gateway.access import token_keys
from memserve.gateway.access.token_keys import FileKeys, UrlKeys, fetched, parse_keys
from memserve.processes.supervised import repeat
from tests.gateway.access.issuer import algorithm_of, jwks, public_jwk, signing_key
from tests.gateway.running import until

# Sets


def short_rsa() -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)}


def private_jwk() -> dict[str, Any]:
    return {**algorithm_of("ES256-a").to_jwk(signing_key("ES256-a"), as_dict=True), "kid": "private"}


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "x"},
        public_jwk("RS256-a", alg="HS256"),
        public_jwk("RS256-a", alg="none"),
        public_jwk("RS256-a", alg=["RS256"]),
        public_jwk("RS256-a", use="enc"),
        public_jwk("RS256-a", key_ops=["encrypt"]),
        public_jwk("RS256-a", kid=7),
        public_jwk("RS256-a", n="AAAA"),
        public_jwk("RS256-a", e=None),
        public_jwk("ES256-a", crv="secp256k1"),
        public_jwk("ES256-a", crv="P-384"),
        public_jwk("ES256-a", x=7),
        {"kty": "OKP", "crv": "X25519", "x": "AAAA"},
        {"kty": "new", "kid": "x"},
        {"kty": ["RSA"]},
        {},
        "key",
        short_rsa(),
        private_jwk(),
    ],
    ids=str,
)
def test_a_key_that_no_token_may_be_checked_with_is_left_out(entry: Any) -> None:
    with pytest.raises(ValueError, match="has no public key"):
        parse_keys(json.dumps({"keys": [entry]}).encode())
    keys = parse_keys(json.dumps({"keys": [entry, public_jwk("EdDSA-c")]}).encode())
    assert [key.kid for key in keys] == ["EdDSA-c"]


def test_a_private_key_in_a_set_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="has no public key"):
        parse_keys(json.dumps({"keys": [private_jwk()]}).encode())
    assert "is private" in caplog.text and private_jwk()["d"] not in caplog.text


def test_a_key_is_for_its_own_algorithm_or_for_those_of_its_kind() -> None:
    named, unnamed = parse_keys(
        json.dumps({"keys": [public_jwk("RS256-a", alg="PS384"), public_jwk("RS256-b", alg=None)]}).encode()
    )
    assert named.algorithms == {"PS384"}
    assert unnamed.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"<html>", b"[" * 100_000, b"\xff",
     jwks("ES256-a", "ES256-a"), json.dumps({"keys": [{}] * 101}).encode()],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_set_of_keys_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        parse_keys(content)


# A file


@pytest.mark.parametrize("content", [None, b"", b'{"keys": []}', b" " * (2 << 20)], ids=range(4))
def test_a_file_that_cannot_be_used_stops_the_start_and_changes_nothing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks("ES256-a"))
    keys = FileKeys(file)
    before = keys.current()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartupError, match="jwt_jwks"):
        FileKeys(file)
    asyncio.run(keys.read())
    assert keys.current() is before
    assert "stay as they were" in caplog.text


async def test_a_file_that_is_replaced_counts_at_the_next_look(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks("ES256-a"))
    keys = FileKeys(file)
    aside = tmp_path / "aside.json"
    aside.write_bytes(jwks("ES256-b", "RS256-b"))
    aside.rename(file)
    await keys.follow()
    assert [key.kid for key in keys.current()] == ["ES256-b", "RS256-b"]


# An identity provider


class Provider:
    """Answers with what a test sets, and counts. An exception is raised."""

    def __init__(self) -> None:
        self.answer: bytes | Exception = jwks("ES256-a")
        self.asked = 0
        self.now_s = 1000.0

    def __call__(self, url: str) -> bytes:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def keys(self) -> UrlKeys:
        return UrlKeys("https://identity.example/keys", self, lambda: self.now_s)


FAILURES = [OSError("refused"), b"<html>", b'{"keys": []}', TimeoutError("slow")]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
async def test_the_last_keys_stay_for_a_day_while_the_provider_is_away(failure: bytes | Exception) -> None:
    provider = Provider()
    keys = provider.keys()
    with pytest.raises(TokenKeysUnavailable):
        keys.current()
    await keys.read()
    provider.answer = failure
    for later_s in (60.0, token_keys.URL_KEPT_S - 61.0):
        provider.now_s += later_s
        with pytest.raises(TokenKeysUnavailable):
            await keys.read()
        assert [key.kid for key in keys.current()] == ["ES256-a"]
    provider.now_s += 2.0
    with pytest.raises(TokenKeysUnavailable):
        keys.current()
    provider.answer = jwks("ES256-b")
    await keys.read()
    assert [key.kid for key in keys.current()] == ["ES256-b"]


async def test_the_same_answer_keeps_the_same_keys_so_that_checked_tokens_stay_known() -> None:
    provider = Provider()
    keys = provider.keys()
    await keys.read()
    before = keys.current()
    await keys.read()
    assert keys.current() is before
    provider.answer = jwks("ES256-b")
    await keys.read()
    assert keys.current() is not before


async def test_many_tokens_of_an_unknown_key_ask_the_provider_once_and_soon_not_again() -> None:
    provider = Provider()
    keys = provider.keys()
    await keys.read()
    provider.now_s += token_keys.URL_SOONEST_S + 1
    provider.answer = jwks("ES256-a", "ES256-b")
    loop = asyncio.create_task(repeat("token_keys", keys.follow, 0.01))
    try:
        await asyncio.gather(*(keys.renewed() for _ in range(50)))
        assert [key.kid for key in keys.current()] == ["ES256-a", "ES256-b"]
        await asyncio.gather(*(keys.renewed() for _ in range(50)))
        assert provider.asked == 2
        provider.now_s += token_keys.URL_SOONEST_S + 1
        await keys.renewed()
        assert provider.asked == 3
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_a_loop_reads_the_keys_as_soon_as_the_provider_is_back() -> None:
    provider, failures = Provider(), []
    provider.answer = OSError("refused")
    keys = provider.keys()
    loop = asyncio.create_task(repeat("token_keys", keys.follow, 0.01, failures.append))
    try:
        await until(lambda: len(failures) >= 2)
        provider.answer = jwks("ES256-a")
        await until(lambda: provider.answer == keys._content)
        assert [key.kid for key in keys.current()] == ["ES256-a"]
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


# Over https


class Answers(http.server.BaseHTTPRequestHandler):
    """By path: a set, a redirect, too much, a trickle, an error."""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/keys")
            self.end_headers()
            return
        self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.path == "/keys":
                self.wfile.write(jwks("ES256-a"))
            elif self.path == "/large":
                self.wfile.write(b" " * (2 << 20))
            elif self.path == "/trickle":
                for _ in range(30):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    if self.server.ending.wait(0.1):  # type: ignore[attr-defined]
                        return

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def certificate_for_loopback(folder: Path) -> Path:
    """A certificate that is its own authority, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "identity")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "identity.pem"
    file.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[tuple[str, Callable[..., bytes]]]:
    """Its address, and `fetched` with its authority."""
    certificate = certificate_for_loopback(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.ending = threading.Event()  # type: ignore[attr-defined]
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    server.socket = serving.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    trusted = ssl.create_default_context(cafile=str(certificate))
    yield f"https://127.0.0.1:{server.server_port}", partial(fetched, context=trusted)
    server.ending.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_keys_come_over_https_from_a_provider_that_is_known(
    provider: tuple[str, Callable[..., bytes]],
) -> None:
    address, fetch = provider
    assert parse_keys(fetch(f"{address}/keys"))
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        fetched(f"{address}/keys")


@pytest.mark.parametrize(
    ("path", "words"), [("moved", "302"), ("broken", "500"), ("large", "more than"), ("trickle", "no whole")]
)
def test_an_answer_that_leads_away_is_too_long_or_too_slow_is_refused(
    provider: tuple[str, Callable[..., bytes]], path: str, words: str
) -> None:
    address, fetch = provider
    with pytest.raises((OSError, ValueError), match=words):
        fetch(f"{address}/{path}", timeout_s=0.5)
