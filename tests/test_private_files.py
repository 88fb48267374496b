"""Secrets and folders that only their owner reads, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memserve import credentials
from memserve.config import Settings
from memserve.errors import StartupError
from memserve.private_files import keep_private, kept_secret, open_data_dir, write_private


@pytest.mark.parametrize("content", [b"", b"\n", b"a" * 31, b" " * 64])
def test_a_secret_that_is_too_short_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "salt_key"
    file.write_bytes(content)
    with pytest.raises(StartupError, match="at least 32"):
        kept_secret(file)
    with pytest.raises(StartupError, match="at least 32"):
        credentials.salt_key(Settings(data_dir=tmp_path))
    assert file.read_bytes() == content


def test_a_configured_salt_key_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="salt_key has 5 bytes"):
        credentials.salt_key(Settings(data_dir=tmp_path, salt_key="short"))
    salts = {
        credentials.salt_key(Settings(data_dir=tmp_path / name, salt_key="x" * 32)) for name in ("a", "b")
    }
    assert len(salts) == 1 and not (tmp_path / "a").exists()


def test_what_a_file_has_already_is_not_written_again_so_that_a_full_disk_keeps_nothing_from_starting(
    tmp_path: Path,
) -> None:
    file = tmp_path / "gateway.json"
    keep_private(file, b"settings")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file takes a byte
    try:
        keep_private(file, b"settings")
        with pytest.raises(OSError, match="large"):
            keep_private(file, b"others")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == b"settings"


def test_many_that_start_at_once_get_the_same_secret(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as threads:
            secrets = list(
                threads.map(lambda _, file=tmp_path / f"secret-{number}": kept_secret(file), range(8))
            )
        assert len(set(secrets)) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        f"secret-{number}" for number in range(20)
    ), "nothing is left aside"


def test_a_kill_at_any_moment_leaves_no_half_of_a_secret(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from memserve import private_files
at = int(sys.argv[2])
calls = 0
for name in ("open", "fsync", "link", "fdopen", "unlink"):
    real = getattr(os, name)
    def counted(*args, real=real, **options):
        global calls
        calls += 1
        if calls == at:
            os._exit(9)
        return real(*args, **options)
    setattr(private_files.os, name, counted)
private_files.kept_secret(Path(sys.argv[1]))
"""
    killed = 0
    for at in range(1, 12):
        file = tmp_path / str(at) / "salt_key"
        file.parent.mkdir()
        killed += (
            subprocess.run([sys.executable, "-c", script, str(file), str(at)], check=False).returncode == 9
        )
        assert not file.exists() or len(file.read_bytes()) >= 32
        assert len(kept_secret(file)) >= 32
    assert killed >= 4


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    write_private(file, b"old")
    assert file.stat().st_mode & 0o777 == 0o600

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_the_rights_of_a_data_directory_are_mended(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "modules" / "a").mkdir(parents=True)
    (folder / "modules" / "a" / "weights").write_text("x", encoding="utf-8")
    (folder / "tool").write_text("x", encoding="utf-8")
    (tmp_path / "outside").write_text("x", encoding="utf-8")
    (folder / "link").symlink_to(tmp_path / "outside")
    for path in (folder, folder / "modules", folder / "modules" / "a", folder / "tool"):
        path.chmod(0o777)
    (folder / "modules" / "a" / "weights").chmod(0o644)
    (tmp_path / "outside").chmod(0o644)
    open_data_dir(folder)
    assert [
        path for path in (folder, *folder.rglob("*")) if not path.is_symlink() and path.stat().st_mode & 0o077
    ] == []
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o644


def test_a_volume_of_roots_that_everybody_may_write_is_a_data_directory() -> None:
    """Kubernetes mounts its volumes so. pytest's own folders cannot be entered by another user."""
    if os.geteuid() != 0:
        return
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        os.seteuid(12345)
        with pytest.raises(StartupError, match="belongs to user 0"):
            open_data_dir(folder)
        for mode, refused in ((0o1777, True), (0o777, False)):
            os.seteuid(0)
            folder.chmod(mode)
            os.seteuid(12345)
            with pytest.raises(StartupError) if refused else contextlib.nullcontext():
                open_data_dir(folder)
        (folder / "keys.json").touch(mode=0o644)
        open_data_dir(folder)
        assert (folder / "keys.json").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o777
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


AS_ANOTHER_USER = """
import os
from pathlib import Path
from memserve.private_files import open_data_dir
if os.geteuid() == 0:
    for name in (".", "models/own"):
        os.chown(name, 12345, 12345)
    os.seteuid(12345)
open_data_dir(Path("."))
"""


def test_a_volume_of_roots_in_a_data_directory_keeps_its_rights(tmp_path: Path) -> None:
    """Kubernetes mounts a volume below data_dir as root's, which memserve's user may write but not change."""
    models = tmp_path / "data" / "models"
    (models / "own").mkdir(parents=True)
    models.chmod(0o777)
    (models / "own").chmod(0o755)
    ran = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER],
        cwd=models.parent, capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (models / "own").stat().st_mode & 0o777 == 0o700
    assert models.stat().st_mode & 0o777 == (0o777 if os.geteuid() == 0 else 0o700)


def test_what_is_no_directory_of_ours_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StartupError, match="is a file"):
        open_data_dir(tmp_path / "file")
    with pytest.raises(StartupError, match="data_dir"):
        open_data_dir(tmp_path / "file" / "below")
    if os.geteuid() == 0:
        folder = tmp_path / "foreign"
        folder.mkdir()
        os.chown(folder, 12345, 12345)
        with pytest.raises(StartupError, match="belongs to user 12345"):
            open_data_dir(folder)
