"""Builds the images of a Dockerfile in folders: a chroot for each RUN. Linux, as root, with debootstrap."""

from __future__ import annotations

import fnmatch
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.cluster.images.dockerfile import Copy, ImageConfig, Mount, Run, needed, stages_of
from loadtests.harness.figures import report

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
LOCKS = {"gateway": "gateway.lock", "worker-cpu": "cpu.lock"}
SUITE = "bookworm"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
MIRROR = "http://deb.debian.org/debian"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIB = 1 << 20


class ImagesError(Exception):
    """No image can be built here. The text says what is missing."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system, and what its containers get."""

    root: Path
    config: ImageConfig

    @property
    def bytes(self) -> int:
        shown = _run("du", "--summarize", "--one-file-system", "--block-size=1", str(self.root))
        return int(shown.split()[0])


@dataclass
class Builder:
    """Stages that are built once and kept below `folder`."""

    folder: Path
    keep: bool = False
    """Use a target that was built before, whatever has changed since."""
    built: dict[str, Image] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
        if os.geteuid() != 0 or missing:
            raise ImagesError(
                f"images are built here as root, with debootstrap; missing: {missing or 'root'}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def build(self, target: str) -> Image:
        """Raises ImagesError, DockerfileError and subprocess.CalledProcessError."""
        arguments = {"PIP_ARGS": "--no-index"}
        stages = stages_of(DOCKERFILE.read_text(encoding="utf-8"), arguments)
        if self.keep and (self.folder / target).exists():
            self.built[target] = Image(self.folder / target, stages[target].config)
            return self.built[target]
        if target in LOCKS:
            self.built["wheels"] = Image(self._wheels(target), ImageConfig())
        for name in needed(stages, target):
            if name in self.built:
                continue
            began_s, stage = time.monotonic(), stages[name]
            root = self.folder / name
            base = self.built.get(stage.base)
            if not stage.steps:
                # Nothing but configuration: the base's files will do.
                self.built[name] = Image(base.root if base else self._debian(), stage.config)
                continue
            report(f"building {name}")
            _remove(root)
            _run("cp", "--archive", "--reflink=auto", str(base.root if base else self._debian()), str(root))
            for step in stage.steps:
                if isinstance(step, Copy):
                    self._copy(step, root)
                else:
                    self._do(step, root, {**stage.config.environment, **stage.arguments})
            self.built[name] = Image(root, stage.config)
            self.seconds[name] = time.monotonic() - began_s
        return self.built[target]

    def debian_with(self, name: str, packages: str, config: ImageConfig) -> Image:
        """Debian with some of its packages. Stands for an image of other people."""
        root = self.folder / name
        if not (root / "etc").exists():
            report(f"building {name}")
            _run("cp", "--archive", "--reflink=auto", str(self._debian()), str(root))
            command = f"apt-get -qq update && apt-get -qq -y install --no-install-recommends {packages}"
            self._do(Run(f"export DEBIAN_FRONTEND=noninteractive; {command}", ()), root, {})
        return Image(root, config)

    def _debian(self) -> Path:
        """What the base image of the Dockerfile is made as."""
        root = self.folder / "debian"
        if not (root / "etc").exists():
            report("a clean Debian root (debootstrap)")
            aside = self.folder / "debian.new"
            _remove(aside)
            _run("debootstrap", "--variant=minbase", SUITE, str(aside), MIRROR, output=sys.stderr)
            if SOURCES.exists():
                (aside / "etc" / "apt" / "sources.list").unlink()
                shutil.copy(SOURCES, aside / "etc" / "apt" / "sources.list.d")
            for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log/bootstrap.log"):
                _remove(aside / folder)
            for folder in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
                (aside / folder).mkdir(parents=True)
            aside.rename(root)
        return root

    def _wheels(self, target: str) -> Path:
        """Every wheel of the target's locks, fetched once with this machine's pip and its index."""
        folder = self.folder / "wheels"
        locks = [ROOT / "deploy" / "locks" / name for name in ("build.lock", LOCKS[target])]
        done = folder / f".{target}"
        wanted = "".join(lock.read_text(encoding="utf-8") for lock in locks)
        if not done.exists() or done.read_text(encoding="utf-8") != wanted:
            report(f"fetching the wheels of {target}")
            pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
            _run(*pip, *(word for lock in locks for word in ("-r", str(lock))), output=sys.stderr)
            done.write_text(wanted, encoding="utf-8")
        return folder

    def _copy(self, step: Copy, root: Path) -> None:
        target = root / step.target.lstrip("/")
        for source in step.sources:
            if step.stage:
                origin = self.built[step.stage].root / source.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                _run("cp", "--archive", "--reflink=auto", "--no-target-directory", str(origin), str(target))
                continue
            for file in _context(ROOT, source):
                place = target if (ROOT / source).is_file() else target / file.relative_to(ROOT / source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)

    def _do(self, step: Run, root: Path, environment: Mapping[str, str]) -> None:
        """In the root, with nothing of this machine but its network and what the step mounts."""
        binds = [(Path("/etc/resolv.conf"), "/etc/resolv.conf"), (Path("/dev"), "/dev")]
        binds += [self._mounted(mount, number) for number, mount in enumerate(step.mounts)]
        lines = ["set -e", "mount --make-rprivate /"]
        for source, target in binds:
            place = root / target.lstrip("/")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.mkdir() if source.is_dir() else place.touch()
            lines.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(place))}")
        lines += [
            f"mount -t proc proc {root}/proc",
            f"exec chroot {root} /bin/sh -c {shlex.quote(step.command)}",
        ]
        inside = {"PATH": PATH, "HOME": "/root", **environment}
        _run(
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(lines),
            environment=inside, output=sys.stderr,
        )  # fmt: skip
        for name in ("etc/resolv.conf", "wheels", "etc/pip.conf", "src/deploy/docker"):
            _remove_if_empty(root / name, root)

    def _mounted(self, mount: Mount, number: int) -> tuple[Path, str]:
        if mount.kind == "bind" and mount.stage:
            return self.built[mount.stage].root / mount.source.lstrip("/"), mount.target
        if mount.kind == "bind":
            return ROOT / mount.source, mount.target
        empty = self.folder / "mounts" / f"{mount.kind}-{number}"
        if mount.kind == "cache":
            empty.mkdir(parents=True, exist_ok=True)
        else:
            # A build without the secret has no such file; pip takes an empty one for none.
            empty.parent.mkdir(parents=True, exist_ok=True)
            empty.touch()
        return empty, mount.target


