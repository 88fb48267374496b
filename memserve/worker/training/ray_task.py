"""Compose modules in a Ray task, which has a process of its own: the replica, its engine and its streams
stay free.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from memserve.errors import InvalidModule, MemserveError
from memserve.worker.training.compose import Composed, Progress, compose
from memserve.worker.training.parent import Parent

log = logging.getLogger("memserve.worker")

# Where the task and the engine share cores, the engine goes first.
NICENESS = 10


class ComposeTaskLost(MemserveError):
    """The task's process or its machine has ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"composing ended before its result was there ({reason}); ask for it again, nothing was changed"
        )


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An InvalidModule on its way to another process. The exception itself cannot be pickled: its constructor
    takes other arguments than Exception's.
    """

    field: str
    rule: str


async def compose_in_ray(
    parents: Sequence[Parent],
    method: str,
    *,
    rank: int = 0,
    density: float = 0.0,
    seed: int = 0,
    max_rank: int,
) -> AsyncGenerator[Progress | Composed, None]:
    """`compose` in a Ray task on this node, where the parents' folders are.

    Close the iterator to cancel the task. Ray must be initialised, with a CPU to spare: the task waits for
    it. Raises InvalidModule as `compose` does, and ComposeTaskLost.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(
        num_cpus=1,
        num_returns="streaming",
        max_retries=0,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    )(_compose)
    steps = task.remote(list(parents), method, rank, density, seed, max_rank)
    try:
        async for step in steps:
            event = await step
            if isinstance(event, _Refusal):
                raise InvalidModule(event.field, event.rule)
            yield event
            if isinstance(event, Composed):
                # However the task ends now, the result is there.
                return
    except RayError as error:
        log.warning("composing was lost: %s", error)
        raise ComposeTaskLost(type(error).__name__) from None
    finally:
        # By force, because a matrix may take seconds and the task holds nothing to be put away. This does
        # nothing to a task that has ended.
        ray.cancel(steps, force=True)


def _compose(
    parents: Sequence[Parent], method: str, rank: int, density: float, seed: int, max_rank: int
) -> Iterator[Progress | Composed | _Refusal]:
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    try:
        yield from compose(parents, method, rank=rank, density=density, seed=seed, max_rank=max_rank)
    except InvalidModule as refusal:
        yield _Refusal(refusal.field, refusal.rule)
