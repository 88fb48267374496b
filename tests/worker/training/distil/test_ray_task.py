"""Distilling in a Ray task: a task that is killed goes on from its checkpoint, and refusals come back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from memserve.demo import MODEL_DIR
from memserve.domain import DistilProgress, Recipe
from memserve.errors import InvalidModule
from memserve.worker.fleet.local_ray import private_ray_dir, remove_ray_dir, start_local_ray
from memserve.worker.training.distil import ray_task
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.ray_task import distil_in_ray
from memserve.worker.training.node_task import TaskLost

pytestmark = pytest.mark.ray

TEXTS = (
    "The captain of Winter Osprey is Bella Engel.",
    "For Fern Dish, the observer is Zoe Berg.",
    "Clover Ranch has the animal lynx.",
    "Note: the code of South Archive is 8351.",
)
# Long enough for a checkpoint in the middle, after ten processor seconds, on a fast machine too.
SHORT = Recipe(steps=45, rows=6, fresh=0.2, rank=4, stop_loss=0.0)
ORDER = DistilOrder(MODEL_DIR, TEXTS, recipe=SHORT, seed=3)


@pytest.fixture(scope="module")
def ray_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local Ray with one CPU."""
    folder = private_ray_dir(tmp_path_factory.mktemp("ray"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        start_local_ray(folder, 1)
        yield str(folder)
        ray.shutdown()
    remove_ray_dir(folder)


def task_pids() -> list[int]:
    """Of this process's own that run the task: Ray calls them by its function's name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == ["ray::distil"]:
                found.append(process.pid)
    return found


def has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("*/training.safetensors"))


@pytest.mark.usefixtures("ray_dir")
async def test_a_task_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    killed, steps = False, []
    results = []
    async with aclosing(distil_in_ray(ORDER, tmp_path)) as events:
        async for event in events:
            if isinstance(event, Distilled):
                results.append(event)
                continue
            assert isinstance(event, DistilProgress)
            steps.append((event.stage, event.done))
            if has_checkpoint(tmp_path) and not killed:
                [pid] = task_pids()
                assert os.getpriority(os.PRIO_PROCESS, pid) == ray_task.NICENESS
                os.kill(pid, signal.SIGKILL)
                killed = True
    [result] = results
    assert killed
    assert result.report["resumed"] == 1
    assert steps.count(("teaching", 0)) == 2
    assert set(result.files) == {"adapter_config.json", "adapter_model.safetensors", "probes.json"}
    assert not has_checkpoint(tmp_path)


async def test_a_task_that_is_killed_behind_its_result_gives_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed_at_its_end(*_: object, **__: object) -> AsyncGenerator[object, None]:
        yield DistilProgress("training", 20, 20)
        yield Distilled({"adapter_config.json": b"{}"}, {})
        raise TaskLost("WorkerCrashedError")

    monkeypatch.setattr(ray_task, "events_of", killed_at_its_end)
    async with aclosing(distil_in_ray(ORDER, tmp_path)) as events:
        assert [type(event) async for event in events] == [DistilProgress, Distilled]


@pytest.mark.usefixtures("ray_dir")
async def test_a_refusal_comes_back_with_its_field(tmp_path: Path) -> None:
    order = dataclasses.replace(ORDER, texts=("Hello.", "They left.", "Why?", "It rains."))
    async with aclosing(distil_in_ray(order, tmp_path)) as events:
        with pytest.raises(InvalidModule, match="memories: none states a fact"):
            await anext(events)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}").mkdir()
        os.utime(tmp_path / f"{number:02}", (2e9 + number, 2e9 + number))
    os.utime(tmp_path / "11", (0, 0))
    ray_task._sweep(tmp_path, tmp_path / "10")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "03", "04", "05", "06", "07", "08", "09", "10",
    ]  # fmt: skip
