"""How memserve's parts dial each other.

Addresses as people write them, no proxy, and the header with the API key.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import MutableMapping

from memserve.errors import UsageError

DEFAULT_PORT = 50051
# A company's proxy is for the world outside. It reaches neither loopback nor the machines beside this one,
# and gRPC would use it for both.
NO_PROXY = (("grpc.enable_http_proxy", 0),)
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# Addresses that begin with these are gRPC's own. gRPC reads them itself.
GRPC_NAMES = ("unix:", "unix-abstract:", "dns:/", "ipv4:", "ipv6:")
_PLAIN_SCHEMES, _TLS_SCHEMES = ("http", "grpc", "tcp"), ("https", "grpcs")
_OPEN_SCHEMES = ("grpc", "tcp")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EXAMPLE = f"write host:port, such as 127.0.0.1:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}"


def target_of(address: str) -> str:
    """The target that gRPC dials for `address`. Raises UsageError.

    address: host:port, with or without a scheme, a port or the brackets of IPv6.
    """
    text = address.strip()
    if text.startswith(GRPC_NAMES):
        return text
    if scheme := _SCHEME.match(text):
        if scheme["scheme"].lower() not in (*_PLAIN_SCHEMES, *_TLS_SCHEMES):
            raise UsageError("address", f"{address!r} has a scheme that is not gRPC's; {_EXAMPLE}")
        text = scheme["rest"].removesuffix("/")
    if not text or not text.isprintable() or any(letter in "/?#@ " for letter in text):
        raise UsageError("address", f"{address!r} is no address; {_EXAMPLE}")
    if _is_ipv6(text.strip("[]")):
        return f"[{text.strip('[]')}]:{DEFAULT_PORT}"
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not host or (":" in host and not _is_ipv6(host.strip("[]"))):
        raise UsageError("address", f"{address!r} has no host; {_EXAMPLE}")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise UsageError("address", f"{address!r} has no port of 1 to 65535; {_EXAMPLE}")
    return f"{host}:{port}"


def asks_for_tls(address: str) -> bool | None:
    """Whether the address has a scheme with TLS, such as https://. None where it leaves that open."""
    scheme = _SCHEME.match(address.strip())
    if scheme is None or scheme["scheme"].lower() in _OPEN_SCHEMES:
        return None
    return scheme["scheme"].lower() in _TLS_SCHEMES


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Keep connections to this machine away from a proxy that the environment names.

    For libraries in this process and its children.
    """
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        # gRPC reads the first of the variables that is set. So no_grpc_proxy repeats what no_proxy has.
        hosts = environment.get(name) or (environment.get("no_proxy", "") if name == "no_grpc_proxy" else "")
        spared = [entry.strip() for entry in hosts.split(",") if entry.strip()]
        environment[name] = ",".join([*spared, *(host for host in _LOOPBACK if host not in spared)])


def bearer(api_key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with the API key; none for an empty key. Raises UsageError."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise UsageError(
            "api_key",
            "holds a character that no header takes; is there a line's end or a stray byte in the file that "
            "it comes from?",
        )
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
