"""The files in /dev/shm that hold engines' host memory for KV, and how they go away.

`drop_name` is for the CPU platform. It deletes the file's name as soon as the scheduler and the worker have
mapped it, so that the kernel frees the memory however the process ends. `sweep_orphan_regions` is for what
`drop_name` cannot reach. On CUDA vLLM's own spec keeps the name until the engine ends in order, so an engine
that is killed with -9 leaves its file behind. On the CPU an engine that is killed while it starts leaves the
file behind too, between the scheduler's mapping and the worker's. A worker therefore sweeps at its start.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memserve.worker.kv.vllm_internals import HOST_REGION_FILES, has_created, leave_file_alone, region_file

if TYPE_CHECKING:
    from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

FileId = tuple[int, int]
"""Device and inode."""


def drop_name(region: SharedOffloadRegion) -> None:
    """Delete the name of a region's file once both sides have mapped it. Both sides call this.

    The scheduler and the only worker of the CPU platform map it. The second of them, which opened the file
    and did not create it, deletes the name.
    """
    if not has_created(region):
        region_file(region).unlink()
    leave_file_alone(region)


def sweep_orphan_regions(directory: Path = Path("/dev/shm"), *, minimum_age_s: float = 60.0) -> list[Path]:
    """Delete the host regions that engines left behind when they were killed. Returns what was deleted.

    A region is deleted when it is this user's, no process of this user has it mapped or open, and it is older
    than `minimum_age_s`: a region that is being made is not mapped yet. The maps of a process may not be
    readable. Such a process counts as having the region when it uses that much shared memory, because an
    engine's scheduler has touched its whole region. Processes in another PID namespace cannot be seen, so
    `directory` must not be shared with them.
    """
    regions = [(path, path.stat()) for path in directory.glob(HOST_REGION_FILES)]
    old = [
        (path, stat)
        for path, stat in regions
        if stat.st_uid == os.geteuid() and time.time() - stat.st_ctime > minimum_age_s
    ]
    if not old:
        return []
    used, hidden_bytes = _files_in_use()
    orphans = [
        path
        for path, stat in old
        if (stat.st_dev, stat.st_ino) not in used and stat.st_blocks * 512 > hidden_bytes
    ]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


def _files_in_use() -> tuple[set[FileId], int]:
    """Every file that a process of this user has mapped or open.

    And the most shared memory that a process uses which does not show its files.
    """
    used: set[FileId] = set()
    hidden_bytes = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.geteuid():
                continue
            try:
                used |= _mapped_files(process) | _open_files(process)
            except PermissionError:
                hidden_bytes = max(hidden_bytes, _shared_bytes(process))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return used, hidden_bytes


def _mapped_files(process: Path) -> set[FileId]:
    """process: its folder in /proc."""
    files = set()
    for line in (process / "maps").read_text(encoding="utf-8").splitlines():
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        major, minor = (int(part, 16) for part in device.split(":"))
        files.add((os.makedev(major, minor), int(inode)))
    return files


def _open_files(process: Path) -> set[FileId]:
    """process: its folder in /proc."""
    files = set()
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, or a socket's
            stat = descriptor.stat()
            files.add((stat.st_dev, stat.st_ino))
    return files


def _shared_bytes(process: Path) -> int:
    """Resident shared memory of a process. Its status is readable where its maps are not."""
    lines = (process / "status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:")), 0)
