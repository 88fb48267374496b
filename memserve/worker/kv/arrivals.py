"""What a load hands from the scheduler to the worker while its chunks are still on their way from Redis."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeAlias

from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

Arrival: TypeAlias = Future[bool]
"""Whether a chunk has come from Redis and was verified.

A thread of the Redis tier's load pool sets it. The scheduler's thread and the worker's read it.
"""


class ArrivingLoadSpec(CPULoadStoreSpec):  # type: ignore[misc]
    """Host chunks to load from, some of them still on their way. It stays within one process."""

    def __init__(self, chunk_ids: list[int], arrivals: Sequence[Arrival | None]) -> None:
        """arrivals: one for each chunk; None for a chunk that is in host memory already."""
        super().__init__(chunk_ids)
        self.arrivals = arrivals
