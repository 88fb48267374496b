"""What a worker tells the registry."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.prefixes import CacheLayout


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """What a worker says of itself in the registry.

    address: host:port of its gRPC data plane. pid: of the process that owns the engine.
    namespace, block_tokens, blocks_per_chunk: its CacheLayout.
    shares_kv: False when its golden prefix came back different, so that it neither stores KV in Redis nor
    loads any. limits: what of memserve it does not do, and why, for people; "" for nothing.
    """

    worker_id: str
    address: str
    metrics_address: str
    pid: int
    model: str
    model_digest: str
    tokenizer_digest: str
    namespace: str
    block_tokens: int
    blocks_per_chunk: int
    max_context_tokens: int
    max_concurrent: int
    started_s: float
    shares_kv: bool = True
    limits: str = ""

    @property
    def layout(self) -> CacheLayout:
        return CacheLayout(self.namespace, self.block_tokens, self.blocks_per_chunk)
