"""Distil in a Ray task, which has a process of its own at a low priority: the engine goes first.

A task that is killed is started again, and goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from memserve.domain import DistilProgress
from memserve.errors import InvalidModule, MemserveError
from memserve.worker.training.distil.kept import folder_of
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.node_task import TaskLost, events_of

log = logging.getLogger("memserve.worker")

NICENESS = 15
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
RESTARTS = 3
"""Of a task that dies, with a step between that was taken."""
KEPT_FOLDERS, KEPT_S = 8, 7 * 86_400.0
"""Checkpoints of trainings that have not ended."""


class DistilTaskLost(MemserveError):
    """The task's process, or its machine, has ended again and again."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"distilling ended before its result was there ({reason}); ask for it again, and it goes on from "
            "its checkpoint"
        )


async def distil_in_ray(order: DistilOrder, root: Path) -> AsyncGenerator[DistilProgress | Distilled, None]:
    """`distil` in a Ray task on this node, with the checkpoints in a folder of `root`.

    Close the iterator to cancel the task; its checkpoint stays. Ray must be initialised. Raises InvalidModule
    for what `distil` refuses, and DistilTaskLost.
    """
    folder = folder_of(root, order.digest)
    _sweep(root, folder)
    restarts, last_step = 0, -1
    while True:
        step = last_step
        # It takes none of the node's CPUs: composing would wait for its end.
        task = events_of(_distil, order, folder, niceness=NICENESS, num_cpus=0, env=ENVIRONMENT)
        try:
            async with contextlib.aclosing(task) as events:
                async for event in events:
                    if isinstance(event, DistilProgress):
                        step = max(step, event.done)
                    yield event
                    if isinstance(event, Distilled):
                        # A task that is killed now is not begun again: there would be a second result.
                        break
        except InvalidModule:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except TaskLost as error:
            restarts += 1
            log.warning("distilling was lost (%s), for the %d. time", error, restarts)
            if restarts > RESTARTS or step <= last_step:
                raise DistilTaskLost(str(error)) from None
            last_step = step
            continue
        # The caller has the result.
        shutil.rmtree(folder, ignore_errors=True)
        return


def _distil(order: DistilOrder, folder: Path) -> Iterator[DistilProgress | Distilled]:
    from memserve.worker.training.distil.distil import distil

    yield from distil(order, folder)


def _sweep(root: Path, folder: Path) -> None:
    """Remove the checkpoints that nobody went on with: old ones, and all but the newest few."""
    others = [other for other in root.glob("*") if other.is_dir() and other != folder]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for place, other in enumerate(others):
        if place >= KEPT_FOLDERS - 1 or time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
