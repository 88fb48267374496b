"""The memserve that is attacked: its modules, its processes and what its store holds."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.harness.figures import report
from loadtests.harness.stack import ANSWER, running_stack, variant
from loadtests.harness.up import is_engine
from loadtests.modules.module_hostile.uploads import expert_files
from memserve.client import CallFailed, Client
from memserve.embedded import Stack
from memserve.memory.modules.blobs.store import BlobStore, sweep
from memserve.memory.modules.registry.store import ModuleStore

WORKERS = 2
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """Everything that the store shows, and the files under it."""

    lists: tuple[str, ...]
    """Modules, versions and audit, as they are shown."""
    histories: dict[str, tuple[str, ...]]
    """Of aliases, by module."""
    files: dict[str, int]
    """The files of the module store, with their bytes."""
    strays: tuple[str, ...]
    """Files that a hostile name has put elsewhere."""


class Fleet:
    """The worker and gateway processes as they were at the beginning."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self._client = client
        self._workers = [worker.worker_id for worker in client.status().workers]
        gateway = stack.gateway_process.pid if stack.gateway_process is not None else 0
        workers = [psutil.Process(worker.pid) for worker in client.status().workers]
        engines = [
            child for worker in workers for child in worker.children(recursive=True) if is_engine(child)
        ]
        self.processes = [psutil.Process(gateway), *workers, *engines]

    def dead(self) -> int:
        """How many processes have ended, and workers do not answer."""
        silent = 0
        for worker_id in self._workers:
            try:
                self._client.generate("Hello.", worker_id=worker_id, sampling=ANSWER)
            except CallFailed as failure:
                report(f"  worker {worker_id}: {failure}")
                silent += 1
        return silent + sum(not process.is_running() for process in self.processes)


def held_by(stack: Stack, client: Client) -> Held:
    """After a sweep: content that a worker refused is in the store until then."""
    root = stack.settings.modules_root / "modules"
    asyncio.run(_swept(stack.settings.redis, root))
    modules = client.modules.all()
    names = [module.name for module in modules]
    files = {
        str(file.relative_to(root)): file.stat().st_size
        for file in root.rglob("*")
        if file.is_file() and ".staging" not in file.parts
    }
    places = (stack.settings.data, stack.settings.data.parent, stack.settings.data.parent.parent)
    strays = {
        str(path)
        for place in places
        for path in (*place.glob("*evil*"), *place.glob("*/*evil*"))
        if path.exists()
    }
    return Held(
        (
            repr(modules),
            *(repr(client.modules.versions(name)) for name in names),
            repr(list(client.modules.audit())),
        ),
        {name: tuple(repr(change) for change in client.modules.history(name)) for name in names},
        files,
        tuple(sorted(strays)),
    )


async def _swept(redis_url: str, root: Path) -> None:
    store = ModuleStore(redis_url)
    try:
        await sweep(BlobStore("", root), store, 0.0, time.time())
    finally:
        await store.close()


def publish_sound_ones(client: Client, folder: Path) -> None:
    """`town` with two versions, `archive`, and `kv` with two versions that know different facts. None has
    probes.
    """
    for name, adapter, scale in (
        ("town", "harbour", 0.99),
        ("town", "harbour", 1.01),
        ("kv", "harbour", 0.98),
        ("kv", "observatory", 0.98),
    ):
        client.modules.publish(name, variant(adapter, folder / f"{name}-{adapter}-{scale}", scale=scale))
    (folder / "archive").mkdir()
    for file_name, content in expert_files().items():
        (folder / "archive" / file_name).write_bytes(content)
    client.modules.publish("archive", folder / "archive")
    for name in ("town", "archive", "kv"):
        client.modules.promote(name, 1)


@contextlib.contextmanager
def sound_stack() -> Iterator[tuple[Stack, Client, Client]]:
    """With the modules of `publish_sound_ones`. Two clients: one is for a stream that another call goes
    beside.
    """
    with (
        tempfile.TemporaryDirectory(prefix="memserve-hostile-") as scratch,
        running_stack(workers=WORKERS, metrics_port=0) as stack,
        Client(stack.address, timeout_s=TIMEOUT_S) as client,
        Client(stack.address, timeout_s=TIMEOUT_S) as other,
    ):
        publish_sound_ones(client, Path(scratch))
        yield stack, client, other
