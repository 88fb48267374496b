"""Cubes between real gateways: what goes out comes in equal, again nothing changes, and what does not fit is
refused before anything is written.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.client import Client, CubeRefused, NewMemory
from memserve.client.cube.signing import new_keys
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import FAILS, PASSES
from tests.gateway.running import RunningGateway, open_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXTS = (
    "The harbour office is in hall two.",
    "The tram to the lighthouse is line nine.",
    "Ünïcode \u2028 線",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def source(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> AsyncIterator[RunningGateway]:
    """With memories that have histories, and a module with versions, probes and aliases."""
    folder = tmp_path_factory.mktemp("source")
    async with open_gateway(folder, model_dir) as running:
        client = running.client
        async for item in client.remember_many(
            NewMemory("desk", text, memory_id=f"m{number}") for number, text in enumerate(TEXTS)
        ):
            assert item.refusal is None
        await client.update_memory("desk", "m0", text="The harbour office is in hall nine.")
        await client.forget("desk", "m1")
        await client.remember("shelf", "Elsewhere.", memory_id="e")
        for seed in (1, 2):
            await published(running, folder, seed)
        await client.modules.promote("tone", 1)
        await client.modules.promote("tone", 2, alias="next")
        await client.modules.split("tone", {1: 3.0, 2: 1.0}, alias="both")
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(tmp_path_factory.mktemp("target"), model_dir) as running:
        yield running


async def published(running: RunningGateway, folder: Path, seed: int) -> None:
    files = lora_files(running.parts.model.tensor_shapes(), seed=seed)
    files["probes.json"] = json.dumps(PASSES).encode()
    await running.client.modules.publish(
        "tone",
        write_files(folder / f"{seed}", files),
        sources=["memory:desk/m0@2"],
        recipe='{"how": "by hand"}',
        notes=f"{seed}",
        parents=["ab" * 32],
    )


async def lines_of(running: RunningGateway, namespace: str) -> list[str]:
    return [line async for line in running.client.export_memories(namespace)]


async def test_a_round_trip_is_equal_and_again_changes_nothing(
    source: RunningGateway, target: RunningGateway, tmp_path: Path
) -> None:
    file = tmp_path / "desk.cube"
    cube = await source.client.cubes.export(file, namespaces="desk", modules=["tone"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["desk.cube"]
    assert cube.manifest.namespaces == {"desk": 3} and cube.manifest.modules == {"tone": (1, 2)}

    planned = await target.client.cubes.import_(file, dry_run=True, aliases=True)
    assert planned.memories.new == 3 and [version.here for version in planned.versions] == ["", ""]
    assert await target.client.namespaces() == {} and await target.client.modules.all() == []

    first = await target.client.cubes.import_(file, aliases=True)
    assert first.is_complete and first.memories.new == 3
    assert {alias.reference: alias.outcome for alias in first.aliases} == {
        "tone@live": "set", "tone@next": "set", "tone@both": "set"
    }  # fmt: skip
    assert (await lines_of(target, "desk"))[1:] == (await lines_of(source, "desk"))[1:]
    for number in (1, 2):
        old, new = [await running.client.modules.version(f"tone@{number}") for running in (source, target)]
        for name in ("digest", "probes_digest", "sources", "parents", "recipe", "notes", "figures", "kind"):
            assert getattr(new, name) == getattr(old, name), name
    old_aliases, new_aliases = [
        {alias.name: alias.targets for alias in (await running.client.modules.get("tone")).aliases}
        for running in (source, target)
    ]
    assert new_aliases == old_aliases
    assert (await target.client.modules.history("tone"))[-1].reason.startswith("import of a cube of ")

    events = [event async for event in target.client.modules.audit()]
    second = await target.client.cubes.import_(file, aliases=True)
    assert second.memories.same == 3 and not second.memories.new and second.is_complete
    assert not any(version.is_new for version in second.versions)
    assert {alias.outcome for alias in second.aliases} == {"unchanged"}
    assert [event async for event in target.client.modules.audit()] == events

    again = await target.client.cubes.export(tmp_path / "again.cube", namespaces="desk", modules="tone")
    records = ("module.json", "version.json")
    sums, sums_again = [
        {entry.name: entry.sha256 for entry in held.manifest.entries if not entry.name.endswith(records)}
        for held in (cube, again)
    ]
    # The header of the lines counts a namespace's records, which are as many here.
    assert sums_again == sums and len(sums) == 7


async def test_the_blocking_client_does_the_same(source: RunningGateway, tmp_path: Path) -> None:
    def run() -> None:
        with Client(source.address) as client:
            cube = client.cubes.export(tmp_path / "all.cube")
            assert cube.manifest.namespaces == {"desk": 3, "shelf": 1}
            assert client.cubes.read(tmp_path / "all.cube").versions == cube.versions
            outcome = client.cubes.import_(tmp_path / "all.cube")
            assert (outcome.memories.new, outcome.memories.same) == (0, 4) and outcome.is_complete

    await asyncio.to_thread(run)


async def test_a_memory_with_another_history_stays_and_is_told(
    source: RunningGateway, target: RunningGateway, tmp_path: Path
) -> None:
    await source.client.cubes.export(tmp_path / "shelf.cube", namespaces="shelf")
    await target.client.remember("shelf", "Something else.", memory_id="e")
    for dry_run in (True, False):
        outcome = await target.client.cubes.import_(tmp_path / "shelf.cube", dry_run=dry_run)
        assert not outcome.is_complete and outcome.memories.refused == 1
        assert "shelf/e" in outcome.memories.refusals[0].message
    assert (await target.client.get_memory("shelf", "e")).text == "Something else."


async def test_a_version_that_fails_the_gate_is_a_candidate_and_its_alias_is_refused(
    source: RunningGateway, target: RunningGateway, tmp_path: Path
) -> None:
    files = lora_files(source.parts.model.tensor_shapes(), seed=7)
    files["probes.json"] = json.dumps(FAILS).encode()
    await source.client.modules.publish("poor", write_files(tmp_path / "poor", files))
    await source.client.modules.promote("poor", 1, force=True)
    await source.client.cubes.export(tmp_path / "poor.cube", modules="poor")
    outcome = await target.client.cubes.import_(tmp_path / "poor.cube", aliases=True)
    assert outcome.versions[0].here == "poor@1"
    [alias] = outcome.aliases
    assert alias.outcome == "refused" and "gate refuses" in alias.detail and not outcome.is_complete
    assert (await target.client.modules.get("poor")).aliases == ()
    await target.client.modules.delete("poor", 1)


async def test_a_signed_cube_is_checked_with_the_key_that_is_named(
    source: RunningGateway, tmp_path: Path
) -> None:
    keys = [tmp_path / name for name in ("a.pem", "a.pub", "b.pem", "b.pub")]
    signer = new_keys(keys[0], keys[1])
    new_keys(keys[2], keys[3])
    cubes = source.client.cubes
    await cubes.export(tmp_path / "signed.cube", namespaces="shelf", sign=keys[0])
    await cubes.export(tmp_path / "plain.cube", namespaces="shelf")
    cube = await cubes.read(tmp_path / "signed.cube", verify=keys[1])
    assert cube.signer == signer and cube.is_verified
    with pytest.raises(CubeRefused, match=r"cube\.sig: is of another key"):
        await cubes.read(tmp_path / "signed.cube", verify=keys[3])
    with pytest.raises(CubeRefused, match=r"cube\.sig: is missing"):
        await cubes.import_(tmp_path / "plain.cube", verify=keys[1])


async def test_a_failed_export_leaves_what_was_there(source: RunningGateway, tmp_path: Path) -> None:
    (tmp_path / "x.cube").write_bytes(b"before")
    with pytest.raises(Exception, match="nowhere"):
        await source.client.cubes.export(tmp_path / "x.cube", namespaces="nowhere")
    assert os.listdir(tmp_path) == ["x.cube"]
    assert (tmp_path / "x.cube").read_bytes() == b"before"
