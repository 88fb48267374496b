"""Tries each wire with the part of memserve that uses it, on a host of the rig. Takes and prints JSON.

A wire is tried with what it should refuse: as a caller at the real server, and at an impostor, which is a
relay to the real server that shows another certificate.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from loadtests.harness.certificates import Trial
from loadtests.harness.tls_relay import TlsRelay
from memserve.bench.http_connection import Broken, HttpConnections, origin_of
from memserve.client import AsyncClient, CallFailed, TlsFiles
from memserve.config import load_settings
from memserve.credentials import worker_credential
from memserve.domain import WorkerLease
from memserve.domain.worker_calls import WorkerFailure
from memserve.errors import RegistryUnavailable, StartupError, UsageError
from memserve.gateway.workers.calls import GrpcCalls
from memserve.kv.transport.check import check_cache_servers
from memserve.memory.texts.index import MILVUS_ERRORS, VectorIndex
from memserve.memory.texts.milvus import MilvusAccess, Vectors
from memserve.registry.leases import Registry
from memserve.tls.pem import WORKER_NAME, PemFiles

TIMEOUT_S = 3.0
CREDENTIAL = worker_credential(("cd" * 32).encode())
Files = PemFiles | None
"""What a caller shows and trusts; a certificate that is `NO_CERTIFICATE` is not shown. None: plaintext."""
NO_CERTIFICATE = Path("/none")
CALLER_CASES = ("plaintext", "another authority", "expired", "no certificate", "a worker's", "right")
IMPOSTOR_CASES = ("another authority", "expired", "another's name", "right")


@dataclass(frozen=True, slots=True)
class Wire:
    """A wire: who is at its ends, by their parts' names, and how a caller asks."""

    name: str
    caller: str
    server: str
    address: str
    ask: Callable[[str, Files], Awaitable[None]]
    """Raises one of REFUSALS."""


REFUSALS = (
    CallFailed, Broken, UsageError, WorkerFailure, RegistryUnavailable, StartupError, grpc.RpcError, OSError,
    *MILVUS_ERRORS,
)  # fmt: skip


def _client_files(files: Files) -> TlsFiles | None:
    if files is None:
        return None
    own = files.certificate != NO_CERTIFICATE
    return TlsFiles(files.authorities, *((files.certificate, files.key) if own else ()))


async def ask_grpc(address: str, files: Files) -> None:
    async with AsyncClient(address, tls=_client_files(files), timeout_s=TIMEOUT_S) as client:
        await client.status(workers_only=True)


async def ask_http(path: str, address: str, files: Files) -> None:
    scheme = "http" if files is None else "https"
    connections = HttpConnections(origin_of(f"{scheme}://{address}", _client_files(files)), {})
    try:
        async with asyncio.timeout(TIMEOUT_S), connections.request("GET", path) as response:
            await response.body()
            if response.status != 200:
                raise Broken(str(response.status))
    finally:
        connections.close()


class _AsTheyAre:
    """Certificates that `LiveTls` would refuse, such as an expired one: the other side has to."""

    def __init__(self, files: PemFiles) -> None:
        self._files = files
        self.current = self

    @property
    def authorities(self) -> bytes:
        assert self._files.authorities is not None
        return self._files.authorities.read_bytes()

    @property
    def chain(self) -> bytes | None:
        return None if self._files.certificate == NO_CERTIFICATE else self._files.certificate.read_bytes()

    @property
    def key(self) -> bytes | None:
        return None if self._files.certificate == NO_CERTIFICATE else self._files.key.read_bytes()


async def ask_worker(address: str, files: Files) -> None:
    lease = WorkerLease("w", address, "", 0, "", "", "", "", 32, 1, 512, 8, 0.0)
    calls = GrpcCalls(lease, CREDENTIAL, None if files is None else _AsTheyAre(files))  # type: ignore[arg-type]
    try:
        await calls.set_pace(0.0, TIMEOUT_S)
    finally:
        await calls.close()


async def ask_worker_metrics(address: str, files: Files) -> None:
    """As a scraper that looks for the worker's name, whatever the address is."""
    if files is None:
        await ask_http("/metrics", address, None)
        return
    context = ssl.create_default_context(cafile=files.authorities)
    if files.certificate != NO_CERTIFICATE:
        context.load_cert_chain(files.certificate, files.key)
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname=WORKER_NAME
        )
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        status = await reader.readline()
        writer.close()
    if b" 200 " not in status:
        raise Broken(status.decode(errors="replace"))


def redis_url(scheme: str, address: str, files: Files) -> str:
    """As the settings make it of a URL without parameters."""
    if files is None:
        return f"{scheme.replace('rediss', 'redis')}://{address}"
    if files.certificate == NO_CERTIFICATE:
        return f"{scheme}://{address}?ssl_ca_certs={files.authorities}"
    return load_settings(
        {},
        cache_redis_url=f"{scheme}://{address}",
        internal_tls_ca_file=files.authorities,
        internal_tls_cert_file=files.certificate,
        internal_tls_key_file=files.key,
    ).cache_redis


