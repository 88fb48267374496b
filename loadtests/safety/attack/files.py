"""Secrets and files: an empty salt key, rights, Ray's directory, a second fleet on the same data."""

from __future__ import annotations

import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loadtests.harness.second_gateway import second_gateway
from loadtests.safety.attack.world import Attack, World, run_memserve
from memserve.config import child_environment
from memserve.private_files import kept_secret


def empty_salt_key(world: World) -> tuple[str, bool]:
    refused = []
    for number, content in enumerate((b"", b"\n", b"short", b"x" * 31)):
        data = world.folder / f"salt-{number}"
        data.mkdir()
        (data / "salt_key").write_bytes(content)
        try:
            with second_gateway(
                world.settings,
                data,
                api_keys_file=world.keys_file,
                salt_key=type(world.settings.salt_key)(""),
            ):
                refused.append(False)
        except RuntimeError as error:
            refused.append("at least 32" in str(error))
    return f"{sum(refused)} of {len(refused)} gateways with an empty or short salt_key refuse to start", all(
        refused
    )


def two_at_once(world: World) -> tuple[str, bool]:
    different = 0
    for number in range(50):
        file = world.folder / f"race-{number}" / "salt_key"
        with ThreadPoolExecutor(8) as threads:
            different += len(set(threads.map(lambda _, file=file: kept_secret(file), range(8)))) - 1
    return f"50 × 8 that start at once: {different} other secrets", not different


def rights(world: World) -> tuple[str, bool]:
    data = world.settings.data
    ray = next((data / "ray").iterdir()).resolve()
    paths = [data, *data.rglob("*"), ray.parent]
    wrong = [path for path in paths if not path.is_symlink() and _mode(path) & 0o077]
    predictable = Path(tempfile.gettempdir(), "memserve-attacked")
    said = (
        f"{len(paths)} files and folders: {len(wrong)} readable by others; Ray's parent "
        f"{oct(_mode(ray.parent))}"
    )
    return said + "".join(f"; {path.name}" for path in wrong[:3]), not wrong and _mode(
        ray.parent
    ) == 0o700 and not predictable.exists()


def rights_are_mended(world: World) -> tuple[str, bool]:
    data = world.folder / "open"
    (data / "modules").mkdir(parents=True)
    (data / "modules" / "x").write_text("a memory", encoding="utf-8")
    for path in (data / "modules" / "x", data / "modules", data):
        path.chmod(0o777)
    with second_gateway(world.settings, data, api_keys_file=world.keys_file):
        wrong = [path for path in (data, *data.rglob("*")) if not path.is_symlink() and _mode(path) & 0o077]
    return f"a 0777 data_dir after a start: {len(wrong)} still open", not wrong


def second_fleet(world: World) -> tuple[str, bool]:
    ray = next((world.settings.data / "ray").iterdir()).resolve()
    environment = child_environment(world.settings, world.folder / "fleet.json")
    result = run_memserve(["workers"], environment)
    with world.client() as client:
        answer = client.generate("Hello.").text
    refused = result.returncode != 0 and "another memserve runs" in result.stderr
    held = refused and ray.is_dir() and bool(answer)
    return (
        f"`memserve workers` on the same data: {'refused' if refused else 'started'}; "
        f"Ray's directory {'is there' if ray.is_dir() else 'gone'}",
        held,
    )


def foreign_directory(world: World) -> tuple[str, bool]:
    if os.geteuid() != 0:
        return "not tried: only root can make another user's directory", True
    data = world.folder / "foreign"
    data.mkdir()
    os.chown(data, 12345, 12345)
    try:
        with second_gateway(world.settings, data, api_keys_file=world.keys_file):
            return "a gateway uses a directory that another user owns", False
    except (RuntimeError, PermissionError) as error:
        return f"refused: {str(error)[:80]}", "belongs to user" in str(error)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return 0


ATTACKS = (
    Attack("4", "start on an empty or cut-off salt_key", empty_salt_key, slow=True),
    Attack("4", "start eight at once without a salt_key", two_at_once),
    Attack("5", "read the data directory as another user", rights),
    Attack("5", "start on a data directory with open rights", rights_are_mended, slow=True),
    Attack("5", "start on a directory that another user owns", foreign_directory, slow=True),
    Attack("5", "a second `memserve workers` on the same data", second_fleet),
)
