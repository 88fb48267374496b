"""One probe of a container: gRPC, HTTP, TCP or a command in it."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadtests.cluster.kubelet.objects import Manifest, ManifestFault, port_number

Execute = Callable[[Sequence[str], float], int]
"""Runs a command in the container within seconds, and returns its exit status."""


def probe(action: Manifest, address: str, pod_spec: Manifest, timeout_s: float, execute: Execute) -> str:
    """Probe once, from the node as a kubelet does. Returns what is wrong; empty: nothing.

    action: a probe or a lifecycle hook, with `grpc`, `httpGet`, `tcpSocket` or `exec`.
    Raises ManifestFault.
    """
    try:
        if question := action.get("grpc"):
            return _ask_health(f"{address}:{question['port']}", question.get("service") or "", timeout_s)
        if question := action.get("httpGet"):
            return _get(question, address, pod_spec, timeout_s)
        if question := action.get("tcpSocket"):
            port = _number(question["port"], pod_spec)
            socket.create_connection((address, port), timeout_s).close()
            return ""
        if question := action.get("exec"):
            status = execute(question["command"], timeout_s)
            return f"the command ended with {status}" if status else ""
    except subprocess.TimeoutExpired:
        return f"no end within {timeout_s:g} s"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    raise ManifestFault(f"no kubelet of ours makes a probe with {sorted(action)}")


def _number(port: str | int, pod_spec: Manifest) -> int:
    number = port_number(port, pod_spec)
    if number is None:
        raise ManifestFault(f"a probe asks port {port}, which no container names")
    return number


def _ask_health(target: str, service: str, timeout_s: float) -> str:
    # A connection of its own for each probe, as the kubelet's.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options=options) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s).status
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if status == serving else health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def _get(question: Manifest, address: str, pod_spec: Manifest, timeout_s: float) -> str:
    port = _number(question["port"], pod_spec)
    if question.get("scheme") == "HTTPS":
        # A kubelet checks no certificate.
        context = ssl._create_unverified_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address, port, timeout=timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        headers = {header["name"]: header["value"] for header in question.get("httpHeaders") or []}
        connection.request("GET", question.get("path") or "/", headers=headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if 200 <= status < 400 else f"HTTP status {status}"
