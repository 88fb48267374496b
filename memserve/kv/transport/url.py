"""`cache_redis_url`, understood: one server, a Redis Cluster, or Sentinels. Nothing here connects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

Address = tuple[str, int]
"""Host and port. For a unix socket: its path, and 0."""


class Deployment(Enum):
    """What a cache URL leads to."""

    SINGLE = "one server"
    CLUSTER = "a Redis Cluster"
    SENTINEL = "Sentinels"


_SCHEMES: Final = {
    "redis": (Deployment.SINGLE, False),
    "rediss": (Deployment.SINGLE, True),
    "unix": (Deployment.SINGLE, False),
    "redis+cluster": (Deployment.CLUSTER, False),
    "rediss+cluster": (Deployment.CLUSTER, True),
    "redis+sentinel": (Deployment.SENTINEL, False),
    "rediss+sentinel": (Deployment.SENTINEL, True),
}
# A URL cannot set timeouts, protocol and decoding: memserve sets them.
_PARAMETERS: Final = ("username", "password", "client_name", "socket_keepalive")
_TLS_PARAMETERS: Final = (
    "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs",
    "ssl_check_hostname",
)  # fmt: skip
_SENTINEL_PARAMETERS: Final = ("sentinel_username", "sentinel_password")
_ENCODE: Final = "percent-encode what is special in a user or password (/ as %2F, @ as %40, # as %23)"
_PARSERS: Final[Mapping[str, Any]] = URL_QUERY_ARGUMENT_PARSERS
_PORTS: Final = {Deployment.SINGLE: 6379, Deployment.CLUSTER: 6379, Deployment.SENTINEL: 26379}


@dataclass(frozen=True, slots=True)
class CacheUrl:
    """A cache URL, understood. Its repr shows no secret."""

    deployment: Deployment
    addresses: tuple[Address, ...]
    """The address of the server, of some nodes of the cluster, or of the Sentinels."""
    service: str = ""
    """The Sentinels' name for the master."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """redis-py's arguments for every connection to a server that holds values."""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """redis-py's arguments for every connection to a Sentinel."""

    def arguments(self, address: Address) -> dict[str, Any]:
        """Arguments for redis-py's blocking and asyncio clients."""
        host, port = address
        return {**self.options, **({"host": host, "port": port} if port else {"unix_socket_path": host})}

    def client(self, address: Address, timeout_s: float, connect_timeout_s: float) -> Redis:
        """A blocking client of one server. `Wire.connect` takes its pool. Does not connect."""
        # One retry, only for a connection that turns out to be closed. After a restart of Redis every pooled
        # connection is closed.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        return Redis(
            **self.arguments(address),
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            retry=retry,
        )


def parse_cache_url(url: str) -> CacheUrl:
    """Read a cache URL.

    Raises ValueError that says what is wrong and how it is written. The message quotes neither user nor
    password.
    """
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in _SCHEMES:
        raise ValueError(f"a cache URL begins with one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    deployment, _ = _SCHEMES[scheme]
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"it is not well formed; {_ENCODE}") from None
    if parts.fragment or "@" in parts.path:
        raise ValueError(f"it is not well formed; {_ENCODE}")
    credentials, _, hosts = parts.netloc.rpartition("@")
    options, sentinel_options = _options(scheme, credentials, parts.query)
    if scheme == "unix":
        if not parts.path:
            raise ValueError("a unix:// URL needs the path of a socket: unix:///run/redis.sock")
        return CacheUrl(deployment, ((unquote(parts.path), 0),), "", options)
    addresses = tuple(_address(text, deployment) for text in hosts.split(","))
    if deployment is Deployment.SINGLE and len(addresses) > 1:
        raise ValueError(
            "a plain URL names one server; for several use redis+cluster:// or redis+sentinel://"
        )
    service = ""
    database = parts.path.strip("/")
    if deployment is Deployment.SENTINEL:
        service, _, database = database.partition("/")
        service = unquote(service)
        if not service:
            raise ValueError(
                "the name of the Sentinels' service is missing: "
                "redis+sentinel://host:port,host:port/<service name>"
            )
    if database:
        if deployment is Deployment.CLUSTER:
            raise ValueError("a Redis Cluster has no database index; leave the path out")
        if not database.isdecimal():
            raise ValueError("the database index at the end of the path is no number")
        options.setdefault("db", int(database))
    return CacheUrl(deployment, addresses, service, options, sentinel_options)


def _options(scheme: str, credentials: str, query: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """redis-py's arguments for connections to servers that hold values, and for connections to Sentinels."""
    deployment, tls = _SCHEMES[scheme]
    username, _, password = credentials.partition(":")
    options: dict[str, Any] = {"ssl": True} if tls else {}
    sentinel_options = dict(options)
    options |= {
        name: unquote(text) for name, text in (("username", username), ("password", password)) if text
    }

    known = (*_PARAMETERS, *(_TLS_PARAMETERS if tls else ()))
    known += ("db",) if deployment is not Deployment.CLUSTER else ()
    known += _SENTINEL_PARAMETERS if deployment is Deployment.SENTINEL else ()
    for name, texts in parse_qs(query, keep_blank_values=True).items():
        if name == "db" and deployment is Deployment.CLUSTER:
            raise ValueError("a Redis Cluster has no database index; leave `db` out")
        if name not in known:
            raise ValueError(f"unknown parameter {name!r} in a {scheme}:// URL; it takes {', '.join(known)}")
        try:
            parameter = _PARSERS.get(name, str)(texts[0])
        except (TypeError, ValueError):
            raise ValueError(f"parameter {name!r} has a value that it cannot have") from None
        if name in _SENTINEL_PARAMETERS:
            sentinel_options[name.removeprefix("sentinel_")] = parameter
        else:
            options[name] = parameter
            if name in _TLS_PARAMETERS:
                sentinel_options[name] = parameter
    return options, sentinel_options


def _address(text: str, deployment: Deployment) -> Address:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    host = unquote(host if colon else text).strip("[]")
    if not host and deployment is not Deployment.SINGLE:
        raise ValueError("a server's host is missing: host:port,host:port")
    if colon and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"a port is no number from 1 to 65535; {_ENCODE}")
    return host or "localhost", int(port) if colon else _PORTS[deployment]


def without_secrets(url: str) -> str:
    """The URL for a person to read: without user, password, and parameters."""
    head, _, tail = url.partition("?")[0].rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if head else tail
