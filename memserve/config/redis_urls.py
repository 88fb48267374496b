"""Redis URLs with the certificates that they leave open."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlencode


def with_certificates(url: str, authorities: Path | None, certificate: Path | None, key: Path | None) -> str:
    """The URL with the internal files in the parameters of TLS that it does not give itself.

    A URL without TLS stays as it is.
    """
    if not url.startswith("rediss"):
        return url
    given = {name for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True)}
    added: dict[str, str] = {}
    if authorities is not None and not given & {"ssl_ca_certs", "ssl_ca_path"}:
        added["ssl_ca_certs"] = str(authorities)
    if certificate is not None and key is not None and not given & {"ssl_certfile", "ssl_keyfile"}:
        added |= {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    if not added:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(added)}"
