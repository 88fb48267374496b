"""What the commands share.

They share the options of every call of a gateway, groups of options, and the printing of answers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from inspect import Parameter
from typing import Annotated, Any, Concatenate, get_type_hints

import typer
from rich.console import RenderableType

from memserve.cli.terminal import out
from memserve.client import DEFAULT_ADDRESS, CallFailed, Client, TlsFiles
from memserve.client.diagnosis import why_unreachable
from memserve.errors import StartupError, UsageError
from memserve.plain import json_line

HELP = {"help_option_names": ["-h", "--help"]}

Address = Annotated[
    str,
    typer.Option(
        "--address", envvar="MEMSERVE_ADDRESS", help="host:port of the gateway.", rich_help_panel="Gateway"
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="MEMSERVE_API_KEY",
        help="Your key, sent as `authorization: Bearer KEY`.",
        rich_help_panel="Gateway",
    ),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=0.1, help="Deadline of the call, seconds.", rich_help_panel="Gateway"),
]
TlsCa = Annotated[
    str,
    typer.Option(
        "--tls-ca",
        envvar="MEMSERVE_TLS_CA_FILE",
        help="Authorities (PEM) of the gateway's certificate. Sets TLS on.",
        rich_help_panel="Gateway",
    ),
]
TlsCert = Annotated[
    str,
    typer.Option(
        "--tls-cert",
        envvar="MEMSERVE_TLS_CLIENT_CERT_FILE",
        help="Your certificate (PEM), where the gateway wants one. Sets TLS on.",
        rich_help_panel="Gateway",
    ),
]
TlsKey = Annotated[
    str,
    typer.Option(
        "--tls-key",
        envvar="MEMSERVE_TLS_CLIENT_KEY_FILE",
        help="The key (PEM) of --tls-cert.",
        rich_help_panel="Gateway",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


OPTIONS = {
    "address": "--address", "api_key": "--api-key", "timeout_s": "--timeout", "tls.ca": "--tls-ca",
    "tls.certificate": "--tls-cert", "tls.key": "--tls-key", "tls": "--tls-cert and --tls-key",
    "verify": "--verify", "sign": "--sign",
}  # fmt: skip
"""How the command line calls what the client names."""


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a command that speaks to a gateway."""

    client: Client
    as_json: bool
    """Whether --json is given. False in a command that has no such option."""

    def show(self, value: object, *, text: RenderableType) -> None:
        """Print the answer: with --json `value`, which is a dict or a frozen value; otherwise `text`."""
        print_json(value) if self.as_json else out.print(text)


def gateway_command(
    *, timeout_s: float, has_json: bool = True
) -> Callable[[Callable[Concatenate[Call, ...], None]], Callable[..., None]]:
    """Make a command of a function whose first parameter is a `Call`.

    The command has --address, --api-key, --timeout, --tls-ca, --tls-cert, --tls-key and --json, and the
    function's own options, which may be in groups. It opens the client, calls the function, and closes it.

    timeout_s: the default of --timeout.
    has_json: False for a command whose output has no other form.
    """

    def decorate(function: Callable[Concatenate[Call, ...], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(
            *,
            address: str,
            api_key: str,
            timeout: float,
            tls_ca: str,
            tls_cert: str,
            tls_key: str,
            as_json: bool = False,
            **options: Any,
        ) -> None:
            tls = tls_files(tls_ca, tls_cert, tls_key)
            with connected(address, api_key, timeout, tls) as client:
                function(Call(client, as_json), **options)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        shared = [
            _option("address", Address, DEFAULT_ADDRESS),
            _option("api_key", ApiKey, ""),
            _option("timeout", Timeout, timeout_s),
            _option("tls_ca", TlsCa, ""),
            _option("tls_cert", TlsCert, ""),
            _option("tls_key", TlsKey, ""),
        ]
        if has_json:
            shared.insert(0, _option("as_json", AsJson, False))
        _describe(command, [*own, *shared])
        return grouped(command)

    return decorate


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function that takes its options in groups.

    A group is a parameter whose type is a dataclass. The command has the fields of the dataclass as options,
    and the function gets one value of it.
    """
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    groups: dict[str, Any] = {
        parameter.name: parameter.annotation for parameter in parameters if is_dataclass(parameter.annotation)
    }

    @functools.wraps(function)
    def command(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in fields(group)})
        function(**options)

    own: list[Parameter] = []
    for parameter in parameters:
        own += _fields(groups[parameter.name]) if parameter.name in groups else [parameter]
    _describe(command, own)
    return command


def _fields(group: Any) -> list[Parameter]:
    """The fields of a dataclass as parameters."""
    types = get_type_hints(group, include_extras=True)
    return [
        _option(field.name, types[field.name], Parameter.empty if field.default is MISSING else field.default)
        for field in fields(group)
    ]


def _option(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _describe(command: Any, parameters: Iterable[Parameter]) -> None:
    """Give a command the signature that typer reads its options from."""
    named = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(named)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in named}


@contextlib.contextmanager
def connected(address: str, api_key: str, timeout_s: float, tls: TlsFiles | None = None) -> Iterator[Client]:
    """A client whose failures name the options of the command line."""
    try:
        with Client(address, api_key, timeout_s, tls=tls) as client:
            yield client
    except UsageError as error:
        raise StartupError(f"{OPTIONS.get(error.field, error.field)}: {error.rule}") from None
    except CallFailed as failed:
        match failed.code.name:
            case "UNAVAILABLE" if "connect" in failed.detail or "resol" in failed.detail:
                why = why_unreachable(address, tls) or f"no gateway answers at {address}"
                start = "; start one with `memserve up` or name another with --address"
                remedy = why + (start if why.startswith("no gateway") else "")
            case "UNAUTHENTICATED":
                lack = "the gateway does not know the API key" if api_key else "the gateway wants an API key"
                remedy = f"{lack}: name yours with --api-key or in MEMSERVE_API_KEY"
            case "DEADLINE_EXCEEDED":
                remedy = f"no answer within {timeout_s:g} s; allow more with --timeout"
            case _:
                raise
        raise StartupError(remedy) from None


def tls_files(ca: str, certificate: str, key: str) -> TlsFiles | None:
    """Of the options; empty: not given. None: without TLS, or as the address says."""
    if not (ca or certificate or key):
        return None
    return TlsFiles(ca or None, certificate or None, key or None)


def text_of(argument: str) -> str:
    """A text of the command line. `-` reads the text from standard input.

    Raises StartupError for bytes that are not UTF-8.
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


def print_json(value: object) -> None:
    """Print a dict or a frozen value as one JSON object on one line."""
    print(json_line(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value))
