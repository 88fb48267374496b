"""The last guard of cartridges: no request is answered whose placeholders the engine computes.

`MemserveConnector` supplies the positions of a cartridge, so that this never happens. vLLM has ways past a
connector, however: for `prompt_logprobs` and `skip_reading_prefix_cache` it takes nothing that is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from memserve.worker.kv.connector import MemserveConnector

SCHEDULER = f"{__name__}.guarded_scheduler"
"""For AsyncEngineArgs.scheduler_cls."""


class GuardedScheduler(Scheduler):  # type: ignore[misc]
    """Ends requests in the step in which their placeholders would be computed.

    Their blocks were named for the cartridge when they were allocated, so the names are taken back, and the
    requests end that have taken these blocks for a prefix. The model still runs the step that was scheduled.
    Nobody gets its tokens, and nothing of it is stored.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        # Of these the next output tells their callers.
        self._ended: list[Request] = []

    def schedule(self, *arguments: Any, **keywords: Any) -> SchedulerOutput:
        scheduled = super().schedule(*arguments, **keywords)
        if isinstance(self.connector, MemserveConnector) and (wrong := self.connector.take_unsupplied()):
            self._end(wrong)
        return scheduled

    def update_from_output(self, *arguments: Any, **keywords: Any) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(*arguments, **keywords)
        for request in self._ended:
            told = outputs.setdefault(request.client_index, EngineCoreOutputs())
            told.outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    events=request.take_events(),
                    trace_headers=request.trace_headers,
                )
            )
        self._ended.clear()
        return outputs

    def _end(self, wrong: Mapping[str, int]) -> None:
        """wrong: by request, the first of its blocks that gets wrong KV."""
        blocks: set[int] = set()
        for request_id, first in wrong.items():
            for block_ids in self.kv_cache_manager.get_block_ids(request_id):
                blocks.update(block_ids[first:])
        self.kv_cache_manager.evict_blocks(blocks)
        sharing = [
            request_id
            for request_id in self.requests
            if any(blocks.intersection(ids) for ids in self.kv_cache_manager.get_block_ids(request_id))
        ]
        self._ended += self.finish_requests({*wrong, *sharing}, RequestStatus.FINISHED_ERROR)


class GuardedAsyncScheduler(GuardedScheduler, AsyncScheduler):  # type: ignore[misc]
    """The same over vLLM's scheduler that is a step ahead of the model."""


def guarded_scheduler(vllm_config: Any, **arguments: Any) -> GuardedScheduler:
    """Of the two kinds of schedulers, the one that vLLM would take."""
    ahead = vllm_config.scheduler_config.async_scheduling
    return (GuardedAsyncScheduler if ahead else GuardedScheduler)(vllm_config=vllm_config, **arguments)
