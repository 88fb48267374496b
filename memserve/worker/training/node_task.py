"""A generator in a Ray task on this node: it has a process of its own, at a low priority.

A task never ends by itself while somebody reads it: behind its last event it waits to be cancelled. Ray 2.60
has a moment between a task's reply and its completion in which cancelling ends the process that cancels, and
that is the one with the engine (`NormalTaskSubmitter::PushNormalTask` takes the task off those that are
executed, `CancelTask` fails it, and the check in `TaskManager::CompletePendingTask` does not hold).
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from memserve.errors import InvalidField, InvalidModule, MemserveError

T = TypeVar("T")

log = logging.getLogger("memserve.worker")

READ_WITHIN_S = 600.0
"""A last event that nobody reads holds the task's process for so long."""


class TaskLost(MemserveError):
    """The task's process or its machine has ended, or the task failed."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A refusal on its way to another process. The exceptions cannot be pickled: their constructors take
    other arguments than Exception's.
    """

    field: str
    rule: str


@dataclass(frozen=True, slots=True)
class _Failure:
    """What nobody foresaw."""

    kind: str
    trace: str


class _End:
    """There are no more events."""


async def events_of(
    function: Callable[..., Iterator[T]],
    *arguments: Any,
    niceness: int,
    num_cpus: int,
    env: Mapping[str, str],
) -> AsyncGenerator[T, None]:
    """What `function` yields in a Ray task on this node.

    Close the iterator to end the task, by force: it must hold nothing that is to be put away. Ray must be
    initialised; where `num_cpus` are not free, the task waits for them. Raises InvalidModule for what the
    function refuses, and TaskLost.

    niceness: of the task's process. env: of its environment, beside Ray's own.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(
        name=function.__name__.strip("_"),
        num_cpus=num_cpus,
        num_returns="streaming",
        max_retries=0,
        runtime_env={"env_vars": dict(env)},
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    )(_told)
    steps = task.remote(function, arguments, niceness)
    has_ended = False
    try:
        async for step in steps:
            event = await step
            match event:
                case _Refusal():
                    raise InvalidModule(event.field, event.rule)
                case _Failure():
                    log.warning("a task failed: %s", event.trace)
                    raise TaskLost(event.kind)
                case _End():
                    return
            yield event
    except RayError as error:
        has_ended = isinstance(error, RayTaskError)
        log.warning("a task was lost: %s", error)
        raise TaskLost(type(error).__name__) from None
    finally:
        if not has_ended:
            ray.cancel(steps, force=True)


def _told(
    function: Callable[..., Iterator[T]], arguments: tuple[Any, ...], niceness: int
) -> Iterator[T | _Refusal | _Failure | _End]:
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    try:
        yield from function(*arguments)
        yield _End()
    except (InvalidField, InvalidModule) as refusal:
        yield _Refusal(refusal.field, refusal.rule)
    except Exception as error:
        yield _Failure(type(error).__name__, traceback.format_exc())
    time.sleep(READ_WITHIN_S)
