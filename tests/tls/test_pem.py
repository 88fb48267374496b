"""Files of a certificate fit each other, or the ones before stay."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from loadtests.harness.certificates import Trial, expired_trial, new_trial
from memserve.config import load_settings
from memserve.errors import StartupError
from memserve.metrics.certificates import CertificateMetrics, FollowedCertificates
from memserve.tls.live import LiveTls, internal_tls, public_tls
from memserve.tls.pem import GATEWAY_NAME, WORKER_NAME, Pem, PemFiles, UnfitCertificate, read_pem


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return new_trial(tmp_path / "certs", ["gateway.example.org"])


def test_what_is_read_is_whole_and_shows_no_key(trial: Trial) -> None:
    pem = read_pem(trial.files("public"), time.time())
    assert pem.names == {"gateway.example.org", "localhost"}
    assert pem.expires_s == pytest.approx(time.time() + 30 * 86_400, abs=60)
    assert pem.authorities_expire_s is not None and pem.authorities_expire_s > pem.expires_s
    assert "PRIVATE" not in repr(pem) and pem.key.decode() not in repr(pem)


def broken(trial: Trial, how: str) -> None:
    files = trial.files("internal-worker")
    if how == "half":
        files.certificate.write_bytes(files.certificate.read_bytes()[:200])
    elif how == "empty":
        files.certificate.write_bytes(b"")
    elif how == "gone":
        files.certificate.unlink()
    elif how == "key of another":
        files.key.write_bytes(trial.files("redis").key.read_bytes())
    elif how == "half a key":
        files.key.write_bytes(files.key.read_bytes()[:100])
    elif how == "half an authority":
        assert files.authorities is not None
        files.authorities.write_bytes(files.authorities.read_bytes()[:-40])


BROKEN = ["half", "empty", "gone", "key of another", "half a key", "half an authority"]


@pytest.mark.parametrize("how", BROKEN)
def test_files_that_do_not_fit_are_refused_by_name(trial: Trial, how: str) -> None:
    broken(trial, how)
    with pytest.raises(UnfitCertificate, match=r"internal-worker/(tls\.crt|tls\.key|ca\.crt)"):
        read_pem(trial.files("internal-worker"), time.time())


def test_an_expired_certificate_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UnfitCertificate, match="has expired on"):
        read_pem(expired_trial(tmp_path / "certs").files("public"), time.time())


@pytest.mark.parametrize("how", BROKEN)
async def test_files_that_do_not_fit_leave_the_one_before_are_counted_and_said_once(
    trial: Trial, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    live = LiveTls("internal", trial.files("internal-worker"))
    followed = FollowedCertificates([live, None], CertificateMetrics(registry))
    before = live.current
    broken(trial, how)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await followed.look()
    assert live.current is before
    assert len(caplog.messages) == 1 and "stays as it was" in caplog.text
    failures = registry.get_sample_value("memserve_certificate_failures_total", {"certificate": "internal"})
    assert failures == 1
    trial.renew()
    await followed.look()
    assert live.current != before
    assert isinstance(live.current, Pem)
    expiry = {"certificate": "internal"}
    assert registry.get_sample_value("memserve_certificate_expiry_timestamp_seconds", expiry) == (
        live.current.expires_s
    )


async def test_connections_that_do_not_see_a_change_are_made_anew_until_it_works(trial: Trial) -> None:
    calls: list[bool] = []

    async def reconnect() -> None:
        calls.append(True)
        if len(calls) < 2:
            raise OSError("not yet")

    live = LiveTls("internal", trial.files("internal-gateway"))
    followed = FollowedCertificates([live], CertificateMetrics(CollectorRegistry()), reconnect)
    await followed.look()
    assert calls == []
    trial.renew()
    with pytest.raises(OSError, match="not yet"):
        await followed.look()
    await followed.look()
    await followed.look()
    assert len(calls) == 2


def test_settings_that_do_not_make_a_whole_are_refused_at_start(trial: Trial, tmp_path: Path) -> None:
    def settings(**files: Path) -> object:
        return load_settings({}, data_dir=tmp_path, **files)

    public, worker = trial.files("public"), trial.files("internal-worker")
    assert public_tls(load_settings({})) is None and internal_tls(load_settings({})) is None
    for function, files, why in (
        (public_tls, {"tls_cert_file": public.certificate}, "set together"),
        (public_tls, {"tls_client_ca_file": public.certificate}, "needs tls_cert_file"),
        (internal_tls, {"internal_tls_ca_file": public.certificate}, "set together"),
        (public_tls, {"tls_cert_file": public.certificate, "tls_key_file": worker.key}, "does not belong"),
        (public_tls, {"tls_cert_file": tmp_path / "none", "tls_key_file": worker.key}, "none cannot be read"),
    ):
        with pytest.raises(StartupError, match=why):
            function(settings(**files))  # type: ignore[operator]
    internal = settings(**internal_files(worker))
    assert internal_tls(internal, WORKER_NAME) is not None  # type: ignore[arg-type]
    with pytest.raises(
        StartupError, match=f"carries {WORKER_NAME}, and it needs the DNS name {GATEWAY_NAME}"
    ):
        internal_tls(internal, GATEWAY_NAME)  # type: ignore[arg-type]


def internal_files(files: PemFiles) -> dict[str, Path]:
    assert files.authorities is not None
    return {
        "internal_tls_ca_file": files.authorities,
        "internal_tls_cert_file": files.certificate,
        "internal_tls_key_file": files.key,
    }
