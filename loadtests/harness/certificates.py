"""Certificates of `memserve certs`, and what is done to them."""

from __future__ import annotations

import datetime
import shutil
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
    hosts: tuple[str, ...] = ()

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

    def copy(self, folder: Path) -> Trial:
        shutil.copytree(self.folder, folder)
        return Trial(folder, self.hosts)

    def renew(self) -> None:
        renew(self.folder, self.hosts, 30, datetime.datetime.now(datetime.UTC))

    def become(self, other: Trial) -> None:
        """Every file gets the other's content, in place."""
        for file in other.folder.rglob("*.*"):
            (self.folder / file.relative_to(other.folder)).write_bytes(file.read_bytes())


def new_trial(folder: Path, hosts: Sequence[str] = ()) -> Trial:
    make(folder, hosts, 30, datetime.datetime.now(datetime.UTC))
    return Trial(folder, tuple(hosts))


def expired_trial(folder: Path) -> Trial:
    """Certificates that expired yesterday, of authorities that are good."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=EXPIRED_DAYS)
    make(folder, (), EXPIRED_DAYS - 1, then)
    return Trial(folder)


def trusting_both(one: Trial, other: Trial, folder: Path) -> Trial:
    """The first one's certificates, and both authorities: the step between two authorities."""
    both_trusted = one.copy(folder)
    for file in folder.glob("*/ca.crt"):
        both = [trial.folder / file.relative_to(folder) for trial in (one, other)]
        file.write_bytes(b"".join(each.read_bytes() for each in both))
    return both_trusted


def expired_of(trial: Trial, folder: Path) -> Trial:
    """The same authorities, with certificates that expired yesterday."""
    expired = new_trial(folder, trial.hosts)
    expired.become(trial)
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=EXPIRED_DAYS)
    renew(folder, trial.hosts, EXPIRED_DAYS - 1, then)
    return expired
