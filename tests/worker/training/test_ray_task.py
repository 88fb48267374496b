"""Composing in a Ray task: progress comes as it goes, refusals come back, and a closed iterator ends the
task.
"""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from memserve.demo import ADAPTERS_DIR
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE
from memserve.worker.fleet.local_ray import private_ray_dir, remove_ray_dir, start_local_ray
from memserve.worker.training.compose import Composed, Progress, compose
from memserve.worker.training.node_task import TaskLost, events_of
from memserve.worker.training.parent import Parent
from memserve.worker.training.ray_task import ComposeTaskLost, compose_in_ray

pytestmark = pytest.mark.ray

BOTH = [Parent(name, ADAPTERS_DIR / name) for name in ("harbour", "observatory")]


@pytest.fixture(scope="module")
def ray_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local Ray with one CPU. Gives its folder."""
    folder = private_ray_dir(tmp_path_factory.mktemp("ray"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        start_local_ray(folder, 1)
        yield str(folder)
        ray.shutdown()
    remove_ray_dir(folder)


@pytest.fixture(scope="module")
def slow_parents(tmp_path_factory: pytest.TempPathFactory) -> list[Parent]:
    """Two LoRAs of which TIES takes many seconds."""
    made = []
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp(name)
        tensors = {}
        for layer in range(40):
            stem = f"base_model.model.model.layers.{layer}.mlp.up_proj"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, 1024)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(1024, 4)
        (folder / WEIGHTS_FILE).write_bytes(save(tensors))
        (folder / CONFIG_FILE).write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}', encoding="utf-8")
        made.append(Parent(name, folder))
    return made


async def cpu_is_free() -> None:
    import ray

    while ray.available_resources().get("CPU", 0) < 1:
        await asyncio.sleep(0.1)


def task_processes(ray_dir: str, name: str = "compose") -> list[int]:
    """The processes of this Ray that run the task: children of its raylet, which names its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"ray::{name}".encode() in (entry / "cmdline").read_bytes():
                parent = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]
                if ray_dir.encode() in Path("/proc", parent, "cmdline").read_bytes():
                    found.append(int(entry.name))
        except OSError:  # it has just ended
            pass
    return found


async def test_the_task_streams_its_progress_and_gives_what_compose_gives(ray_dir: str) -> None:
    steps = [step async for step in compose_in_ray(BOTH, "ties", rank=16, density=0.3, max_rank=16)]
    assert [step for step in steps if isinstance(step, Progress)] == [
        Progress(done, 28) for done in range(29)
    ]
    made, here = steps[-1], list(compose(BOTH, "ties", rank=16, density=0.3, max_rank=16))[-1]
    assert isinstance(made, Composed) and isinstance(here, Composed)
    assert made.files[CONFIG_FILE] == here.files[CONFIG_FILE]
    assert made.recipe["measured"]["loss"] == pytest.approx(here.recipe["measured"]["loss"])
    await cpu_is_free()


async def test_a_refusal_comes_back_as_it_was_raised(ray_dir: str) -> None:
    with pytest.raises(InvalidModule) as refused:
        async for _ in compose_in_ray(BOTH, "cat", max_rank=16):
            pass
    assert refused.value.field == "rank"
    assert refused.value.rule == "32 is above the workers' limit of 16; ask for rank=16"


async def test_a_task_that_has_said_all_waits_to_be_ended(ray_dir: str) -> None:
    """Ray ends the process that cancels a task in the moment in which the task ends by itself."""
    async with aclosing(events_of(range, 1, niceness=10, num_cpus=1, env={})) as events:
        assert await anext(events) == 0
        await asyncio.sleep(1)
        assert len(task_processes(ray_dir, "range")) == 1
    await cpu_is_free()
    assert task_processes(ray_dir, "range") == []


async def test_a_task_that_fails_is_lost_and_says_by_what(ray_dir: str) -> None:
    async with aclosing(events_of(int, "seven", niceness=10, num_cpus=1, env={})) as events:
        with pytest.raises(TaskLost, match="ValueError"):
            await anext(events)
    await cpu_is_free()


async def test_a_closed_iterator_ends_the_task(ray_dir: str, slow_parents: list[Parent]) -> None:
    async with aclosing(compose_in_ray(slow_parents, "ties", rank=4, max_rank=16)) as steps:
        async for step in steps:
            assert isinstance(step, Progress)
            if step.done == 1:
                break
    await cpu_is_free()
    assert task_processes(ray_dir) == []


async def test_a_cancelled_caller_ends_the_task(ray_dir: str, slow_parents: list[Parent]) -> None:
    begun = asyncio.Event()

    async def consume() -> None:
        async for _ in compose_in_ray(slow_parents, "ties", rank=4, max_rank=16):
            begun.set()

    consumer = asyncio.create_task(consume())
    await begun.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await cpu_is_free()
    assert task_processes(ray_dir) == []


async def test_a_task_that_dies_is_said_to_be_lost(ray_dir: str, slow_parents: list[Parent]) -> None:
    async with aclosing(compose_in_ray(slow_parents, "ties", rank=4, max_rank=16)) as steps:
        assert await anext(steps) == Progress(0, 40)
        (pid,) = task_processes(ray_dir)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ComposeTaskLost, match="ask for it again"):
            [step async for step in steps]
    await cpu_is_free()
