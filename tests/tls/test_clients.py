"""Clients of a gateway with TLS: what they are told when it does not come about, and their options."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.harness.certificates import Trial, expired_of, new_trial
from memserve.client import CallFailed, Client, TlsFiles, UsageError, wait_until_ready
from memserve.client.diagnosis import why_unreachable
from memserve.tls.grpc_credentials import server_credentials
from memserve.tls.live import LiveTls
from tests.client.examples import STATUS, STATUS_PB
from tests.client.stub_gateway import TIMEOUT_S, StubGateway


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return new_trial(tmp_path_factory.mktemp("trial") / "certs")


@contextmanager
def gateway(tls: LiveTls | None) -> Iterator[str]:
    stub = StubGateway(None if tls is None else server_credentials(tls))
    stub.replies["GetStatus"] = [STATUS_PB]
    try:
        yield stub.address
    finally:
        stub.close()


def memserve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MEMSERVE_")}
    return subprocess.run(
        [sys.executable, "-m", "memserve", *arguments],
        env={**clean, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def only(ca: str | None, own: TlsFiles | None = None) -> TlsFiles:
    return TlsFiles(ca, *(() if own is None else (own.certificate, own.key)))


def refused(address: str, tls: TlsFiles | None) -> str:
    """What a client is told."""
    with Client(address, tls=tls, timeout_s=3.0) as client, pytest.raises(CallFailed) as failed:
        client.status()
    assert failed.value.code.name == "UNAVAILABLE"
    return why_unreachable(address, tls)


def test_each_cause_is_told_with_what_to_do(trial: Trial, tmp_path: Path) -> None:
    other, expired = new_trial(tmp_path / "other"), expired_of(trial, tmp_path / "expired")
    ca = str(trial.client().ca)
    with gateway(trial.live("public")) as address:
        assert why_unreachable(address, trial.client()) == ""
        assert "speaks TLS: name the authority" in refused(address, None)
        assert "authority that is not trusted here" in refused(address, other.client())
        assert "authority that is not trusted here" in refused(f"https://{address}", None)
        assert "wants a client's certificate: --tls-cert" in refused(address, only(ca))
        assert "does not accept this client's certificate" in refused(address, only(ca, other.client()))
        assert "does not accept this client's certificate" in refused(address, only(ca, expired.client()))
        assert wait_until_ready(address, TIMEOUT_S, tls=trial.client())
    with gateway(expired.live("public")) as address:
        assert "has expired" in refused(address, trial.client())
    with gateway(trial.live("redis", mutual=False)) as address:
        assert "authority that is not trusted" in refused(address, only(ca))
    with gateway(trial.live("client", mutual=False)) as address:
        assert "is for other names than 127.0.0.1" in refused(address, only(ca))
    with gateway(None) as address:
        assert "speaks no TLS" in refused(address, trial.client())
    assert "no gateway answers" in refused(address, trial.client())


def test_an_address_that_asks_for_no_tls_and_files_for_it_do_not_go_together(trial: Trial) -> None:
    with pytest.raises(UsageError, match="asks for no TLS"):
        Client("http://gateway:1", tls=trial.client())


def test_the_command_line_takes_the_files_as_options_and_from_the_environment(trial: Trial) -> None:
    place = trial.folder / "client"
    options = ["--tls-ca", str(place / "ca.crt"), "--tls-cert", str(place / "tls.crt"), "--tls-key"]
    environment = {
        "MEMSERVE_TLS_CA_FILE": str(place / "ca.crt"),
        "MEMSERVE_TLS_CLIENT_CERT_FILE": str(place / "tls.crt"),
        "MEMSERVE_TLS_CLIENT_KEY_FILE": str(place / "tls.key"),
    }
    with gateway(trial.live("public")) as address:
        status = ["status", "--json", "--address", address]
        served = memserve(*status, *options, str(place / "tls.key"))
        assert served.returncode == 0, served.stderr
        assert memserve(*status, **environment).stdout == served.stdout
        plain = memserve(*status)
        assert plain.returncode == 1
        assert b"speaks TLS: name the authority of its certificate (--tls-ca" in plain.stderr
        assert STATUS.model.encode() in served.stdout
