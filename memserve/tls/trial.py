"""The folder of `memserve certs`: two private authorities, and a certificate for each part of a trial.

Each part has a folder with `ca.crt`, `tls.crt` and `tls.key`: the names that Kubernetes gives the files of a
TLS Secret.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from memserve.errors import StartupError
from memserve.private_files import write_private
from memserve.tls.authority import Signed, new_authority, signed_by
from memserve.tls.pem import GATEWAY_NAME, WORKER_NAME

LOCAL = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650
# Two authorities: what comes from a client must not open a worker, Redis or Milvus.
PUBLIC, INTERNAL = "public", "internal"
_HOST = re.compile(r"\*?[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\]")


def certificates(hosts: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By folder: the authority, and the names and addresses that the certificate carries.

    hosts: of the gateway as clients name it, and of Redis and Milvus as memserve names them.
    """
    everywhere = tuple(dict.fromkeys((*hosts, *LOCAL)))
    return {
        "public": (PUBLIC, everywhere),
        "client": (PUBLIC, ("memserve-client",)),
        "internal-gateway": (INTERNAL, (GATEWAY_NAME,)),
        "internal-worker": (INTERNAL, (WORKER_NAME,)),
        # `memserve up` runs gateway and workers with the same settings.
        "internal-up": (INTERNAL, (GATEWAY_NAME, WORKER_NAME)),
        "redis": (INTERNAL, ("redis", *everywhere)),
        "milvus": (INTERNAL, ("milvus", *everywhere)),
    }


def make(folder: Path, hosts: Sequence[str], days: int, now: datetime.datetime) -> None:
    """Make authorities and certificates in a new or empty folder. Raises StartupError, and OSError."""
    _check(hosts)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StartupError(
            f"{folder} is there already, and nothing is overwritten; name a new --folder, or renew what it "
            "has with `memserve certs renew`"
        )
    until = now + datetime.timedelta(days=max(days, AUTHORITY_DAYS))
    authorities = {
        name: new_authority(f"memserve {name} authority", until, now) for name in (PUBLIC, INTERNAL)
    }
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "authority").mkdir(mode=0o700)
    for name, authority in authorities.items():
        write_private(folder / "authority" / f"{name}.key", authority.key)
        write_private(folder / "authority" / f"{name}.crt", authority.certificate)
    _write(folder, authorities, hosts, days, now)


def renew(folder: Path, hosts: Sequence[str], days: int, now: datetime.datetime) -> None:
    """New certificates of the authorities that the folder has. Raises StartupError, and OSError."""
    _check(hosts)
    authorities = {}
    for name in (PUBLIC, INTERNAL):
        try:
            parts = [(folder / "authority" / f"{name}.{part}").read_bytes() for part in ("crt", "key")]
        except OSError as error:
            raise StartupError(
                f"{error.filename}: {error.strerror}; `memserve certs init` makes the authorities"
            ) from None
        authorities[name] = Signed(*parts)
    try:
        _write(folder, authorities, hosts, days, now)
    except ValueError as error:
        raise StartupError(
            f"{folder / 'authority'} holds no authority of `memserve certs`: {error}"
        ) from None


def settings_of(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """For whom, and the environment variables to set there."""
    public, client = folder / "public", folder / "client"
    yield (
        "gateways",
        {
            "MEMSERVE_TLS_CERT_FILE": str(public / "tls.crt"),
            "MEMSERVE_TLS_KEY_FILE": str(public / "tls.key"),
            "MEMSERVE_TLS_CLIENT_CA_FILE": str(public / "ca.crt"),
        },
    )
    for who, part in (
        ("gateways, to workers, Redis and Milvus", "internal-gateway"),
        ("workers", "internal-worker"),
        ("`memserve up`, in the place of the two above", "internal-up"),
    ):
        files = {"CA_FILE": "ca.crt", "CERT_FILE": "tls.crt", "KEY_FILE": "tls.key"}
        yield (
            who,
            {f"MEMSERVE_INTERNAL_TLS_{name}": str(folder / part / file) for name, file in files.items()},
        )
    yield (
        "clients",
        {
            "MEMSERVE_TLS_CA_FILE": str(client / "ca.crt"),
            "MEMSERVE_TLS_CLIENT_CERT_FILE": str(client / "tls.crt"),
            "MEMSERVE_TLS_CLIENT_KEY_FILE": str(client / "tls.key"),
        },
    )


def _check(hosts: Sequence[str]) -> None:
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise StartupError(f"--host {host!r} is no DNS name and no address; leave scheme and port out")


def _write(
    folder: Path, authorities: dict[str, Signed], hosts: Sequence[str], days: int, now: datetime.datetime
) -> None:
    until = now + datetime.timedelta(days=days)
    for part, (authority, names) in certificates(hosts).items():
        signed = signed_by(authorities[authority], names, until, now)
        (folder / part).mkdir(mode=0o700, exist_ok=True)
        write_private(folder / part / "tls.key", signed.key)
        write_private(folder / part / "tls.crt", signed.certificate)
        write_private(folder / part / "ca.crt", authorities[authority].certificate)
