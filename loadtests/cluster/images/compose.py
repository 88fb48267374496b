"""Reads a Compose file, and makes a container of each of its services. It knows what deploy/docker uses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtests.cluster.images.building import Image
from loadtests.cluster.images.container import SHM_BYTES, Container, Volume

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::-([^}]*))?\})")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
KNOWN = frozenset(
    {
        *("image", "build", "command", "user", "read_only", "environment", "secrets"),
        *("volumes", "tmpfs", "shm_size", "networks", "ports", "depends_on", "healthcheck"),
        *("cap_drop", "security_opt", "restart", "logging", "mem_limit", "stop_grace_period"),
    }
)
"""The keys of a service that are heeded here, or that do not change how the service runs."""


class ComposeError(Exception):
    """The Compose file says something that is not known here."""


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    keys: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The stage of the Dockerfile that it is built from. Empty: an image of other people."""
        return str(self.keys.get("build", {}).get("target", ""))

    @property
    def needs(self) -> tuple[str, ...]:
        """The services that must be healthy first."""
        return tuple(self.keys.get("depends_on", {}))

    @property
    def health(self) -> tuple[str, ...]:
        """A command of its own. Empty: the image's."""
        kind, *words = self.keys.get("healthcheck", {}).get("test", [""])
        return ("sh", "-c", *words) if kind == "CMD-SHELL" else tuple(words)

    @property
    def grace_s(self) -> float:
        return float(str(self.keys.get("stop_grace_period", "10s")).removesuffix("s"))


def read_compose(file: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables filled in."""
    filled: dict[str, Any] = _filled(yaml.safe_load(file.read_text(encoding="utf-8")), environment)
    return filled


def services_of(compose: Mapping[str, Any]) -> dict[str, Service]:
    """In an order in which each comes after those that it needs. Raises ComposeError."""
    left = {name: Service(name, keys) for name, keys in compose["services"].items()}
    for service in left.values():
        if unknown := set(service.keys) - KNOWN:
            raise ComposeError(f"{service.name}: {', '.join(sorted(unknown))} is not known here")
    ordered: dict[str, Service] = {}
    while left:
        ready = [name for name, service in left.items() if all(need in ordered for need in service.needs)]
        if not ready:
            raise ComposeError(f"these need each other: {', '.join(left)}")
        ordered.update({name: left.pop(name) for name in ready})
    return ordered


@dataclass(frozen=True, slots=True)
class Project:
    """A Compose file that is run, and where its volumes and secrets are."""

    compose: Mapping[str, Any]
    folder: Path
    """A folder for each volume."""
    secrets: Path
    """Stands for the folder `./secrets` of the file."""

    def container(self, service: Service, image: Image, command: tuple[str, ...] | None = None) -> Container:
        """command: in place of the service's, as of `docker compose run`."""
        keys, config = service.keys, image.config
        words = command if command is not None else tuple(keys.get("command", config.command))
        volumes = [*self._volumes(keys, image), *self._secrets(keys)]
        return Container(
            name=service.name,
            root=image.root,
            command=(*config.entrypoint, *words),
            environment={**config.environment, **keys.get("environment", {})},
            user=str(keys.get("user", config.user)),
            folder=config.folder,
            volumes=tuple(sorted(volumes, key=lambda volume: volume.target)),
            tmpfs=dict(_tmpfs(entry) for entry in keys.get("tmpfs", [])),
            read_only=bool(keys.get("read_only")),
            shm_bytes=size_bytes(keys["shm_size"]) if "shm_size" in keys else SHM_BYTES,
        )

    def _volumes(self, keys: Mapping[str, Any], image: Image) -> list[Volume]:
        """Named volumes. A new one takes its owner and its rights from the image, as Docker's do."""
        volumes = []
        for entry in keys.get("volumes", []):
            name, target, *options = entry.split(":")
            if name not in self.compose["volumes"]:
                raise ComposeError(f"{entry}: not a named volume")
            place = self.folder / name
            if not place.exists():
                place.mkdir(parents=True)
                if (like := image.root / target.lstrip("/")).exists():
                    shutil.copystat(like, place)
                    shutil.chown(place, like.stat().st_uid, like.stat().st_gid)
            volumes.append(Volume(place, target, "ro" in options))
        return volumes

    def _secrets(self, keys: Mapping[str, Any]) -> list[Volume]:
        volumes = []
        for entry in keys.get("secrets", []):
            file = Path(self.compose["secrets"][entry["source"]]["file"])
            volumes.append(Volume(self.secrets / file.relative_to("secrets"), entry["target"], True))
        return volumes


def size_bytes(text: str) -> int:
    """1gb, 64m, 1024."""
    found = re.fullmatch(r"(\d+)\s*([bkmg]?)b?", str(text).lower())
    if found is None:
        raise ComposeError(f"{text!r} is no size")
    return int(found[1]) * _UNITS[found[2]]


def _tmpfs(entry: str) -> tuple[str, str]:
    """Docker's tmpfs is noexec, if nobody says otherwise."""
    target, _, options = entry.partition(":")
    return target, options if "exec" in options.split(",") else f"noexec,{options}".rstrip(",")


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    """With the variables filled in, as Compose does it: ${NAME}, ${NAME:-default}, and $$ for a dollar."""
    if isinstance(value, dict):
        return {name: _filled(inner, environment) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, environment) for inner in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(
        lambda found: "$" if found[1] else environment.get(found[2]) or found[3] or "", value
    )
