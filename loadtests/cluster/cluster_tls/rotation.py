"""Every certificate changes while requests go on: new ones of the same authorities, then new authorities."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from cryptography import x509

from loadtests.cluster.cluster_tls.rig import (
    GRPC,
    HTTP,
    METRICS,
    MILVUS,
    REDIS,
    WORKER,
    WORKER_METRICS,
    Rig,
)
from loadtests.harness.certificates import Trial, new_trial, trusting_both
from loadtests.harness.figures import report
from memserve.tls.pem import PemFiles

TAKEN_S = 30.0
SETTLE_S = 2.0
RENEWED, BOTH, OTHERS, ONLY = (
    "renewed",
    "both authorities trusted",
    "new certificates",
    "new authorities only",
)
CHANGES = (RENEWED, f"{RENEWED} again", BOTH, OTHERS, ONLY)
PORTS = {
    "gateway, gRPC": ("gw", GRPC, "client", "public"),
    "gateway, HTTP": ("gw", HTTP, "client", "public"),
    "gateway, metrics": ("gw", METRICS, "client", "public"),
    "worker, gRPC": ("w1", WORKER, "internal-gateway", "internal-worker"),
    "worker, metrics": ("w2", WORKER_METRICS, "internal-gateway", "internal-worker"),
    "Redis": ("data", REDIS, "internal-gateway", "redis"),
    "Milvus": ("data", MILVUS, "internal-gateway", "milvus"),
}
"""Host, port, whose certificate a caller shows, and whose it is shown."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What happened."""

    taken_s: dict[str, list[float]]
    """By port: seconds until it showed the new certificate, of each change that brought one."""
    requests: dict[str, int]
    """Begun, by kind."""
    failures: dict[str, list[str]]
    """By kind, what they said."""
    answers_after: bool
    """Whether a request is answered after Redis has ended all connections: new ones are made."""


def rotate(rig: Rig, seconds: float) -> Rotation:
    """seconds: that requests go on, through all changes."""
    job = {
        "grpc": rig.url("gw", GRPC), "http": rig.url("gw", HTTP), "seconds": seconds,
        "part": str(rig.mounted.folder / "client"),
    }  # fmt: skip
    outcome: dict[str, Any] = {}

    def ask() -> None:
        outcome.update(_asked(rig, job))

    asking = threading.Thread(target=ask)
    begun_s = time.monotonic()
    asking.start()
    taken: dict[str, list[float]] = {port: [] for port in PORTS}
    time.sleep(SETTLE_S)
    for name, trial in _changes(rig):
        before = {port: _serial(rig, port) for port in PORTS}
        # The same authorities sign what is shown before and after, or both are trusted.
        rig.mounted.show(trial)
        rig.redis_reads_again()
        changed_s = time.monotonic()
        if name not in (BOTH, ONLY):
            for port in PORTS:
                _until_other(rig, port, before[port])
                taken[port].append(time.monotonic() - changed_s)
        time.sleep(SETTLE_S)
        report(f"{time.monotonic() - begun_s:5.1f} s  {name}")
    asking.join()
    with redis.Redis(unix_socket_path=str(rig.folder / "redis" / "redis.sock")) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    after = _asked(rig, {**job, "seconds": 3.0})
    return Rotation(
        taken, outcome["requests"], outcome["failures"], not after["failures"] and len(after["requests"]) == 5
    )


def _changes(rig: Rig) -> list[tuple[str, Trial]]:
    """Made before the first is shown, since a certificate takes processor time."""
    again = []
    for number in (1, 2):
        rig.trial.renew()
        again.append(rig.trial.copy(rig.folder / f"again{number}"))
    other = new_trial(rig.folder / "new", rig.trial.hosts)
    both_old = trusting_both(again[-1], other, rig.folder / "both-old")
    both_new = trusting_both(other, again[-1], rig.folder / "both-new")
    return list(zip(CHANGES, [*again, both_old, both_new, other], strict=True))


def _asked(rig: Rig, job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtests.cluster.cluster_tls.load", json.dumps(job)]
    return dict(json.loads(rig.hosts["client"].run(command, timeout_s=float(job["seconds"]) + 90)))


def _serial(rig: Rig, port: str) -> int:
    """Of the certificate that a port shows now."""
    host, number, caller, server = PORTS[port]
    files = rig.mounted.files(caller)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    _load(context, files)
    address = rig.hosts[host].address
    with socket.create_connection((address, number), 5) as plain, context.wrap_socket(plain) as secured:
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None, server
    return x509.load_der_x509_certificate(shown).serial_number


def _load(context: ssl.SSLContext, files: PemFiles) -> None:
    version = (Path(files.certificate).parent / "..data").resolve()
    context.load_cert_chain(version / "tls.crt", version / "tls.key")


def _until_other(rig: Rig, port: str, serial: int) -> None:
    """Raises TimeoutError."""
    deadline_s = time.monotonic() + TAKEN_S
    while _serial(rig, port) == serial:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{port}: the new certificate was not taken")
        time.sleep(0.05)
