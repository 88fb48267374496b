"""Where a gateway is, and how a client reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import grpc

from memserve.channels import DEFAULT_PORT, NO_PROXY, asks_for_tls, bearer, target_of
from memserve.client.arguments import seconds
from memserve.errors import UsageError

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT_S = 60.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    # By default the pauses between gRPC's attempts to connect grow to two minutes. After an outage of 15 s a
    # client would see the gateway as dead for 15 s more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    *NO_PROXY,
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS with a gateway, or with a proxy in front of it. Read when the client is made."""

    ca: str | PathLike[str] | None = None
    """Certificates of the authorities that the server's certificate may come from. None: gRPC's own list."""
    certificate: str | PathLike[str] | None = None
    """The client's own certificate with its chain, for a server that asks for one. It needs `key`."""
    key: str | PathLike[str] | None = None
    """The private key of `certificate`."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises UsageError."""
        if (self.certificate is None) != (self.key is None):
            raise UsageError("tls", "certificate and key are given together, or neither is")
        return grpc.ssl_channel_credentials(
            root_certificates=_content("tls.ca", self.ca),
            private_key=_content("tls.key", self.key),
            certificate_chain=_content("tls.certificate", self.certificate),
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What every call of a client has in common."""

    target: str
    """What gRPC dials."""
    metadata: tuple[tuple[str, str], ...]
    """Holds the API key."""
    timeout_s: float
    """The deadline of each call."""
    credentials: grpc.ChannelCredentials | None
    """None: without TLS."""


def endpoint_of(address: str, api_key: str, timeout_s: float, tls: TlsFiles | None) -> Endpoint:
    """What every call needs, from the arguments of a client. Raises UsageError."""
    tls = tls_of(address, tls)
    return Endpoint(
        target=target_of(address),
        metadata=bearer(api_key),
        timeout_s=seconds(timeout_s),
        credentials=tls.credentials() if tls is not None else None,
    )


def tls_of(address: str, tls: TlsFiles | None) -> TlsFiles | None:
    """The files; for an https:// address without them gRPC's own list of authorities. None: no TLS.

    Raises UsageError.
    """
    wanted = asks_for_tls(address)
    if wanted is False and tls is not None:
        raise UsageError(
            "address", f"{address!r} asks for no TLS, and there are files for it; write https://"
        )
    return TlsFiles() if wanted and tls is None else tls


def _content(field: str, path: str | PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(field, f"{path} cannot be read: {error.strerror}") from None
