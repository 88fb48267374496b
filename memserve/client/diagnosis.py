"""Why nobody answers at an address. A handshake by the standard library says what gRPC's does not."""

from __future__ import annotations

import socket
import ssl

from memserve.channels import GRPC_NAMES, target_of
from memserve.client.endpoint import TlsFiles, tls_of

TRY_S = 3.0
# OpenSSL's numbers of what is wrong with a certificate.
_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = (62, 63, 64)
_CA = "--tls-ca or MEMSERVE_TLS_CA_FILE, in Python TlsFiles(ca=…)"
_OWN = (
    "--tls-cert and --tls-key, or MEMSERVE_TLS_CLIENT_CERT_FILE and MEMSERVE_TLS_CLIENT_KEY_FILE, in Python "
    "TlsFiles(certificate=…, key=…)"
)


def why_unreachable(address: str, tls: TlsFiles | None = None) -> str:
    """What keeps a client from a gateway, and what to do. For a call that ended with UNAVAILABLE. Blocks.

    Empty where a connection is made: then something else was the cause.
    Raises UsageError as a client does.
    """
    target, tls = target_of(address), tls_of(address, tls)
    nobody = f"no gateway answers at {address}"
    if target.startswith(GRPC_NAMES):
        return nobody
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TRY_S) as connection:
            if tls is None:
                return _why_not_without(connection, address)
            return _why_not_with(connection, host.strip("[]"), address, tls)
    except OSError:
        return nobody


def _why_not_without(connection: socket.socket, address: str) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            pass
    except OSError:
        return ""
    return (
        f"the gateway at {address} speaks TLS: name the authority of its certificate ({_CA}), or write "
        "https:// before the address where it is a public one"
    )


def _why_not_with(connection: socket.socket, host: str, address: str, tls: TlsFiles) -> str:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        return f"the TLS files do not fit each other: {error}"
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            # With TLS 1.3 a server refuses a client's certificate after the client's handshake has ended.
            return "" if secured.recv(1) else _refused(address, tls)
    except ssl.SSLCertVerificationError as error:
        return _unfit(error, host, address)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return f"the gateway at {address} speaks no TLS: leave https:// and the TLS files out"
        return f"{_refused(address, tls)} ({error.reason or error})"
    except ConnectionError:
        return _refused(address, tls)


def _unfit(error: ssl.SSLCertVerificationError, host: str, address: str) -> str:
    """The server's certificate is not accepted."""
    what = f"the certificate of the gateway at {address}"
    if error.verify_code in (_EXPIRED, _NOT_YET):
        state = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        return f"{what} {state}; have it renewed, and look at this machine's clock"
    if error.verify_code in _OTHER_NAME:
        return f"{what} is for other names than {host}; write the address as one of those that it carries"
    return f"{what} comes from an authority that is not trusted here; name the right one: {_CA}"


def _refused(address: str, tls: TlsFiles) -> str:
    if tls.certificate is None:
        return f"the gateway at {address} wants a client's certificate: {_OWN}"
    return (
        f"the gateway at {address} does not accept this client's certificate: it has expired, or another "
        f"authority has signed it; give one of the gateway's tls_client_ca_file: {_OWN}"
    )
