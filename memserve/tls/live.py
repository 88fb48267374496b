"""A certificate that follows its files: what is served is the newest that fits.

Nothing is restarted. Connections that are open stay as they are, and new ones get the new certificate.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.tls.pem import Pem, PemFiles, UnfitCertificate, load_into, read_pem

log = logging.getLogger("memserve.tls.live")

PUBLIC, INTERNAL = "public", "internal"
LOOK_S = 1.0
"""How often a process looks at its files."""
Now = Callable[[], float]


class LiveTls:
    """The newest certificate of some files. `look` is called from one thread; the rest is thread-safe."""

    def __init__(self, name: str, files: PemFiles, now: Now = time.time) -> None:
        """name: PUBLIC or INTERNAL. Raises UnfitCertificate."""
        self.name = name
        self.files = files
        self._failures = 0
        self._now = now
        # Before the reading: what changes meanwhile is read once more.
        self._signature = files.signature()
        self._refused: tuple[object, ...] | None = None
        self.current: Pem = read_pem(files, now())

    def look(self) -> bool:
        """Read the files again if they have changed. Returns whether there is another certificate now.

        Files that do not fit are looked at again the next time. The first look at them is logged and counted.
        """
        signature = self.files.signature()
        if signature == self._signature:
            return False
        try:
            pem = read_pem(self.files, self._now())
        except UnfitCertificate as error:
            if signature != self._refused:
                self._refused = signature
                self._failures += 1
                log.error("the %s certificate stays as it was: %s", self.name, error)
            return False
        self._signature, self._refused = signature, None
        if pem == self.current:
            return False
        self.current = pem
        log.info("the %s certificate was read again; it expires at unix time %d", self.name, pem.expires_s)
        return True

    def take_failures(self) -> int:
        """Changes of the files that were not taken over since the last call."""
        failures, self._failures = self._failures, 0
        return failures


class LiveContext:
    """TLS contexts of a server on the standard library, of the newest certificate."""

    def __init__(self, live: LiveTls) -> None:
        self._live = live
        self._pem = live.current
        self._newest = server_context(live.current)
        self.listening = server_context(live.current)
        """For a listener that keeps one context. Each connection is given the newest one at its handshake."""
        self.listening.sni_callback = self._give_newest

    def newest(self) -> ssl.SSLContext:
        """Of the newest certificate."""
        if (pem := self._live.current) is not self._pem:
            self._newest, self._pem = server_context(pem), pem
        return self._newest

    def _give_newest(self, connection: Any, server_name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL calls this in every handshake, with or without a name. The authorities that a client is
        held against are the new context's too.
        """
        connection.context = self.newest()


def server_context(pem: Pem) -> ssl.SSLContext:
    """TLS 1.2 or later, HTTP/1.1. A client needs a certificate where there are authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A session that is taken up again would not be held against new authorities.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    load_into(context, pem)
    return context


def public_tls(settings: Settings) -> LiveTls | None:
    """What clients see on the gateway's ports. None: no TLS. Raises StartupError."""
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if certificate is None and key is None:
        if settings.tls_client_ca_file is not None:
            raise StartupError("setting tls_client_ca_file needs tls_cert_file and tls_key_file too")
        return None
    if certificate is None or key is None:
        raise StartupError("settings tls_cert_file and tls_key_file are set together, or neither is")
    return _opened(PUBLIC, PemFiles(certificate, key, settings.tls_client_ca_file))


def internal_tls(settings: Settings, name: str = "") -> LiveTls | None:
    """What gateways and workers see of each other. None: no TLS between them.

    name: that the own certificate must carry, since the other side looks for it.
    Raises StartupError.
    """
    certificate, key = settings.internal_tls_cert_file, settings.internal_tls_key_file
    authorities = settings.internal_tls_ca_file
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None or key is None or authorities is None:
        raise StartupError(
            "settings internal_tls_ca_file, internal_tls_cert_file and internal_tls_key_file are set "
            "together, or none is"
        )
    live = _opened(INTERNAL, PemFiles(certificate, key, authorities))
    if name and name not in live.current.names:
        carried = ", ".join(sorted(live.current.names)) or "no DNS name"
        raise StartupError(
            f"internal_tls_cert_file {certificate} carries {carried}, and it needs the DNS name {name}; "
            "`memserve certs init` makes one that does"
        )
    return live


def _opened(name: str, files: PemFiles) -> LiveTls:
    try:
        return LiveTls(name, files)
    except UnfitCertificate as error:
        raise StartupError(f"the {name} certificate: {error}") from None
