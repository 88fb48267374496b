"""What the commands that speak to a gateway share: where it is, how they print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from memserve.client import CallFailed, Client
from memserve.errors import StartupError
from memserve.plain import json_line
from memserve.terminal import PlainConsole

out = PlainConsole()
err = PlainConsole(stderr=True)

Address = Annotated[str, typer.Option("--address", envvar="MEMSERVE_ADDRESS", help="host:port of the gateway.")]
ApiKey = Annotated[str, typer.Option("--api-key", envvar="MEMSERVE_API_KEY", help="Sent as authorization: Bearer <key>.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Deadline of the call, seconds.")]


@contextlib.contextmanager
def connected(address: str, api_key: str, timeout_s: float) -> Iterator[Client]:
    """A client; a gateway that does not answer is said in one line."""
    with Client(address, api_key, timeout_s) as client:
        try:
            yield client
        except CallFailed as failed:
            if failed.code.name == "UNAVAILABLE" and "connect" in failed.detail:
                raise StartupError(
                    f"no gateway answers at {address}; start one with `memserve up` or name another with --address"
                ) from None
            raise


def print_json(value: Any) -> None:
    """One object on one line, of a dict or a frozen value."""
    print(json_line(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value))
