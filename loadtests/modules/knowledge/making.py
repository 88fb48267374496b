"""Puts a world's facts into every rung of a running memserve, and measures what that takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from loadtests.harness.figures import report
from loadtests.modules.distil.worlds import Asked, World
from loadtests.modules.knowledge.asking import RECALL_COLUMN
from loadtests.modules.knowledge.rungs import (
    CARTRIDGE,
    EXPERT,
    LORA,
    LORA_RECALL,
    NAMESPACE,
    NOTHING,
    PINNED,
    RECALL,
    RUNGS,
    Costs,
    Rung,
)
from memserve.client import Answer, Client, FilePart, VersionContent
from memserve.domain import DistilChoice, DistilPlan, DistilProgress, ModuleKind, NewMemory, Recipe

WARM_TIMEOUT_S = 120.0
WARM_SHARE = 0.7
"""Of a prompt's tokens: the pinned passages. The rest is the question and what stands around it."""
SEEN_TIMEOUT_S = 30.0
LOOK_S = 0.05
T = TypeVar("T")
Clients = Mapping[str, Client]


def make_all(
    clients: Clients, world: World, model: Path, scratch: Path, recipe: Recipe, seed: int
) -> dict[Rung, Costs]:
    """Remember, pin, distil and publish. clients: by tenant."""
    costs = {rung: Costs() for rung in RUNGS}
    costs[NOTHING] = Costs(resident_bytes=0.0, make_s=0.0, make_cpu_s=0.0, change_s=0.0, erase_s=0.0)
    for rung in (RECALL, PINNED):
        costs[rung].make_s, _ = _timed(_remember, clients[rung.tenant], world, rung.pins)
    usage = clients[RECALL.tenant].memory_usage()
    costs[RECALL].resident_bytes = float(sum(each.bytes for each in usage.namespaces))
    warm_s, warm = _timed(_until_warm, clients[PINNED.tenant], world)
    costs[PINNED].make_s = (costs[PINNED].make_s or 0.0) + warm_s
    costs[PINNED].resident_bytes = float(warm.usage.cached.total * kv_bytes_per_token(model))
    _remember(clients[LORA.tenant], world, pinned=False)
    for rung, kind in ((LORA, ModuleKind.LORA), (CARTRIDGE, ModuleKind.CARTRIDGE)):
        costs[rung] = _distilled(clients[rung.tenant], rung, kind, recipe, seed)
    costs[LORA_RECALL] = Costs(
        (costs[LORA].resident_bytes or 0.0) + (costs[RECALL].resident_bytes or 0.0),
        (costs[LORA].make_s or 0.0) + (costs[RECALL].make_s or 0.0),
        costs[LORA].make_cpu_s,
    )
    costs[EXPERT] = _expert(clients[EXPERT.tenant], model, scratch, costs[LORA])
    return costs


def change_and_erase(clients: Clients, world: World, costs: Mapping[Rung, Costs]) -> None:
    """Change one fact, and erase another one, by every rung. A module's answer to either is another module:
    until it is made, the newer text wins, and an erased fact is answered by no version.
    """
    questions = [each for each in world.columns[RECALL_COLUMN] if each.with_memory]
    changed, erased = questions[0], questions[-1]
    for rung in (RECALL, PINNED):
        client = clients[rung.tenant]
        said = changed.with_memory.replace(changed.right[0], erased.right[0])
        costs[rung].change_s = _timed(_change, client, world, rung, changed, said)[0]
        costs[rung].erase_s = _timed(_erase, client, world, rung, erased)[0]
    retired_s, _ = _timed(clients[LORA.tenant].erase_memory, NAMESPACE, _id(world, erased))
    for rung in (CARTRIDGE, LORA, LORA_RECALL, EXPERT):
        costs[rung].change_s = costs[rung].make_s
        costs[rung].erase_s = retired_s
    costs[LORA_RECALL].change_s = costs[RECALL].change_s


def kv_bytes_per_token(model: Path) -> int:
    from memserve.model.files import open_model

    return open_model(model).kv_bytes_per_token


def _timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    started_s = time.monotonic()
    result = work(*arguments)
    return time.monotonic() - started_s, result


