"""A memserve with one tenant for each way, and a world's memories and modules in it."""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.harness.figures import report
from loadtests.harness.stack import running_stack
from loadtests.texts.memory_recall.worlds import CHANGED, SUPERSEDED, UPDATED, Change, World
from memserve.client import Client
from memserve.domain import MemoryKind, NewMemory

CALL_TIMEOUT_S = 300.0
KNOWN_TIMEOUT_S = 60.0


@contextlib.contextmanager
def serving(
    tenants: Sequence[str], *, timeout_s: float = CALL_TIMEOUT_S, **settings: Any
) -> Iterator[dict[str, Client]]:
    """A client for each tenant of a running memserve.

    timeout_s: of each call. settings: of `memserve.config.Settings`.
    """
    keys = {tenant: secrets.token_urlsafe(16) for tenant in tenants}
    with (
        tempfile.TemporaryDirectory(prefix="memserve-keys-") as folder,
        contextlib.ExitStack() as open_clients,
    ):
        file = Path(folder) / "keys.json"
        file.write_text(json.dumps({key: tenant for tenant, key in keys.items()}), encoding="utf-8")
        file.chmod(0o600)
        stack = open_clients.enter_context(running_stack(workers=1, api_keys_file=file, **settings))
        yield {
            tenant: open_clients.enter_context(Client(stack.address, key, timeout_s=timeout_s))
            for tenant, key in keys.items()
        }


def remember(client: Client, world: World) -> None:
    """Remember all memories of a world, and then what changed."""
    refused = [result for result in client.remember_many(world.memories) if result.refusal]
    if refused:
        raise RuntimeError(f"{len(refused)} memories are refused: {refused[0].refusal}")
    for change in world.changes:
        _change(client, change)


def _change(client: Client, change: Change) -> None:
    later = change.later
    assert change.kind in CHANGED
    if change.kind == UPDATED:
        client.update_memory(later.namespace, change.memory_id, text=later.text)
        return
    remember_one(client, later)
    if change.kind == SUPERSEDED:
        client.supersede_memory(later.namespace, change.memory_id, later.memory_id)


def remember_one(client: Client, memory: NewMemory) -> None:
    client.remember(
        memory.namespace,
        memory.text,
        source=memory.source,
        memory_id=memory.memory_id,
        kind=MemoryKind(memory.kind),
        metadata=memory.metadata,
        valid_from_s=memory.valid_from_s,
        valid_until_s=memory.valid_until_s,
        links=memory.links,
    )


def publish(client: Client, modules: Mapping[str, Path]) -> None:
    """Publish modules through their gates, and wait until the gateway has read what they know."""
    for name, folder in modules.items():
        version = client.modules.publish(name, folder)
        client.modules.promote(name, version.version)
        report(f"{name} is live")
    deadline_s = time.monotonic() + KNOWN_TIMEOUT_S
    while modules:
        fits = client.generate("Hello.", choose_module=True, max_tokens=1).route.module_fits
        if {fit.name for fit in fits} == set(modules):
            return
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the gateway knows only {[fit.name for fit in fits]}")
        time.sleep(0.2)