def ignored(path: str, patterns: Iterable[str]) -> bool:
    """Whether .dockerignore leaves a path of the context out: the last pattern that matches decides."""
    out = False
    for pattern in patterns:
        if _matches(path, pattern.removeprefix("!")):
            out = not pattern.startswith("!")
    return out


def _matches(path: str, pattern: str) -> bool:
    """A pattern stands for what is below it too. `**/` is any folder, or none."""
    parts = path.split("/")
    leading = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
    return any(
        pattern.count("/") == place.count("/") and fnmatch.fnmatch(place, pattern) for place in leading
    )


def _context(context: Path, source: str) -> list[Path]:
    """The files below `source` that .dockerignore leaves in."""
    lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    files = []
    for folder, folders, names in os.walk(context / source):
        place = Path(folder).relative_to(context)
        # What is left out as a whole is not walked: caches and environments are large.
        folders[:] = [name for name in folders if not _left_out(place / name, patterns)]
        files += [Path(folder, name) for name in names if not ignored(str(place / name), patterns)]
    return files if (context / source).is_dir() else [context / source]


def _left_out(folder: Path, patterns: list[str]) -> bool:
    below = any(pattern.startswith(f"!{folder}/") for pattern in patterns)
    return ignored(str(folder), patterns) and not below


def _remove_if_empty(place: Path, root: Path) -> None:
    """What was made to mount on."""
    if place.is_file() and place.stat().st_size == 0:
        place.unlink()
    while place.is_dir() and place != root and not any(place.iterdir()):
        place.rmdir()
        place = place.parent


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _run(*command: str, environment: Mapping[str, str] | None = None, output: object = None) -> str:
    done = subprocess.run(
        command,
        check=True,
        env=environment,
        stdout=output or subprocess.PIPE,  # type: ignore[call-overload]
        encoding="utf-8",
    )
    return str(done.stdout or "")
