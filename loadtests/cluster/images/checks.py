"""What is looked at in an image, and in a container that runs alone."""

from __future__ import annotations

import contextlib
import json
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.cluster.hosts import Host
from loadtests.cluster.images.building import Image
from loadtests.cluster.images.container import Container, Running, Volume

DATA = "/var/lib/memserve"
TMPFS = {"/tmp": "mode=1777,noexec,size=256m"}
# A user that the image does not know, in the group that some clusters give: only its volume is its own.
UNKNOWN_USER = "54321:0"
ENGINES = ("torch", "vllm", "ray")
WAIT_S = 120.0
# After Python has begun, and before anything is served.
EARLY_S = 0.2
ORPHANS, ORPHANS_S = 20, 2.0
FIRST = "from memserve.processes.init import go_on_in_a_child\ngo_on_in_a_child()\n"
# Processes whose parents end before them, as Ray's do.
LEAVES_ORPHANS = f"""
import os, time
for _ in range({ORPHANS}):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(0.3)
        os._exit(0)
    os.waitpid(child, 0)
time.sleep(60)
"""


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    holds: bool
    seen: str = ""


def contents(name: str, image: Image) -> Iterator[Check]:
    """Of the files of an image."""
    bill = json.loads((image.root / "opt/memserve/sbom.json").read_text(encoding="utf-8"))
    python = [part for part in bill["components"] if part["purl"].startswith("pkg:pypi/")]
    unlicensed = [part["name"] for part in python if "licenses" not in part]
    yield Check(f"{name}: sbom.json has every package with its licence", not unlicensed, str(unlicensed))
    names = {part["name"].lower() for part in bill["components"]}
    # torch compiles kernels where it runs.
    unwanted = {"pip"} if name.startswith("worker") else {"pip", "gcc", "g++", "gcc-12", "g++-12"}
    yield Check(f"{name}: no pip, and no compiler but a worker's", not names & unwanted)
    writable = [
        path.relative_to(image.root)
        for path in (image.root / "opt").rglob("*")
        if not path.is_symlink() and path.lstat().st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    ]
    yield Check(f"{name}: its user can change nothing of memserve", not writable, str(writable[:3]))
    other = [
        str(path.relative_to(image.root))
        for folder in ("usr", "opt")
        for path in (image.root / folder).rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    ]
    yield Check(f"{name}: no program gives other rights", not other, ", ".join(other[:3]))
    config = image.config
    yield Check(f"{name}: it runs as a user without rights", config.user == "10001:10001", config.user)
    yield Check(f"{name}: it has a health command", config.health[:2] == ("memserve", "health"))


@dataclass(frozen=True, slots=True)
class Alone:
    """Containers of one image, each alone on a host without a network to speak of."""

    image: Image
    host: Host
    folder: Path
    """For volumes and logs."""

    def container(self, *words: str, volume: str = "", **environment: str) -> Container:
        """volume: a new one of this name, as a cluster mounts it: root's, and everybody may write."""
        config = self.image.config
        volumes: tuple[Volume, ...] = ()
        if volume:
            place = self.folder / volume
            place.mkdir()
            place.chmod(0o777)
            volumes = (Volume(place, DATA),)
        return Container(
            name=self.host.name,
            root=self.image.root,
            command=(*config.entrypoint, *words),
            environment={**config.environment, **environment},
            user=config.user,
            folder=config.folder,
            volumes=volumes,
            tmpfs=TMPFS,
        )

    def run(self, container: Container, name: str) -> Running:
        return Running(container, self.host, self.folder / f"{name}.log")

    def outcome(self, container: Container, name: str) -> tuple[int | None, str, float]:
        """Wait for its end: the exit status, the last line that it said, the seconds.

        None in place of the status: it had to be killed.
        """
        began_s, running = time.monotonic(), self.run(container, name)
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = running.process.wait(WAIT_S)
        if status is None:
            running.process.kill()
            running.process.wait()
        return status, last_line(running.said()), time.monotonic() - began_s

    def program(self, text: str, name: str) -> tuple[int | None, str, float]:
        """A program of the image's Python."""
        plain = self.container("version", volume=f"{name}-data")
        return self.outcome(replace(plain, command=("/opt/memserve/bin/python", "-c", text)), name)


def alone(name: str, of: Alone) -> Iterator[Check]:
    """Of an image's command where something is missing, and of its first process."""
    status, said, _ = of.outcome(of.container("version", volume=f"{name}-version"), f"{name}-version")
    yield Check(f"{name}: a read-only root is enough", status == 0, said)
    other = replace(of.container("version", volume=f"{name}-user"), user=UNKNOWN_USER)
    status, said, _ = of.outcome(other, f"{name}-user")
    yield Check(f"{name}: any user id is enough", status == 0, said)
    status, said, seconds = of.outcome(of.container("health"), f"{name}-health")
    yield Check(f"{name}: health says no where nothing answers", status == 1, f"{said} ({seconds:.1f} s)")
    yield from first_process(name, of)


def gateway_alone(of: Alone) -> Iterator[Check]:
    """Of a gateway without what it needs: one line that names the cause, and exit status 1."""
    absent = {"MEMSERVE_ALLOW_ANONYMOUS": "true"}
    url = {"MEMSERVE_REDIS_URL": "redis://nobody:6379/0"}
    cases = {
        "no keys": ({}, "data-1", "memserve keys add"),
        "no registry is named": (absent, "data-2", "set redis_url"),
        "no volume": ({**absent, **url}, "", "Read-only file system"),
        "Redis cannot be found": ({**absent, **url}, "data-3", "redis://nobody:6379/0 cannot be reached"),
    }
    for what, (environment, volume, expected) in cases.items():
        container = of.container("gateway", volume=volume, **environment)
        status, said, seconds = of.outcome(container, what.replace(" ", "-"))
        expected = expected.removeprefix("redis://")
        held = status == 1 and "memserve: " in said and all(word in said for word in expected.split()[-3:])
        yield Check(f"gateway: {what} is said", held, f"{said} ({seconds:.1f} s)")
    for engine in ENGINES:
        status, said, _ = of.program(f"import {engine}", f"no-{engine}")
        yield Check(f"gateway: import {engine} fails", status == 1 and "ModuleNotFoundError" in said, said)


def first_process(name: str, of: Alone) -> Iterator[Check]:
    """Signals reach what runs from the first moment, and nothing stays a zombie."""
    container = of.container("version", volume=f"{name}-orphans")
    program = replace(container, command=("/opt/memserve/bin/python", "-c", FIRST + LEAVES_ORPHANS))
    running = of.run(program, f"{name}-orphans")
    running.begun()
    time.sleep(ORPHANS_S)
    zombies, before = running.zombies(), running.process.poll()
    status, seconds = running.end(10.0)
    yield Check(
        f"{name}: orphans are buried", before is None and zombies == 0, f"{zombies} zombies of {ORPHANS}"
    )
    yield Check(f"{name}: SIGTERM ends it", status == 128 + signal.SIGTERM, f"{status} in {seconds:.1f} s")
    running = of.run(of.container(*of.image.config.command, volume=f"{name}-early"), f"{name}-early")
    running.begun()
    time.sleep(EARLY_S)
    status, seconds = running.end(10.0)
    yield Check(
        f"{name}: SIGTERM while it starts ends it", status is not None, f"{status} in {seconds:.1f} s"
    )


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""
