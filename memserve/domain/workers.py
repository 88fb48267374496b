"""What a worker tells the registry."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.prefixes import CacheLayout


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """What a worker says of itself in the registry."""

    worker_id: str
    address: str
    """host:port of the worker's gRPC data plane."""
    metrics_address: str
    pid: int
    """Of the process that owns the engine."""
    model: str
    model_digest: str
    tokenizer_digest: str
    namespace: str
    block_tokens: int
    blocks_per_chunk: int
    """The three are the worker's CacheLayout."""
    max_context_tokens: int
    max_concurrent: int
    started_s: float
    """Seconds since the epoch."""
    shares_kv: bool = True
    """False when the worker's golden prefix came back different. It then neither stores KV in Redis nor loads
    any."""
    limits: str = ""
    """Which parts of memserve the worker does not do, and why, for people; "" for none."""

    @property
    def layout(self) -> CacheLayout:
        return CacheLayout(self.namespace, self.block_tokens, self.blocks_per_chunk)
