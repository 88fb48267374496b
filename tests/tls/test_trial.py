"""`memserve certs`: what is made, that nothing is overwritten, and that renewing keeps the authorities."""

from __future__ import annotations

import datetime
import stat
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memserve.cli.app import app
from memserve.errors import StartupError
from memserve.tls.pem import GATEWAY_NAME, WORKER_NAME, PemFiles, read_pem
from memserve.tls.trial import certificates, make, renew, settings_of

NOW = datetime.datetime.now(datetime.UTC)


def files(folder: Path, part: str) -> PemFiles:
    return PemFiles(folder / part / "tls.crt", folder / part / "tls.key", folder / part / "ca.crt")


def test_every_part_has_a_certificate_with_its_names_and_keys_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    make(folder, ["gateway.example.org", "10.1.2.3", "*.example.org"], 30, NOW)
    for part, (_, names) in certificates(["gateway.example.org", "*.example.org"]).items():
        pem = read_pem(files(folder, part), time.time())
        assert pem.names == {name for name in names if not name[0].isdigit() and ":" not in name}
    assert read_pem(files(folder, "internal-up"), time.time()).names == {GATEWAY_NAME, WORKER_NAME}
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "certs", [], 30, NOW)
    before = {path: path.read_bytes() for path in (tmp_path / "certs").rglob("*.*")}
    with pytest.raises(StartupError, match="nothing is overwritten"):
        make(tmp_path / "certs", [], 30, NOW)
    assert {path: path.read_bytes() for path in before} == before


def test_renewed_certificates_come_from_the_same_authorities(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    make(folder, [], 1, NOW)
    before = {part: read_pem(files(folder, part), time.time()) for part in certificates([])}
    renew(folder, ["other.example.org"], 60, NOW)
    for part, pem in before.items():
        renewed = read_pem(files(folder, part), time.time())
        assert renewed.authorities == pem.authorities
        assert renewed.chain != pem.chain and renewed.expires_s > pem.expires_s
    assert "other.example.org" in read_pem(files(folder, "public"), time.time()).names
    with pytest.raises(StartupError, match="memserve certs init"):
        renew(tmp_path / "none", [], 60, NOW)
    (folder / "authority" / "public.key").write_bytes(b"no key")
    with pytest.raises(StartupError, match="holds no authority"):
        renew(folder, [], 60, NOW)


def test_the_command_says_what_to_set_and_every_file_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    ended = CliRunner().invoke(app, ["certs", "init", "--folder", str(folder)])
    assert ended.exit_code == 0
    for _, variables in settings_of(folder):
        for name, value in variables.items():
            assert f"export {name}={value}" in ended.output
            assert Path(value).is_file()
