"""The connection to Milvus, and what its client's failures become."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from memserve.tls.pem import PemFiles

# gRPC's own wait between two tries to connect grows to two minutes: so long after its start would a Milvus
# server that was away stay unused.
_GRPC_OPTIONS = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 1_000}
_ADDRESS = re.compile(r"(?:ipv[46]:|unix:|dns:/*|https?://)\S+|(?:\[[0-9a-fA-F:.%]+\]|[\w.-]+):\d{4,5}\b")


class MilvusFailed(Exception):
    """Milvus did not do what it was asked. The message is the client's, without addresses: tenants see it."""


@contextlib.contextmanager
def milvus_failures() -> Iterator[None]:
    """Turn what pymilvus raises into MilvusFailed. pymilvus lets gRPC's own errors through in some calls."""
    try:
        yield
    except MilvusException as error:
        raise MilvusFailed(without_addresses(error.message) or type(error).__name__) from error
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        raise MilvusFailed(without_addresses(details or "") or type(error).__name__) from error


def without_addresses(text: str) -> str:
    return _ADDRESS.sub("Milvus", text)


@dataclass(frozen=True, slots=True)
class Vectors:
    """What the rows' vectors are."""

    dim: int
    embedder: str = ""
    """The name of the model that embeds; "" for the bundled model."""


@dataclass(frozen=True, slots=True)
class MilvusAccess:
    """What a Milvus server wants to see."""

    token: str = field(default="", repr=False)
    """user:password, or a token. Empty: nothing."""
    tls: PemFiles | None = None
    """For https; read when it connects. None: gRPC's own authorities, and no certificate."""


def is_local_uri(uri: str) -> bool:
    """True for a path, which means Milvus Lite."""
    return "://" not in uri


def connect(uri: str, access: MilvusAccess, *, timeout_s: float) -> MilvusClient:
    """A connection of its own: pymilvus would share one that was made with older certificates."""
    # pymilvus logs a copy of every exception that it raises, stack trace included.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return MilvusClient(
        uri,
        token=access.token,
        timeout=timeout_s,
        dedicated=True,
        grpc_options=_GRPC_OPTIONS,
        **_tls_arguments(uri, access.tls),
    )


def _tls_arguments(uri: str, tls: PemFiles | None) -> dict[str, str]:
    if tls is None or not uri.startswith("https://"):
        return {}
    return {
        "ca_pem_path": str(tls.authorities),
        "client_pem_path": str(tls.certificate),
        "client_key_path": str(tls.key),
    }