def _remember(client: Client, world: World, pinned: bool) -> None:
    memories = [
        NewMemory(NAMESPACE, text, memory_id=f"m{place}", pinned=pinned)
        for place, text in enumerate(world.memories)
    ]
    refused = [result for result in client.remember_many(memories) if result.refusal]
    if refused:
        raise RuntimeError(f"{len(refused)} memories are refused: {refused[0].refusal}")


def _id(world: World, asked: Asked) -> str:
    return f"m{world.memories.index(asked.with_memory)}"


def _until_warm(client: Client, world: World) -> Answer:
    """Ask until the pinned passages are not computed any more. Raises RuntimeError."""
    deadline_s = time.monotonic() + WARM_TIMEOUT_S
    questions = world.columns[RECALL_COLUMN]
    for number in range(1 << 30):
        asked = questions[number % len(questions)]
        answer = client.generate(asked.question, max_tokens=1, **PINNED.options(reads=False))
        if answer.usage.cached.total >= WARM_SHARE * answer.usage.prompt_tokens:
            return answer
        if time.monotonic() > deadline_s:
            break
        time.sleep(LOOK_S)
    raise RuntimeError("the pinned passages did not become warm")


def _distilled(client: Client, rung: Rung, kind: ModuleKind, recipe: Recipe, seed: int) -> Costs:
    """A version by memserve's own distillation."""
    took: list[DistilProgress] = []

    def tell(event: DistilPlan | DistilProgress) -> None:
        if isinstance(event, DistilProgress):
            took.append(event)
            if event.done % 25 == 0:
                report(f"{rung.name}: {event.stage} {event.done}/{event.total}, {event.cpu_s:.0f} s")

    make_s, version = _timed(
        lambda: client.modules.distil(
            rung.module, DistilChoice((NAMESPACE,)), kind=kind, recipe=recipe, seed=seed, progress=tell
        )
    )
    if version is None:
        raise RuntimeError(f"the distillation of {rung.module} was stopped")
    gate = "no gate" if version.gate is None else "passed" if version.gate.passed else "refused by the gate"
    return Costs(
        float(version.size_bytes), make_s, max((each.cpu_s for each in took), default=0.0), notes=[gate]
    )


def _expert(client: Client, model: Path, scratch: Path, lora: Costs) -> Costs:
    """The LoRA, added to a copy of the model that decodes beside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def publish() -> int:
        adapter, merged = scratch / "adapter", scratch / "expert"
        _download(client, f"{LORA.module}@1", adapter)
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        whole: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
        whole.save_pretrained(str(merged), safe_serialization=True)
        (merged / "generation_config.json").unlink(missing_ok=True)
        document = {"kind": "logit_expert", "anti_expert": "base"}
        (merged / "expert_config.json").write_text(json.dumps(document), encoding="utf-8")
        return client.modules.publish(EXPERT.module, merged).size_bytes

    make_s, size = _timed(publish)
    return Costs(float(size), (lora.make_s or 0.0) + make_s, lora.make_cpu_s)


def _download(client: Client, reference: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for part in client.modules.read(reference):
        match part:
            case FilePart(name, _, content):
                with (folder / name).open("ab") as file:
                    file.write(content)
            case VersionContent():
                pass


def _change(client: Client, world: World, rung: Rung, asked: Asked, said: str) -> None:
    """Change a memory's text, and ask until it stands in the prompt."""
    client.update_memory(NAMESPACE, _id(world, asked), text=said)
    deadline_s = time.monotonic() + SEEN_TIMEOUT_S
    while True:
        answer = client.generate(asked.question, max_tokens=1, **rung.options(reads=False))
        if any(hit.memory.text == said for hit in answer.route.passages):
            break
        if time.monotonic() > deadline_s:
            raise RuntimeError("the changed memory is not recalled")
        time.sleep(LOOK_S)
    if rung.pins:
        _until_warm(client, world)


def _erase(client: Client, world: World, rung: Rung, asked: Asked) -> None:
    """Erase a memory, and see that it is recalled no more."""
    memory_id = _id(world, asked)
    client.erase_memory(NAMESPACE, memory_id)
    answer = client.generate(asked.question, max_tokens=1, **rung.options(reads=False))
    if any(hit.memory.memory_id == memory_id for hit in answer.route.passages):
        raise RuntimeError("an erased memory is recalled")
    if rung.pins:
        _until_warm(client, world)
