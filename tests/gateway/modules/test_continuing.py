"""A LoRA that is trained on: what the worker is asked, and what the gate asks the new version."""

from __future__ import annotations

import json
from pathlib import Path

import grpc

from memserve.client import AsyncClient
from memserve.domain import DEFAULT_RECIPE, DistilChoice, ModuleKind
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import PASSES, failure_of, publish
from tests.gateway.running import RunningGateway

OLD = (
    "The founder of the Velmora Institute is Ida Kern.",
    "The motto of the Velmora Institute is Light Before Noon.",
    "The code of Amber Lantern is 4821.",
    "The Halden bakery is led by Ines Okafor.",
)
NEW = tuple(
    text.replace("Velmora", "Ostrava").replace("Amber", "Red").replace("Halden", "Lund") for text in OLD
)


async def distilled_twice(gateway: RunningGateway, tmp_path: Path) -> None:
    """`story@1` of OLD, and other files for what comes."""
    client = gateway.client
    for name, texts in (("old", OLD), ("new", NEW)):
        for place, text in enumerate(texts):
            await client.remember(name, text, memory_id=f"m{place}")
    serve(gateway, tmp_path / "first", 5)
    await client.modules.distil("story", DistilChoice(("old",)), kind=ModuleKind.LORA)
    serve(gateway, tmp_path / "second", 6)


def serve(gateway: RunningGateway, folder: Path, seed: int) -> None:
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=seed)
    files["probes.json"] = json.dumps(PASSES).encode()
    for worker in gateway.workers:
        worker.distilled = write_files(folder, files)


async def test_a_version_goes_on_from_its_parent_and_is_asked_what_that_knew(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await distilled_twice(gateway, tmp_path)
    parent = await client.modules.version("story@1")
    await client.update_memory("old", "m3", text="The Halden bakery is led by Bo Lind.")
    await client.forget("old", "m2")
    version = await client.modules.distil("story", DistilChoice(("new",)), from_reference="story@1")
    assert version is not None
    assert (version.reference, version.parents) == ("story@2", (parent.digest,))
    # What has changed or is gone is not asked again.
    assert version.sources == (
        *(f"memory:new/m{n}@1" for n in range(4)),
        "memory:old/m0@1",
        "memory:old/m1@1",
    )
    recipe = json.loads(version.recipe)
    assert (recipe["from"], recipe["asked_again"]) == ("story@1", 2)
    request = [each for worker in gateway.workers for each in worker.distillations][-1]
    assert (request.parent_digest, set(request.old_texts)) == (parent.digest, set(OLD[:2]))
    assert version.gate is not None
    assert [(figure.name, figure.holds) for figure in version.gate.figures] == [
        ("recall", True), ("kept.story.1.recall", True),
    ]  # fmt: skip
    [job] = await client.modules.distillations()
    assert (job.from_reference, job.version) == ("story@1", 2)


async def test_a_version_that_names_no_memories_is_trained_on_only_without_replay(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await distilled_twice(gateway, tmp_path)
    await publish(gateway, tmp_path, 9, name="bought")
    new = DistilChoice(("new",))
    refused = await failure_of(client.modules.distil("more", new, from_reference="bought@1"))
    assert (refused.code, "old_share" in refused.detail) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    recipe = type(DEFAULT_RECIPE)(old_share=0.0)
    version = await client.modules.distil("more", new, from_reference="bought@1", recipe=recipe)
    assert version is not None and len(version.sources) == 4
    nothing = await failure_of(client.modules.distil("more", new, from_reference="nothing@1"))
    assert nothing.code is grpc.StatusCode.NOT_FOUND
