"""Who can connect: sockets by process against the settings, Ray's ports, the workers' port, metrics and
reflection.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import redis
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loadtests.safety.attack.world import METRICS_KEY, Attack, World
from memserve.credentials import tenant_salt
from memserve.pb.worker.v1 import worker_pb2 as worker_pb
from memserve.pb.worker.v1 import worker_pb2_grpc as worker_rpc
from memserve.registry.leases import WORKERS, lease_key

JOIN_S = 12.0
# Runs a task in the cluster that listens at argv[1].
JOIN = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("RAN", ray.get(ray.remote(lambda: open(sys.argv[2]).read()).remote()))
"""


def listening(world: World) -> Iterator[tuple[psutil.Process, str, int]]:
    """Every TCP port: process, address, number."""
    for process in world.processes():
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield process, connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port


def sockets_by_process(world: World) -> list[tuple[str, int, str, str]]:
    """name, pid, what it listens on, and what the settings say of it; for the second table."""
    rows = []
    named = {world.settings.port: "port", world.settings.metrics_port: "metrics_port"}
    lease = _lease(world)
    named[int(lease["address"].rpartition(":")[2])] = "worker_host"
    named[int(lease["metrics_address"].rpartition(":")[2])] = "metrics_host"
    for process, address, port in listening(world):
        rows.append((_name(process), process.pid, f"{address}:{port}", named.get(port, "internal")))
    for process in world.processes():
        with contextlib.suppress(psutil.Error):
            for path in sorted(
                {connection.laddr for connection in process.net_connections("unix") if connection.laddr}
            ):
                rows.append((_name(process), process.pid, str(path), "unix socket"))
    return rows


def sockets_against_settings(world: World) -> tuple[str, bool]:
    settings = world.settings
    ports = list(listening(world))
    outer = [
        f"{_name(process)} on {address}:{port}"
        for process, address, port in ports
        if not ipaddress.ip_address(address).is_loopback
    ]
    numbers = {port for _, _, port in ports}
    missing = [name for name in ("port", "metrics_port") if getattr(settings, name) not in numbers]
    open_sockets = []
    for process in world.processes():
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("unix"):
                path = Path(str(connection.laddr or ""))
                if path.is_absolute() and path.exists() and not _behind_a_private_folder(path):
                    open_sockets.append(str(path))
    said = (
        f"{len(ports)} TCP ports, {len(outer)} beyond loopback; {len(set(open_sockets))} unix sockets "
        "others could reach"
    )
    return said + "".join(f"; {entry}" for entry in (*outer, *missing)), not (
        outer or missing or open_sockets
    )


def outer_address(world: World) -> tuple[str, bool]:
    outer = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not ipaddress.ip_address(address.address).is_loopback
    }
    reached = []
    ports = sorted({port for _, _, port in listening(world)})
    for host in sorted(outer):
        for port in ports:
            with socket.socket() as probe:
                probe.settimeout(0.5)
                if probe.connect_ex((host, port)) == 0:
                    reached.append(port)
    return f"{len(ports)} ports on {len(outer)} outer addresses: {len(reached)} answered", not reached


def job_agent(world: World) -> tuple[str, bool]:
    ran, asked = [], 0
    proof = world.folder / "job-ran"
    job = json.dumps({"entrypoint": f"touch {proof}"}).encode()
    for _, address, port in listening(world):
        for path in ("/api/job_agent/jobs/", "/api/jobs/"):
            asked += 1
            request = urllib.request.Request(
                f"http://{address}:{port}{path}", job, {"Content-Type": "application/json"}
            )
            refused = (OSError, ValueError, http.client.HTTPException)
            with contextlib.suppress(*refused), _no_proxy().open(request, timeout=1) as reply:
                ran.append((port, reply.status))
    return (
        f"{asked} POSTs: {len(ran)} accepted, {'the job ran' if proof.exists() else 'none ran'}",
        not ran and not proof.exists(),
    )


def join_by_gcs(world: World) -> tuple[str, bool]:
    gcs = [
        f"{address}:{port}" for process, address, port in listening(world) if process.name() == "gcs_server"
    ]
    secret = world.settings.data / "keys.json"
    ran = []
    for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        environment = {
            **os.environ,
            "HOME": str(world.folder),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            **token,
        }
        with subprocess.Popen(
            [sys.executable, "-c", JOIN, gcs[0], str(secret)],
            env=environment,
            cwd=world.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        ) as stranger:
            try:
                output = stranger.communicate(timeout=JOIN_S)[0]
            except subprocess.TimeoutExpired:
                stranger.kill()
                output = stranger.communicate()[0]
        if "RAN" in output:
            ran.append(token["RAY_AUTH_MODE"])
    return f"joined without a token and with a wrong one: {len(ran)} of 2 ran a task", bool(gcs) and not ran


