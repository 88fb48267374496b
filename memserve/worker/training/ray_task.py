"""Compose modules in a Ray task of its own process: the replica, its engine and its streams stay free."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from memserve.errors import InvalidModule, MemserveError
from memserve.worker.training.compose import Composed, Parent, Progress, compose

log = logging.getLogger("memserve.worker")

# The engine goes first where they share cores.
NICENESS = 10


class ComposeTaskLost(MemserveError):
    """The task's process ended, or its machine did."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"composing ended before its result was there ({reason}); ask for it again, nothing was changed"
        )


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An InvalidModule on its way to another process: an exception with arguments of its own cannot be
    pickled.
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
    """`compose` in a Ray task on this node, where the parents' folders are. Close the iterator to cancel the
    task.

    Ray must be initialised, with a CPU to spare: the task waits for one.
    Raises InvalidModule as `compose` does, and ComposeTaskLost.
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
    except RayError as error:
        log.warning("composing was lost: %s", error)
        raise ComposeTaskLost(type(error).__name__) from None
    finally:
        # Does nothing to a task that has ended. By force, because a matrix may take seconds, and the task
        # holds nothing to be put away.
        ray.cancel(steps, force=True)


def _compose(
    parents: Sequence[Parent], method: str, rank: int, density: float, seed: int, max_rank: int
) -> Iterator[Progress | Composed | _Refusal]:
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    try:
        yield from compose(parents, method, rank=rank, density=density, seed=seed, max_rank=max_rank)
    except InvalidModule as refusal:
        yield _Refusal(refusal.field, refusal.rule)
