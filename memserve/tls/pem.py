"""A certificate, its key and the authorities of the other side, in files: read whole, and held against each
other.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from memserve.errors import StartupError

GATEWAY_NAME = "memserve-gateway"
"""The DNS name by which a worker knows a gateway's certificate."""
WORKER_NAME = "memserve-worker"
"""The DNS name by which a gateway knows a worker's certificate, whatever address it dials."""


class UnfitCertificate(StartupError):
    """Files of a certificate cannot be read, are half written, or do not belong together."""


@dataclass(frozen=True, slots=True)
class PemFiles:
    """Where the parts are. They are PEM."""

    certificate: Path
    """The chain, its own certificate first."""
    key: Path
    authorities: Path | None = None
    """That the other side's certificate must come from. None: the other side needs none."""

    def signature(self) -> tuple[object, ...]:
        """Differs from an earlier one when a file has changed. A file that cannot be looked at counts as one
        that has changed to nothing.
        """
        return tuple(_mark(path) for path in (self.certificate, self.key, self.authorities))


@dataclass(frozen=True, slots=True)
class Pem:
    """Parts that fit each other. Its repr shows no key."""

    chain: bytes
    key: bytes = field(repr=False)
    authorities: bytes | None
    names: frozenset[str]
    """The certificate's DNS names."""
    expires_s: float
    """When the first certificate of the chain expires, in seconds of unix time."""
    authorities_expire_s: float | None
    """The same, of the authorities."""


def read_pem(files: PemFiles, now_s: float) -> Pem:
    """Read the files and hold them against each other.

    now_s: unix time; a certificate that has expired by then does not fit.
    Raises UnfitCertificate that names the file.
    """
    chain, key = _content(files.certificate), _content(files.key)
    certificates = _certificates(files.certificate, chain)
    own = certificates[0]
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError) as error:
        raise UnfitCertificate(f"{files.key} holds no key in PEM without a password ({error})") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public.public_bytes(*form) != own.public_key().public_bytes(*form):
        raise UnfitCertificate(f"the key {files.key} does not belong to the certificate {files.certificate}")
    expires_s = min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
    if expires_s <= now_s:
        raise UnfitCertificate(f"{files.certificate} has expired on {_day(certificates)}; renew it")
    authorities, authorities_expire_s = None, None
    if files.authorities is not None:
        authorities = _content(files.authorities)
        known = _certificates(files.authorities, authorities)
        authorities_expire_s = min(certificate.not_valid_after_utc.timestamp() for certificate in known)
    pem = Pem(chain, key, authorities, _names(own), expires_s, authorities_expire_s)
    try:
        load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem)
    except (ssl.SSLError, ValueError) as error:
        raise UnfitCertificate(f"OpenSSL does not take {files.certificate} ({error})") from None
    return pem


def load_into(context: ssl.SSLContext, pem: Pem) -> None:
    """Have the context show the certificate and, where there are authorities, ask the other side for one."""
    # OpenSSL reads certificates and keys from files only. These have no name, and are gone when closed.
    chain, key = _unnamed_file(pem.chain), _unnamed_file(pem.key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{chain}", f"/proc/self/fd/{key}", password=lambda: b"")
    finally:
        os.close(chain)
        os.close(key)
    if pem.authorities is not None:
        context.load_verify_locations(cadata=pem.authorities.decode("ascii", "replace"))
        context.verify_mode = ssl.CERT_REQUIRED


def _mark(path: Path | None) -> object:
    if path is None:
        return None
    try:
        seen = path.stat()
    except OSError as error:
        return error.errno
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnfitCertificate(f"{path} cannot be read: {error.strerror}") from None


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    if content.count(b"-----BEGIN") != content.count(b"-----END"):
        raise UnfitCertificate(f"{path} ends within a certificate")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise UnfitCertificate(f"{path} holds no certificates in PEM ({error})") from None


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(extension.value.get_values_for_type(x509.DNSName))


def _day(certificates: list[x509.Certificate]) -> str:
    return f"{min(certificate.not_valid_after_utc for certificate in certificates):%Y-%m-%d %H:%M} UTC"


def _unnamed_file(content: bytes) -> int:
    descriptor = os.memfd_create("memserve-tls", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