def worker_port(world: World) -> tuple[str, bool]:
    refused = answered = 0
    salt = tenant_salt(b"guessed" * 8, "acme")
    with grpc.insecure_channel(_lease(world)["address"]) as channel:
        plain = worker_rpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
        for metadata in ((), (("authorization", "Bearer "),), (("authorization", "Bearer " + "0" * 64),)):
            for method in worker_pb.DESCRIPTOR.services_by_name["WorkerService"].methods:
                request: Any = message_factory.GetMessageClass(method.input_type)()
                if method.name == "Generate":
                    request = worker_pb.GenerateRequest(
                        request_id="stolen", token_ids=[1, 2, 3], cache_salt=salt, tenant="acme", max_tokens=4
                    )
                try:
                    call = getattr(plain, method.name)(request, timeout=10, metadata=metadata)
                    if method.server_streaming:
                        next(call)
                    answered += 1
                except grpc.RpcError as error:
                    refused += error.code() is grpc.StatusCode.UNAUTHENTICATED
        healthy = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    held = answered == 0 and refused == 24 and healthy.status == health_pb2.HealthCheckResponse.SERVING
    return f"{refused} of {refused + answered} calls refused; health answered", held


def secrets_in_processes(world: World) -> tuple[str, bool]:
    leaks, looked = [], 0
    secrets = world.secrets
    for process in world.processes():
        with contextlib.suppress(psutil.Error):
            looked += 1
            text = "\n".join([*process.cmdline(), *process.environ().values()])
            leaks += [_name(process) for secret in secrets if secret in text]
    for folder in {world.settings.data / "logs", (next((world.settings.data / "ray").iterdir())).resolve()}:
        for file in folder.rglob("*"):
            if file.is_file() and file.stat().st_size < 64 << 20:
                text = file.read_text(errors="replace", encoding="utf-8")
                leaks += [file.name for secret in secrets if secret in text]
    return (
        f"{looked} processes' environments and command lines, all logs: {len(leaks)} hold one of "
        f"{len(secrets)} secrets",
        not leaks,
    )


def metrics(world: World) -> tuple[str, bool]:
    statuses, text = {}, ""
    addresses = [
        f"{world.settings.metrics_host}:{world.settings.metrics_port}",
        _lease(world)["metrics_address"],
    ]
    with world.client() as client:
        client.generate("Hello.")
    for address in addresses:
        for key in ("", "wrong", METRICS_KEY):
            request = urllib.request.Request(
                f"http://{address}/metrics", headers={"Authorization": f"Bearer {key}"} if key else {}
            )
            try:
                with _no_proxy().open(request, timeout=10) as reply:
                    statuses[address, key] = reply.status
                    text += reply.read().decode()
            except urllib.error.HTTPError as error:
                statuses[address, key] = error.code
    named = [word for word in ("acme", "bolt", "lora_requests_info") if word in text]
    held = (
        all(status == (200 if key == METRICS_KEY else 401) for (_, key), status in statuses.items())
        and not named
    )
    return (
        f"{sorted(statuses.values())} without, with a wrong and with the right key; tenants' things "
        f"named: {named or 'none'}",
        held,
    )


def reflection_and_metrics_off(world: World) -> tuple[str, bool]:
    """A second gateway on the same registry, with both switched off."""
    from loadtests.harness.second_gateway import second_gateway

    with second_gateway(
        world.settings,
        world.folder / "second",
        api_keys_file=world.keys_file,
        reflection=False,
        metrics=False,
    ) as gateway:
        ports = [port for process in gateway.processes() for port in _tcp_ports(process)]
        with grpc.insecure_channel(gateway.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            try:
                next(
                    stub.ServerReflectionInfo(
                        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
                    )
                )
                listed = True
            except grpc.RpcError as error:
                listed = error.code() is not grpc.StatusCode.UNIMPLEMENTED
    has_metrics = any(_answers_http(port) for port in ports)
    return (
        f"reflection {'answers' if listed else 'is unknown'}, {'a' if has_metrics else 'no'} port "
        "answers HTTP",
        not listed and not has_metrics,
    )


def _answers_http(port: int) -> bool:
    with contextlib.suppress(Exception), _no_proxy().open(f"http://127.0.0.1:{port}/metrics", timeout=1):
        return True
    return False


def _tcp_ports(process: psutil.Process) -> list[int]:
    return [
        connection.laddr.port
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def _lease(world: World) -> dict[str, Any]:
    with redis.Redis.from_url(world.settings.redis, decode_responses=True) as registry:
        leases = [registry.get(lease_key(name)) for name in registry.smembers(WORKERS)]
    own: dict[str, Any] = next(json.loads(lease) for lease in leases if lease)
    return own


def _behind_a_private_folder(path: Path) -> bool:
    return any(stat.S_IMODE(parent.stat().st_mode) & 0o077 == 0 for parent in path.parents)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        line = process.cmdline()
        return next(
            (word for word in ("gateway", "workers", "gcs_server", "raylet") if word in " ".join(line[:4])),
            line[0].rpartition("/")[2],
        )
    return "gone"


def _no_proxy() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


ATTACKS = (
    Attack("1", "every listening socket of every process against the settings", sockets_against_settings),
    Attack("1", "connect to each port by the machine's outer address", outer_address),
    Attack("1", "POST a job to every port", job_agent),
    Attack("1", "join Ray by the GCS port and read the keys", join_by_gcs, slow=True),
    Attack("2", "the worker's port without and with a wrong credential, every RPC", worker_port),
    Attack("2", "secrets in environments, command lines and logs", secrets_in_processes),
    Attack("16", "metrics without a key, with a wrong one, and what they name", metrics),
    Attack("16", "reflection and metrics switched off", reflection_and_metrics_off, slow=True),
)
