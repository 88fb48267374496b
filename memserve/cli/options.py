"""What the commands that speak to a gateway share: where it is, how they print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from memserve.cli.terminal import PlainConsole
from memserve.client import CallFailed, Client
from memserve.errors import StartupError, UsageError
from memserve.plain import json_line

out = PlainConsole()
err = PlainConsole(stderr=True)

Address = Annotated[
    str, typer.Option("--address", envvar="MEMSERVE_ADDRESS", help="host:port of the gateway.")
]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="MEMSERVE_API_KEY", help="Sent as authorization: Bearer <key>.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Deadline of the call, seconds.")]


HELP = {"help_option_names": ["-h", "--help"]}


@contextlib.contextmanager
def connected(address: str, api_key: str, timeout_s: float) -> Iterator[Client]:
    """A client whose failures name the options of the command line."""
    try:
        with Client(address, api_key, timeout_s) as client:
            yield client
    except UsageError as error:
        option = {"address": "--address", "api_key": "--api-key", "timeout_s": "--timeout"}.get(
            error.field, error.field
        )
        raise StartupError(f"{option}: {error.rule}") from None
    except CallFailed as failed:
        match failed.code.name:
            case "UNAVAILABLE" if "connect" in failed.detail or "resol" in failed.detail:
                remedy = (
                    f"no gateway answers at {address}; start one with `memserve up` or name another with "
                    "--address"
                )
            case "UNAUTHENTICATED":
                given = "the gateway does not know the API key" if api_key else "the gateway wants an API key"
                remedy = f"{given}: name yours with --api-key or in MEMSERVE_API_KEY"
            case "DEADLINE_EXCEEDED":
                remedy = f"no answer within {timeout_s:g} s; allow more with --timeout"
            case _:
                raise
        raise StartupError(remedy) from None


def text_of(argument: str) -> str:
    """A text of the command line, or of standard input for `-`. Raises StartupError for bytes that are not
    UTF-8.
    """
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise StartupError(
            f"standard input is not UTF-8 (byte {error.start}); convert it first, such as with "
            "`iconv -f latin1 -t utf8`"
        ) from None


def print_json(value: Any) -> None:
    """One object on one line, of a dict or a frozen value."""
    print(json_line(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value))
