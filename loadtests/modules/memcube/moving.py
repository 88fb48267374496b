"""Fills a tenant, moves what it has to others, and kills imports on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtests.harness.figures import report
from loadtests.modules.memcube.damage import why_refused
from memserve.client import AsyncClient, CubeRefused, NewMemory, read_cube
from memserve.client.cube.signing import Signer, new_keys
from memserve.client.cube.writing import CubeWriter
from tests.client.cube.cubes import version, write_cube
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES
from tests.gateway.running import RunningGateway, open_gateway

TENANTS = ("source", "target", "killed")
NAMESPACE = "desk"
TIMEOUT_S = 600.0
KILL_PATIENCE_S = 60.0
KEPT_FIELDS = (
    "kind", "digest", "probes_digest", "sources", "parents", "recipe", "notes", "figures", "base_digest",
    "rank", "target_modules", "size_bytes", "moves_logits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How much is moved."""

    memories: int
    modules: int
    versions: int
    """Of each module."""


@dataclass
class Moved:
    """What was measured."""

    small: Path
    """A signed cube of a part of it, for the damage."""
    cube_bytes: int = 0
    module_bytes: int = 0
    export_s: float = 0.0
    show_s: float = 0.0
    import_s: float = 0.0
    again_s: float = 0.0
    changed_again: int = 0
    kills: int = 0
    """Imports that were killed when a part was there, and not all of it."""
    differences: list[str] = field(default_factory=list)
    differences_after_kills: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Cube to the reason that it was refused for; "" for one that was taken."""


async def move(folder: Path, model: Path, size: Size, seed: int) -> Moved:
    async with tenants(folder, model) as (gateway, source, target, killed):
        report(f"{size.memories} memories, {size.modules} modules of {size.versions} versions")
        await fill(gateway, source, folder, size, seed)
        moved, cube = Moved(folder / "small.cube"), folder / "desk.cube"
        keys = folder / "key", folder / "key.pub"
        new_keys(*keys)
        report("exporting")
        moved.export_s = await seconds(source.cubes.export(cube, sign=keys[0]))
        await source.cubes.export(moved.small, namespaces="shelf", modules="m0", sign=keys[0])
        began_s = time.monotonic()
        read = read_cube(cube, keys[1])
        moved.show_s = time.monotonic() - began_s
        moved.cube_bytes = read.size_bytes
        moved.module_bytes = sum(
            entry.size_bytes for entry in read.manifest.entries if entry.name.endswith(".safetensors")
        )
        report("importing")
        moved.import_s = await seconds(target.cubes.import_(cube, verify=keys[1], aliases=True))
        moved.differences = await differences(source, target)
        moved.changed_again, moved.again_s = await import_again(target, cube)
        report("killing imports")
        moved.kills = await kill_imports(gateway, killed, cube, size)
        await killed.cubes.import_(cube, aliases=True)
        moved.differences_after_kills = await differences(source, killed)
        moved.refused = await refused_by_the_gateway(folder, target, moved.small, keys[1])
    return moved


@contextlib.asynccontextmanager
async def tenants(
    folder: Path, model: Path
) -> AsyncIterator[tuple[RunningGateway, AsyncClient, AsyncClient, AsyncClient]]:
    keys = folder / "keys.json"
    keys.write_text(json.dumps({f"{tenant}-key-1": tenant for tenant in TENANTS}), encoding="utf-8")
    keys.chmod(0o600)
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(
            open_gateway(
                folder, model, api_keys_file=keys, gateway_share_per_tenant=1000.0,
                memory_changes_per_minute_per_tenant=10**9, module_changes_per_minute_per_tenant=10**9,
            )
        )  # fmt: skip
        source, target, killed = [
            await stack.enter_async_context(AsyncClient(gateway.address, f"{tenant}-key-1", TIMEOUT_S))
            for tenant in TENANTS
        ]
        yield gateway, source, target, killed


async def fill(gateway: RunningGateway, client: AsyncClient, folder: Path, size: Size, seed: int) -> None:
    """Memories of which a tenth has a second version and a twentieth is forgotten; modules with aliases."""
    draw = random.Random(seed)
    things = [
        f"{place} of {town}" for place in ("port", "mill", "school") for town in ("Arden", "Brey", "Colm")
    ]
    texts = [
        f"The {draw.choice(things)} has number {number} and {draw.randrange(10**6)} visitors."
        for number in range(size.memories)
    ]
    memories = [
        NewMemory(NAMESPACE, text, memory_id=f"m{number}", metadata={"number": number})
        for number, text in enumerate(texts)
    ]
    shelf = [NewMemory("shelf", text, memory_id=f"s{number}") for number, text in enumerate(texts[:20])]
    async for item in client.remember_many([*memories, *shelf]):
        assert item.refusal is None, item.refusal
    for number in draw.sample(range(size.memories), size.memories // 10):
        await client.update_memory(NAMESPACE, f"m{number}", text=f"{texts[number]} Since May.")
    for number in draw.sample(range(size.memories), size.memories // 20):
        await client.forget(NAMESPACE, f"m{number}")
    for module in range(size.modules):
        for number in range(size.versions):
            files = lora_files(gateway.parts.model.tensor_shapes(), seed=seed + module * 100 + number)
            files["probes.json"] = json.dumps(PASSES).encode()
            await client.modules.publish(
                f"m{module}",
                write_files(folder / "published" / f"{module}-{number}", files),
                sources=[f"memory:{NAMESPACE}/m{number}@1"],
                recipe=json.dumps({"seed": seed}),
                parents=[f"{module:064x}"],
            )
        await client.modules.promote(f"m{module}", 1)
        await client.modules.promote(f"m{module}", size.versions)
        await client.modules.split(f"m{module}", {1: 1.0, size.versions: 3.0}, alias="both")


async def seconds(work: Awaitable[object]) -> float:
    began_s = time.monotonic()
    await work
    return time.monotonic() - began_s


async def differences(one: AsyncClient, other: AsyncClient) -> list[str]:
    """What two tenants do not have alike: lines of memories with histories, versions, aliases."""
    lines = [[line async for line in client.export_memories()] for client in (one, other)]
    found = [
        f"memories: {was[:80]} / {is_now[:80]}" for was, is_now in zip(*lines, strict=False) if was != is_now
    ]
    if len(lines[0]) != len(lines[1]):
        found.append(f"lines of memories: {len(lines[0])} / {len(lines[1])}")
    modules = [await client.modules.all() for client in (one, other)]
    if [module.name for module in modules[0]] != [module.name for module in modules[1]]:
        return [*found, f"modules: {len(modules[0])} / {len(modules[1])}"]
    for was, is_now in zip(*modules, strict=True):
        aliases = [{alias.name: alias.targets for alias in module.aliases} for module in (was, is_now)]
        if aliases[0] != aliases[1]:
            found.append(f"aliases of {was.name}: {aliases[0]} / {aliases[1]}")
        versions = [await client.modules.versions(was.name) for client in (one, other)]
        kept = [[[getattr(each, name) for name in KEPT_FIELDS] for each in listed] for listed in versions]
        if kept[0] != kept[1]:
            found.append(f"versions of {was.name}")
    return found


async def import_again(target: AsyncClient, cube: Path) -> tuple[int, float]:
    """Returns how much a second import changed, and its seconds."""

    async def state() -> tuple[list[object], list[str]]:
        events: list[object] = [event async for event in target.modules.audit()]
        return events, [line async for line in target.export_memories()]

    before = await state()
    began_s = time.monotonic()
    outcome = await target.cubes.import_(cube, aliases=True)
    took_s = time.monotonic() - began_s
    told = outcome.memories.new + outcome.memories.refused
    told += sum(each.is_new for each in outcome.versions)
    told += sum(alias.outcome != "unchanged" for alias in outcome.aliases)
    return told + (before != await state()), took_s


async def kill_imports(gateway: RunningGateway, client: AsyncClient, cube: Path, size: Size) -> int:
    """Kill one import among the memories, and one among the modules. Returns how many were in the middle."""

    async def memories() -> int:
        return sum(used.records for used in (await client.memory_usage()).namespaces)

    async def versions() -> int:
        return sum(module.versions for module in await client.modules.all())

    kills = 0
    for count, total in ((memories, size.memories + 20), (versions, size.modules * size.versions)):
        kills += await kill_import(gateway, cube, count, total)
    return kills


async def kill_import(
    gateway: RunningGateway, cube: Path, count: Callable[[], Awaitable[int]], total: int
) -> bool:
    """Start an import, kill it when a part is there. Returns whether only a part is there."""
    command = [sys.executable, "-m", "memserve", "cube", "import", str(cube), "--aliases"]
    command += ["--address", gateway.address, "--api-key", "killed-key-1"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env=dict(os.environ)
    )
    deadline_s = time.monotonic() + KILL_PATIENCE_S
    while process.returncode is None and time.monotonic() < deadline_s and await count() == 0:
        await asyncio.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    was_killed = await process.wait() == -signal.SIGKILL
    there = await count()
    report(f"killed with {there} of {total}")
    return was_killed and 0 < there < total


async def refused_by_the_gateway(
    folder: Path, target: AsyncClient, signed: Path, public_key: Path
) -> dict[str, str]:
    """Cubes whose signature or base model does not fit."""
    other_key = folder / "other", folder / "other.pub"
    new_keys(*other_key)
    plain = write_cube(folder / "plain.cube", {"notes": ["a"]})
    foreign = write_cube(folder / "foreign.cube", {}, versions=[version()])
    before = [module.name for module in await target.modules.all()]
    outcomes = {
        "not signed": why_refused(plain, public_key),
        "signed by another key": why_refused(signed, other_key[1]),
        "changed and signed anew by another key": why_refused(signed_anew(folder, other_key[0]), public_key),
        "for another base model": await why_not_imported(target, foreign),
    }
    assert [module.name for module in await target.modules.all()] == before
    return outcomes


def signed_anew(folder: Path, key: Path) -> Path:
    """A sound cube of a stranger's."""
    writer = CubeWriter(folder / "anew.cube")
    manifest = read_cube(write_cube(folder / "empty.cube", {})).manifest
    writer.close(replace(manifest, embedder="another"), Signer(key))
    writer.put()
    return folder / "anew.cube"


async def why_not_imported(client: AsyncClient, cube: Path) -> str:
    try:
        await client.cubes.import_(cube)
    except CubeRefused as refused:
        return str(refused)
    return ""
