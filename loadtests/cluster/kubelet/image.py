"""What stands for a container's image here: this machine's programs, this tree, and its environment."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.cluster.kubelet.volumes import Mount

TREE = Path(__file__).parents[3]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
_SYSTEM_FILES = (
    "alternatives",
    "ssl",
    "ca-certificates.conf",
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "mime.types",
)
_PACKAGES = Path(sys.prefix).resolve()
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
SHARED_MEMORY_BYTES = 64 << 20
"""Of /dev/shm where no volume is mounted there, as container runtimes have it."""


@dataclass(frozen=True)
class Image:
    """An image. Its files are this machine's, read-only."""

    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    user: int = 0
    group: int = 0
    home: str = "/"


def this_tree(environment: Mapping[str, str], *, user: int, home: str = "/") -> Image:
    """The image of memserve: this tree's package on this interpreter's packages.

    environment: what its Dockerfile sets.
    """
    own = {
        "PATH": f"/opt/kubelet/bin:{_PACKAGES / 'bin'}:{_PATH}",
        "PYTHONPATH": "/opt/kubelet/tree",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Image({**own, **environment}, user=user, group=user, home=home)


@dataclass(frozen=True)
class Root:
    """The root file system and the rights of one run of a container."""

    folder: Path
    """An empty folder of this machine, which the root is mounted on."""
    hosts: Path
    hostname: str
    mounts: tuple[Mount, ...]
    image: Image
    read_only: bool
    user: int
    group: int
    groups: tuple[int, ...]
    capabilities: tuple[str, ...] | None
    """Those that are left, in lower case. None: a container runtime's own set."""
    new_privileges: bool


# What containerd leaves a container.
_USUAL = (
    "chown", "dac_override", "fsetid", "fowner", "mknod", "net_raw", "setgid", "setuid", "setfcap", "setpcap",
    "net_bind_service", "sys_chroot", "kill", "audit_write",
)  # fmt: skip


def rights(root: Root) -> list[str]:
    """A command line in front of the container's, which takes rights away."""
    left = _USUAL if root.capabilities is None else root.capabilities
    bounding = ",".join(["-all", *(f"+{name}" for name in left)])
    inherited = "-all" if root.user else bounding
    groups = ["--groups", ",".join(map(str, root.groups))] if root.groups else ["--clear-groups"]
    return [
        "setpriv",
        *([] if root.new_privileges else ["--no-new-privs"]),
        f"--reuid={root.user}",
        f"--regid={root.group}",
        *groups,
        f"--inh-caps={inherited}",
        f"--bounding-set={bounding}",
    ]


def root_script(root: Root, command: list[str], working_directory: str, marker: Path) -> str:
    """A shell script for a mount namespace of its own: makes the root, enters it, and becomes the command.

    marker: a file that is no longer empty once the root is made.
    """
    place = shlex.quote(str(root.folder))
    lines = [
        "set -eu",
        f"exec 3>{shlex.quote(str(marker))}",
        "mount -t tmpfs -o mode=755 tmpfs " + place,
        "cd " + place,
        "mkdir -p proc dev sys etc tmp run var/tmp root opt/kubelet/bin opt/kubelet/tree/memserve old",
        "mkdir -p opt/kubelet/tree/loadtests",
        *_system_lines(),
        *_file_lines(root),
        "mount -t tmpfs -o mode=755 tmpfs dev",
        *[f"touch dev/{name}; mount --bind /dev/{name} dev/{name}" for name in _DEVICES],
        "ln -s /proc/self/fd dev/fd",
        "mkdir dev/shm",
        f"mount -t tmpfs -o mode=1777,size={SHARED_MEMORY_BYTES} tmpfs dev/shm",
        "chmod 1777 tmp var/tmp",
        *[line for mount in root.mounts for line in _bound(mount.source, mount.path, mount.read_only)],
        # Last: these may lie below a folder that a volume is mounted on.
        *[line for path in _packages() for line in _bound(path, str(path), True)],
        *_bound(TREE / "memserve", "/opt/kubelet/tree/memserve", True),
        *_bound(TREE / "loadtests", "/opt/kubelet/tree/loadtests", True),
        "pivot_root . old",
        "mount -t proc proc /proc",
        "mount --rbind /old/sys /sys",
        "umount --lazy /old",
        *(["mount -o remount,ro /", "mount -o remount,ro /dev"] if root.read_only else []),
        f"hostname {shlex.quote(root.hostname)}",
        f"cd {shlex.quote(working_directory)}",
        "unset OLDPWD",
        "echo made >&3",
        "exec 3>&-",
        "exec " + shlex.join([*rights(root), "--", *command]),
    ]
    return "\n".join(lines) + "\n"


def _system_lines() -> list[str]:
    lines = []
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            lines.append(f"ln -s {shlex.quote(str(path.readlink()))} .{name}")
        elif path.is_dir():
            lines += _bound(path, name, True)
    return lines


def _file_lines(root: Root) -> list[str]:
    """Files that a base image and the kubelet bring."""
    lines = []
    for name in _SYSTEM_FILES:
        if (path := Path("/etc") / name).exists():
            lines += _bound(path, str(path), True)
    users = f"root:x:0:0::/root:/bin/sh\nmemserve:x:{root.user}:{root.group}::{root.image.home}:/bin/sh\n"
    for name, text in (
        ("passwd", users),
        ("group", f"root:x:0:\nmemserve:x:{root.group}:\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
        ("host.conf", "multi on\n"),
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
        ("hostname", f"{root.hostname}\n"),
    ):
        lines.append(f"printf %s {shlex.quote(text)} > etc/{name}")
    lines += _bound(root.hosts, "/etc/hosts", True)
    start = f'#!/bin/sh\nexec {shlex.quote(str(_PACKAGES))}/bin/python -m memserve "$@"\n'
    lines.append(f"printf %s {shlex.quote(start)} > opt/kubelet/bin/memserve")
    lines.append("chmod 755 opt/kubelet/bin/memserve")
    if root.image.home != "/":
        lines.append(f"mkdir -p .{shlex.quote(root.image.home)}")
    return lines


def _packages() -> list[Path]:
    """The folders of this interpreter and its packages."""
    folders = dict.fromkeys(Path(place).resolve() for place in (_PACKAGES, sys.base_prefix))
    return [folder for folder in folders if not folder.is_relative_to("/usr")]


def _bound(source: Path, path: str, read_only: bool) -> list[str]:
    quoted, target = shlex.quote(str(source)), shlex.quote("." + path)
    if source.is_dir():
        lines = [f"mkdir -p {target}"]
    else:
        lines = [
            f"mkdir -p {shlex.quote('.' + str(Path(path).parent))}",
            f"[ -e {target} ] || touch {target}",
        ]
    lines.append(f"mount --bind {quoted} {target}")
    if read_only:
        lines.append(f"mount -o remount,bind,ro {target}")
    return lines
