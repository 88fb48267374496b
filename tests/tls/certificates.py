"""Certificates of `memserve certs`, and what is done to them."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.client import TlsFiles
from memserve.tls.live import LiveTls
from memserve.tls.pem import PemFiles
from memserve.tls.trial import make, renew

EXPIRED_DAYS = 10


@dataclass(frozen=True)
class Trial:
    """A folder of `memserve certs init`."""

    folder: Path

    def files(self, part: str, *, mutual: bool = True) -> PemFiles:
        place = self.folder / part
        return PemFiles(place / "tls.crt", place / "tls.key", place / "ca.crt" if mutual else None)

    def live(self, part: str, *, mutual: bool = True) -> LiveTls:
        """At a time at which every certificate here was good."""
        then = datetime.datetime.now().timestamp() - (EXPIRED_DAYS + 2) * 86_400
        return LiveTls(
            "public" if part == "public" else "internal", self.files(part, mutual=mutual), lambda: then
        )

    def client(self, part: str = "client") -> TlsFiles:
        place = self.folder / part
        return TlsFiles(place / "ca.crt", place / "tls.crt", place / "tls.key")

    def context(self, part: str = "client") -> ssl.SSLContext:
        """Of a client."""
        files = self.client(part)
        assert files.ca is not None and files.certificate is not None
        context = ssl.create_default_context(cafile=files.ca)
        context.load_cert_chain(files.certificate, files.key)
        return context

    def renew(self) -> None:
        renew(self.folder, (), 30, datetime.datetime.now(datetime.UTC))

    def become(self, other: Trial) -> None:
        """Every file gets the other's content, in place."""
        for file in other.folder.rglob("*.*"):
            (self.folder / file.relative_to(other.folder)).write_bytes(file.read_bytes())


def new_trial(folder: Path, hosts: Sequence[str] = ()) -> Trial:
    make(folder, hosts, 30, datetime.datetime.now(datetime.UTC))
    return Trial(folder)


def expired_trial(folder: Path) -> Trial:
    """Certificates that expired yesterday, of authorities that are good."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=EXPIRED_DAYS)
    make(folder, (), EXPIRED_DAYS - 1, then)
    return Trial(folder)


def expired_of(trial: Trial, folder: Path) -> Trial:
    """The same authorities, with certificates that expired yesterday."""
    make(folder, (), 1, datetime.datetime.now(datetime.UTC))
    expired = Trial(folder)
    expired.become(trial)
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=EXPIRED_DAYS)
    renew(folder, (), EXPIRED_DAYS - 1, then)
    return expired
