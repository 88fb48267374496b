"""Compose modules in a Ray task: the replica, its engine and its streams stay free."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from memserve.errors import MemserveError
from memserve.worker.training.compose import Composed, Progress, compose
from memserve.worker.training.node_task import TaskLost, events_of
from memserve.worker.training.parent import Parent

# Where the task and the engine share cores, the engine goes first.
NICENESS = 10


class ComposeTaskLost(MemserveError):
    """The task's process or its machine has ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"composing ended before its result was there ({reason}); ask for it again, nothing was changed"
        )


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
    task = events_of(
        _compose,
        *(list(parents), method, rank, density, seed, max_rank),
        niceness=NICENESS,
        num_cpus=1,
        env={"OMP_NUM_THREADS": "1"},
    )
    try:
        async with aclosing(task) as events:
            async for event in events:
                yield event
                if isinstance(event, Composed):
                    # However the task ends now, the result is there.
                    return
    except TaskLost as error:
        raise ComposeTaskLost(str(error)) from None


def _compose(
    parents: Sequence[Parent], method: str, rank: int, density: float, seed: int, max_rank: int
) -> Iterator[Progress | Composed]:
    yield from compose(parents, method, rank=rank, density=density, seed=seed, max_rank=max_rank)
