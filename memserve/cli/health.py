"""`memserve health`: for health checks of containers. It loads as little as it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import grpc
import typer

from memserve.channels import NO_PROXY, target_of
from memserve.errors import UsageError

DEFAULT_ADDRESS = "127.0.0.1:50052"
READY = "ready"
CHECK = "/grpc.health.v1.Health/Check"
# grpc.health.v1.HealthCheckResponse.ServingStatus
STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
SERVING = 1


def health(
    address: Annotated[
        str,
        typer.Option(help="host:port of a health port: health_port of a gateway, worker_health_port."),
    ] = DEFAULT_ADDRESS,
    ready: Annotated[bool, typer.Option("--ready", help="Ask whether it takes requests.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Deadline of the answer, seconds.")] = 2.0,
) -> None:
    """Ask a health port whether its process lives. Exit status 0: yes.

    For health checks of containers. A health port needs no key and no TLS.
    With --ready it says whether the process takes requests now.

    Example: `memserve health --ready`
    """
    try:
        answer = asked(address, READY if ready else "", timeout)
    except UsageError as error:
        answer = f"{error.field}: {error.rule}"
    typer.echo(answer, err=answer != STATUSES[SERVING])
    if answer != STATUSES[SERVING]:
        raise typer.Exit(1)


def asked(address: str, service: str, timeout_s: float) -> str:
    """What the port says of the service, or why it says nothing. Raises UsageError."""
    with grpc.insecure_channel(target_of(address), options=NO_PROXY) as channel:
        # The messages have one field each: no generated code needs to be loaded.
        check = channel.unary_unary(CHECK, request_serializer=_request, response_deserializer=_status)
        try:
            status = check(service, timeout=timeout_s)
        except grpc.RpcError as failed:
            return f"{failed.code().name} at {address}"
    return STATUSES.get(status, f"status {status}")


def main(arguments: Sequence[str]) -> None:
    """`memserve health` alone, without the other commands."""
    alone = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    alone.command()(health)
    alone(args=list(arguments), prog_name="memserve health")


def _request(service: str) -> bytes:
    """HealthCheckRequest: field 1 is the name, shorter than 128 bytes."""
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def _status(response: bytes) -> int:
    """HealthCheckResponse: field 1 is the status, a number below 128. 0 is left out on the wire."""
    return response[1] if response[:1] == b"\x08" and len(response) > 1 else 0
