"""Cubes between two tenants of a real gateway: what goes out comes in equal, again nothing changes, and what
does not fit is refused before anything is written.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from memserve.client import AsyncClient, CallFailed, Client, CubeModule, CubeRefused, ModuleKind, NewMemory
from memserve.client.cube.records import encoded
from memserve.client.cube.signing import new_keys
from memserve.client.cube.writing import CubeWriter
from memserve.memory.modules.contents import CHUNK_BYTES
from memserve.pb.v1 import module_pb2, module_pb2_grpc
from tests.client.cube.cubes import version, write_cube
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import FAILS, PASSES
from tests.gateway.running import TIMEOUT_S, RunningGateway, open_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXTS = (
    "The harbour office is in hall two.",
    "The tram to the lighthouse is line nine.",
    "Ünïcode \u2028 線",
)


@dataclass(frozen=True)
class Both:
    """Two tenants of one gateway."""

    gateway: RunningGateway
    source: AsyncClient
    """It has memories with histories, and a module with versions, probes and aliases."""
    target: AsyncClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> AsyncIterator[Both]:
    folder = tmp_path_factory.mktemp("cubes")
    keys = folder / "keys.json"
    keys.write_text(json.dumps({f"{name}-key-1": name for name in ("source", "target")}), encoding="utf-8")
    keys.chmod(0o600)
    async with (
        open_gateway(folder, model_dir, api_keys_file=keys) as gateway,
        AsyncClient(gateway.address, "source-key-1", TIMEOUT_S) as source,
        AsyncClient(gateway.address, "target-key-1", TIMEOUT_S) as target,
    ):
        async for item in source.remember_many(
            NewMemory("desk", text, memory_id=f"m{number}") for number, text in enumerate(TEXTS)
        ):
            assert item.refusal is None
        await source.update_memory("desk", "m0", text="The harbour office is in hall nine.")
        await source.forget("desk", "m1")
        await source.remember("shelf", "Elsewhere.", memory_id="e")
        for seed in (1, 2):
            await source.modules.publish(
                "tone",
                write_files(folder / f"{seed}", files_of(gateway, seed, PASSES)),
                sources=["memory:desk/m0@2"],
                recipe='{"how": "by hand"}',
                notes=f"{seed}",
                parents=["ab" * 32],
            )
        await source.modules.promote("tone", 1)
        await source.modules.promote("tone", 2, alias="next")
        await source.modules.split("tone", {1: 3.0, 2: 1.0}, alias="both")
        yield Both(gateway, source, target)


def files_of(gateway: RunningGateway, seed: int, probes: object) -> dict[str, bytes]:
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=seed)
    return {**files, "probes.json": json.dumps(probes).encode()}


async def lines_of(client: AsyncClient, namespace: str) -> list[str]:
    return [line async for line in client.export_memories(namespace)]


async def test_a_version_is_read_as_it_is_kept_in_bounded_chunks(both: Both, tmp_path: Path) -> None:
    stub = module_pb2_grpc.ModuleServiceStub(both.gateway.channel)
    request = module_pb2.ReadVersionRequest(reference="tone@2")
    as_source = (("authorization", "Bearer source-key-1"),)
    head, *chunks = [part async for part in stub.ReadVersion(request, metadata=as_source)]
    assert head.content.version.notes == "2" and head.content.version.HasField("gate")
    files = dict.fromkeys((file.file_name for file in head.content.files), b"")
    assert list(files) == ["adapter_config.json", "adapter_model.safetensors", "probes.json"]
    for part in chunks:
        assert part.chunk.offset == len(files[part.chunk.file_name])
        assert 0 < len(part.chunk.content) <= CHUNK_BYTES
        files[part.chunk.file_name] += part.chunk.content
    for file in head.content.files:
        content = files[file.file_name]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size_bytes, file.sha256)
    assert (
        files["adapter_model.safetensors"] == files_of(both.gateway, 2, PASSES)["adapter_model.safetensors"]
    )
    as_target = (("authorization", "Bearer target-key-1"),)
    with pytest.raises(grpc.aio.AioRpcError) as foreign:
        await anext(aiter(stub.ReadVersion(request, metadata=as_target)))
    assert foreign.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
        await anext(both.source.modules.read("../tone"))


async def test_a_damaged_file_of_the_store_ends_the_call(both: Both, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "fragile", files_of(both.gateway, 9, PASSES))
    version = await both.source.modules.publish("fragile", folder)
    kept = both.gateway.parts.modules.blobs.local(version.digest) / "adapter_model.safetensors"
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with pytest.raises(CallFailed, match="damaged") as failed:
        async for _ in both.source.modules.read("fragile@1"):
            pass
    assert "adapter_model.safetensors" in failed.value.detail
    with pytest.raises(CallFailed, match="damaged"):
        await both.source.cubes.export(tmp_path / "x.cube", modules="fragile")
    assert os.listdir(tmp_path) == ["fragile"]
    await both.source.modules.delete("fragile", 1)


async def test_a_round_trip_is_equal_and_again_changes_nothing(both: Both, tmp_path: Path) -> None:
    source, target = both.source, both.target
    file = tmp_path / "desk.cube"
    cube = await source.cubes.export(file, namespaces="desk", modules=["tone"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["desk.cube"]
    assert cube.manifest.namespaces == {"desk": 3} and cube.manifest.modules == {"tone": (1, 2)}

    planned = await target.cubes.import_(file, dry_run=True, aliases=True)
    assert planned.memories.new == 3 and [version.here for version in planned.versions] == ["", ""]
    assert await target.namespaces() == {} and await target.modules.all() == []

    first = await target.cubes.import_(file, aliases=True)
    assert first.is_complete and first.memories.new == 3
    assert {alias.reference: alias.outcome for alias in first.aliases} == {
        "tone@live": "set", "tone@next": "set", "tone@both": "set"
    }  # fmt: skip
    assert (await lines_of(target, "desk"))[1:] == (await lines_of(source, "desk"))[1:]
    for number in (1, 2):
        old, new = [await running.modules.version(f"tone@{number}") for running in (source, target)]
        for name in ("digest", "probes_digest", "sources", "parents", "recipe", "notes", "figures", "kind"):
            assert getattr(new, name) == getattr(old, name), name
    old_aliases, new_aliases = [
        {alias.name: alias.targets for alias in (await running.modules.get("tone")).aliases}
        for running in (source, target)
    ]
    assert new_aliases == old_aliases
    assert (await target.modules.history("tone"))[-1].reason.startswith("import of a cube of ")

    events = [event async for event in target.modules.audit()]
    second = await target.cubes.import_(file, aliases=True)
    assert second.memories.same == 3 and not second.memories.new and second.is_complete
    assert not any(version.is_new for version in second.versions)
    assert {alias.outcome for alias in second.aliases} == {"unchanged"}
    assert [event async for event in target.modules.audit()] == events

    again = await target.cubes.export(tmp_path / "again.cube", namespaces="desk", modules="tone")
    records = ("module.json", "version.json")
    sums, sums_again = [
        {entry.name: entry.sha256 for entry in held.manifest.entries if not entry.name.endswith(records)}
        for held in (cube, again)
    ]
    # The header of the lines counts a namespace's records, which are as many here.
    assert sums_again == sums and len(sums) == 7


async def test_the_blocking_client_does_the_same(both: Both, tmp_path: Path) -> None:
    def run() -> None:
        with Client(both.gateway.address, "source-key-1") as client:
            cube = client.cubes.export(tmp_path / "all.cube")
            assert cube.manifest.namespaces == {"desk": 3, "shelf": 1}
            assert client.cubes.read(tmp_path / "all.cube").versions == cube.versions
            outcome = client.cubes.import_(tmp_path / "all.cube")
            assert (outcome.memories.new, outcome.memories.same) == (0, 4) and outcome.is_complete

    await asyncio.to_thread(run)


async def test_a_memory_with_another_history_stays_and_is_told(both: Both, tmp_path: Path) -> None:
    source, target = both.source, both.target
    await source.cubes.export(tmp_path / "shelf.cube", namespaces="shelf")
    await target.remember("shelf", "Something else.", memory_id="e")
    for dry_run in (True, False):
        outcome = await target.cubes.import_(tmp_path / "shelf.cube", dry_run=dry_run)
        assert not outcome.is_complete and outcome.memories.refused == 1
        assert "shelf/e" in outcome.memories.refusals[0].message
    assert (await target.get_memory("shelf", "e")).text == "Something else."


async def test_a_version_that_fails_the_gate_is_a_candidate_and_its_alias_is_refused(
    both: Both, tmp_path: Path
) -> None:
    source, target = both.source, both.target
    files = files_of(both.gateway, 7, FAILS)
    await source.modules.publish("poor", write_files(tmp_path / "poor", files))
    await source.modules.promote("poor", 1, force=True)
    await source.cubes.export(tmp_path / "poor.cube", modules="poor")
    outcome = await target.cubes.import_(tmp_path / "poor.cube", aliases=True)
    assert outcome.versions[0].here == "poor@1"
    [alias] = outcome.aliases
    assert alias.outcome == "refused" and "gate refuses" in alias.detail and not outcome.is_complete
    assert (await target.modules.get("poor")).aliases == ()
    await target.modules.delete("poor", 1)


async def test_a_signed_cube_is_checked_with_the_key_that_is_named(both: Both, tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("a.pem", "a.pub", "b.pem", "b.pub")]
    signer = new_keys(keys[0], keys[1])
    new_keys(keys[2], keys[3])
    cubes = both.source.cubes
    await cubes.export(tmp_path / "signed.cube", namespaces="shelf", sign=keys[0])
    await cubes.export(tmp_path / "plain.cube", namespaces="shelf")
    cube = await cubes.read(tmp_path / "signed.cube", verify=keys[1])
    assert cube.signer == signer and cube.is_verified
    with pytest.raises(CubeRefused, match=r"cube\.sig: is of another key"):
        await cubes.read(tmp_path / "signed.cube", verify=keys[3])
    with pytest.raises(CubeRefused, match=r"cube\.sig: is missing"):
        await cubes.import_(tmp_path / "plain.cube", verify=keys[1])


async def test_a_failed_export_leaves_what_was_there(both: Both, tmp_path: Path) -> None:
    (tmp_path / "x.cube").write_bytes(b"before")
    with pytest.raises(Exception, match="nowhere"):
        await both.source.cubes.export(tmp_path / "x.cube", namespaces="nowhere")
    assert os.listdir(tmp_path) == ["x.cube"]
    assert (tmp_path / "x.cube").read_bytes() == b"before"


async def test_modules_for_another_base_are_refused_with_the_way_out(both: Both, tmp_path: Path) -> None:
    file = write_cube(tmp_path / "foreign.cube", {}, versions=[version()])
    before = await both.target.modules.all()
    with pytest.raises(CubeRefused, match=r"cube\.json: tone@1 was made for .*--without-modules"):
        await both.target.cubes.import_(file)
    outcome = await both.target.cubes.import_(file, without_modules=True)
    assert outcome.versions == () and outcome.notes == ("the cube's 1 versions of modules are left out",)
    assert await both.target.modules.all() == before


async def test_a_module_of_another_kind_is_refused_before_anything_is_written(
    both: Both, tmp_path: Path
) -> None:
    file = await exported_as_expert(both, tmp_path)
    with pytest.raises(CubeRefused, match=r"modules/tone/module\.json: is a logit_expert"):
        await both.source.cubes.import_(file)


async def exported_as_expert(both: Both, folder: Path) -> Path:
    """A cube without versions, whose module is of another kind than the gateway's."""
    writer = CubeWriter(folder / "expert.cube")
    writer.add("modules/tone/module.json", encoded(CubeModule("tone", ModuleKind.LOGIT_EXPERT, ())))
    writer.end()
    manifest = (await both.source.cubes.read(write_cube(folder / "empty.cube", {}))).manifest
    entries = tuple(writer.entries)
    writer.close(replace(manifest, modules={"tone": ()}, entries=entries), None)
    writer.put()
    return folder / "expert.cube"
