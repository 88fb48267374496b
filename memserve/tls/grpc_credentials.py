"""gRPC's credentials of a certificate that follows its files, and a peer's names."""

from __future__ import annotations

from typing import Any

import grpc

from memserve.tls.live import LiveTls
from memserve.tls.pem import WORKER_NAME, Pem

# gRPC holds a server's certificate against this name in the place of the address.
WORKER_OPTIONS = (("grpc.ssl_target_name_override", WORKER_NAME),)


def server_credentials(live: LiveTls) -> grpc.ServerCredentials:
    """Every handshake gets the newest certificate. A client needs one where there are authorities."""
    given = live.current

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if (pem := live.current) is given:
            return None
        given = pem
        return _configuration(pem)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        newest,  # type: ignore[arg-type]  # the stubs leave out None: nothing new
        require_client_authentication=given.authorities is not None,
    )


def channel_credentials(pem: Pem) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=pem.authorities, private_key=pem.key, certificate_chain=pem.chain
    )


def add_port(server: grpc.aio.Server, address: str, live: LiveTls | None) -> int:
    """Listen, with TLS where there is a certificate. Returns the port. Raises RuntimeError."""
    if live is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, server_credentials(live))


def peer_names(context: Any) -> frozenset[str]:
    """The DNS names and addresses of the certificate that a call's client has shown."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return frozenset(name.decode("utf-8", "replace") for name in names)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.authorities)
