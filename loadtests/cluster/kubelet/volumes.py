"""The volumes of a pod, as folders of this machine that containers have mounted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.cluster.kubelet.environment import PodFacts, field_of, texts_of
from loadtests.cluster.kubelet.objects import Manifest, ManifestFault, Objects, Pod

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


@dataclass(frozen=True, slots=True)
class Mount:
    """What a container has mounted at a path."""

    source: Path
    path: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """A file of a volume that is made of ConfigMaps, Secrets or the pod's own fields."""

    content: bytes
    mode: int


def size_bytes(quantity: str) -> int:
    """Of a quantity of bytes such as 64Mi. Raises ManifestFault."""
    match = re.fullmatch(r"(\d+)([kMG]|Ki|Mi|Gi)?", str(quantity))
    if match is None:
        raise ManifestFault(f"a size is {quantity}")
    return int(match[1]) * _UNITS[match[2] or ""]


def files_of(volume: Manifest, pod: Pod, facts: PodFacts, objects: Objects) -> dict[str, VolumeFile] | None:
    """The files of a volume by path. None: a volume of another kind."""
    if projected := volume.get("projected"):
        files: dict[str, VolumeFile] = {}
        for source in projected["sources"]:
            part = files_of({"name": volume["name"], **source}, pod, facts, objects)
            mode = projected.get("defaultMode", 0o644)
            if part is None:
                raise ManifestFault(f"volume {volume['name']}: no kubelet of ours projects {sorted(source)}")
            files |= {name: VolumeFile(file.content, mode) for name, file in part.items()}
        return files
    for kind, key, named in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
        if source := volume.get(key):
            optional = bool(source.get("optional"))
            entries = texts_of(kind, source.get(named) or source["name"], objects, optional=optional)
            return _chosen(entries, source)
    if source := volume.get("downwardAPI"):
        return {
            item["path"]: VolumeFile(
                field_of(item["fieldRef"]["fieldPath"], pod, facts, objects.namespace).encode(), 0o644
            )
            for item in source["items"]
        }
    return None


def _chosen(entries: Mapping[str, bytes], source: Manifest) -> dict[str, VolumeFile]:
    """The entries that a volume's source wants, at the paths that it wants them."""
    mode = int(source.get("defaultMode", 0o644))
    if not (items := source.get("items")):
        return {key: VolumeFile(content, mode) for key, content in entries.items()}
    absent = [item["key"] for item in items if item["key"] not in entries]
    if absent and not source.get("optional"):
        raise ManifestFault(f"a volume wants {', '.join(absent)}, which its source has not")
    return {
        item["path"]: VolumeFile(entries[item["key"]], int(item.get("mode", mode)))
        for item in items
        if item["key"] in entries
    }


def write_files(folder: Path, files: Mapping[str, VolumeFile], group: int | None) -> None:
    """Write a volume's files as a kubelet does: each name is a link into a folder that changes as a whole.

    group: of the files, which it may then read. None: the root's.
    """
    generation = folder / f"..{time.strftime('%Y_%m_%d_%H_%M_%S')}.{time.monotonic_ns()}"
    generation.mkdir(parents=True)
    for name, file in files.items():
        path = generation / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        os.chown(path, 0, 0 if group is None else group)
        path.chmod(file.mode if group is None else file.mode | 0o440)
    link = folder / "..data"
    before = folder / os.readlink(link) if link.is_symlink() else None
    fresh = folder / "..data_tmp"
    fresh.symlink_to(generation.name)
    fresh.replace(link)
    for top in {Path(name).parts[0] for name in files}:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(Path("..data") / top)
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and not entry.exists():
            entry.unlink()
    if before is not None:
        shutil.rmtree(before)


class Volumes:
    """The volumes of one pod. Volumes that are claimed outlive it, in a folder for all pods."""

    def __init__(self, folder: Path, claims: Path, pod: Pod) -> None:
        self._folder = folder
        self._claims = claims
        self._pod = pod
        self._sources: dict[str, Path] = {}
        self._in_memory: list[Path] = []

    @property
    def _group(self) -> int | None:
        group = (self._pod.spec.get("securityContext") or {}).get("fsGroup")
        return None if group is None else int(group)

    def make(self, facts: PodFacts, objects: Objects) -> None:
        """Raises ManifestFault."""
        self._folder.mkdir(parents=True)
        for volume in self._pod.spec.get("volumes") or []:
            name = volume["name"]
            source = self._sources[name] = self._folder / name
            if (files := files_of(volume, self._pod, facts, objects)) is not None:
                source.mkdir()
                write_files(source, files, self._group)
            elif claim := volume.get("persistentVolumeClaim"):
                self._sources[name] = self._claims / claim["claimName"]
                self._sources[name].mkdir(parents=True, exist_ok=True)
                self._give(self._sources[name])
            elif "emptyDir" in volume:
                self._make_empty(source, volume["emptyDir"] or {})
            else:
                raise ManifestFault(f"volume {name}: no kubelet of ours has {sorted(set(volume) - {'name'})}")

    def rewrite(self, facts: PodFacts, objects: Objects) -> None:
        """Write the files of ConfigMaps and Secrets again, as they are now."""
        for volume in self._pod.spec.get("volumes") or []:
            if (files := files_of(volume, self._pod, facts, objects)) is not None:
                write_files(self._sources[volume["name"]], files, self._group)

    def mounts_of(self, container: Manifest) -> list[Mount]:
        """Outer paths first. Raises ManifestFault."""
        mounts = []
        for mount in container.get("volumeMounts") or []:
            if (source := self._sources.get(mount["name"])) is None:
                raise ManifestFault(f"{self._pod.name} mounts a volume {mount['name']}, which it has not")
            if below := mount.get("subPath"):
                source = source / below
                if not source.exists():
                    source.mkdir(parents=True)
                    self._give(source)
                source = source.resolve()
            fixed = mount["name"] not in {
                volume["name"]
                for volume in self._pod.spec["volumes"]
                if "emptyDir" in volume or "persistentVolumeClaim" in volume
            }
            mounts.append(Mount(source, mount["mountPath"], fixed or bool(mount.get("readOnly"))))
        return sorted(mounts, key=lambda mount: mount.path)

    def remove(self) -> None:
        for folder in self._in_memory:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_empty(self, source: Path, volume: Manifest) -> None:
        source.mkdir()
        if volume.get("medium") == "Memory":
            size = f"size={size_bytes(volume['sizeLimit'])}" if volume.get("sizeLimit") else "size=50%"
            command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(source)]
            subprocess.run(command, check=True)
            self._in_memory.append(source)
        self._give(source)

    def _give(self, folder: Path) -> None:
        """Let every user write, and the pod's group own what is written."""
        folder.chmod(0o777)
        if self._group is not None:
            os.chown(folder, 0, self._group)
            folder.chmod(0o2777)