async def ask_registry(address: str, files: Files) -> None:
    registry = Registry(redis_url("rediss", address, files))
    try:
        await registry.ping()
    finally:
        await registry.close()


async def ask_cache(scheme: str, path: str, address: str, files: Files) -> None:
    url = redis_url(scheme, address + path, files)
    await asyncio.to_thread(check_cache_servers, url, timeout_s=TIMEOUT_S)


async def ask_milvus(address: str, files: Files) -> None:
    scheme = "http" if files is None else "https"
    shown = files if files is None or files.certificate != NO_CERTIFICATE else None
    access = MilvusAccess("a:b", shown)
    index = VectorIndex(f"{scheme}://{address}", Vectors(4), access, is_searched=True, call_timeout_s=1.5)
    try:
        await index.read("acme", lambda store: store.row_count(timeout_s=1.5))
    finally:
        await index.close(clean=False)


def wires(addresses: dict[str, str]) -> list[Wire]:
    """addresses: host:port, by the names below."""
    every = [
        Wire("client → gateway, gRPC", "client", "public", "grpc", ask_grpc),
        Wire("client → gateway, HTTP", "client", "public", "http", partial(ask_http, "/health")),
        Wire("scraper → gateway, metrics", "client", "public", "metrics", partial(ask_http, "/metrics")),
        Wire("gateway → worker, gRPC", "internal-gateway", "internal-worker", "worker", ask_worker),
        Wire(
            "scraper → worker, metrics",
            "internal-gateway",
            "internal-worker",
            "worker_metrics",
            ask_worker_metrics,
        ),
        Wire("→ Redis, registry", "internal-gateway", "redis", "redis", ask_registry),
        Wire("→ Redis, cache", "internal-worker", "redis", "redis", partial(ask_cache, "rediss", "")),
        Wire(
            "→ Redis Cluster", "internal-worker", "redis", "cluster", partial(ask_cache, "rediss+cluster", "")
        ),
        Wire(
            "→ Sentinels",
            "internal-worker",
            "redis",
            "sentinel",
            partial(ask_cache, "rediss+sentinel", "/cache"),
        ),
        Wire("gateway → Milvus", "internal-gateway", "milvus", "milvus", ask_milvus),
    ]  # fmt: skip
    return [
        Wire(wire.name, wire.caller, wire.server, addresses[wire.address], wire.ask)
        for wire in every
        if wire.address in addresses
    ]


def shown_in(case: str, wire: Wire, right: Trial, other: Trial, expired: Trial) -> Files:
    """What the caller shows. It trusts the right authority, unless it is of another one."""
    files = right.files(wire.caller)
    match case:
        case "plaintext":
            return None
        case "another authority":
            return _trusting(other.files(wire.caller), files)
        case "expired":
            return expired.files(wire.caller)
        case "no certificate":
            return PemFiles(NO_CERTIFICATE, NO_CERTIFICATE, files.authorities)
        case "a worker's":
            return right.files("internal-worker")
    return files


def _trusting(own: PemFiles, files: PemFiles) -> PemFiles:
    return PemFiles(own.certificate, own.key, files.authorities)


async def tried(ask: Awaitable[None]) -> str:
    try:
        await ask
    except REFUSALS:
        return "refused"
    return "served"


@asynccontextmanager
async def impostor(
    case: str, wire: Wire, right: Trial, other: Trial, expired: Trial
) -> AsyncIterator[tuple[TlsRelay, str]]:
    """With its address. It shows another certificate than the server's, and trusts the caller's authority."""
    own = {
        "another authority": other.files(wire.server),
        "expired": expired.files(wire.server),
        # Another's of the same authority.
        "another's name": right.files("client" if wire.server == "public" else "internal-gateway"),
        # To see that this way of trying tells the two apart.
        "right": right.files(wire.server),
    }[case]
    host, _, port = wire.address.partition(",")[0].rpartition(":")
    relay = TlsRelay(_trusting(own, right.files(wire.caller)), host, int(port))
    async with relay.listening() as own_port:
        yield relay, f"localhost:{own_port}"


async def main(job: str) -> None:
    logging.disable(logging.CRITICAL)
    told = json.loads(job)
    trials = [Trial(Path(told[name])) for name in ("right", "other", "expired")]
    rows = []
    for wire in wires(told["addresses"]):
        caller: dict[str, str] = {}
        impostors: dict[str, str] = {}
        for case in CALLER_CASES:
            if case == "a worker's" and wire.address != told["addresses"].get("worker"):
                continue
            caller[case] = await tried(wire.ask(wire.address, shown_in(case, wire, *trials)))
        for case in IMPOSTOR_CASES:
            async with impostor(case, wire, *trials) as (relay, address):
                await tried(wire.ask(address, trials[0].files(wire.caller)))
                # gRPC looks at the name when the handshake has ended, and then sends nothing.
                impostors[case] = "taken" if relay.received_bytes else "refused"
        rows.append({"wire": wire.name, "caller": caller, "impostor": impostors})
    print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
