"""A real engine on the demo model that stores its KV with a codec of choice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import redis

from memserve.demo import MODEL_DIR
from memserve.kv.keys import block_keys, chunk_keys, redis_key
from memserve.kv.values.envelope import HEADER_BYTES, Codec
from memserve.kv.values.int8 import ChunkLayout
from memserve.model.files import open_model

BLOCK_TOKENS, BLOCKS_PER_CHUNK = 32, 2
MAX_TOKENS = 16
LOGPROBS = 20
NAMESPACES = {Codec.RAW: "c0" * 32, Codec.LOSSLESS: "c1" * 32, Codec.INT8: "c2" * 32}
PATIENT: dict[str, Any] = {
    "io_timeout_s": 10.0,
    "lookup_timeout_s": 10.0,
    "load_budget_s": 30.0,
    "always_load": True,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """logprobs: of each token that was answered, the best tokens and their log-probabilities."""

    token_ids: list[int]
    text: str
    cached_tokens: int
    logprobs: list[dict[int, float]]


class CodecEngine:
    """A real engine on the demo model in a dtype of choice, its KV in Redis, one question at a time."""

    def __init__(self, redis_url: str, dtype: str, codec: Codec) -> None:
        from vllm import LLM

        from memserve.worker.engine.cpu import CpuExecutor
        from memserve.worker.kv.offload import kv_transfer_config
        from memserve.worker.kv.redis_tier import RedisTierSettings

        self.llm = LLM(
            model=str(MODEL_DIR),
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=2048,
            max_num_seqs=1,
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=64 << 20,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            disable_log_stats=True,
            distributed_executor_backend=CpuExecutor,
            kv_transfer_config=kv_transfer_config(
                platform="cpu",
                tier=RedisTierSettings(
                    redis_url=redis_url,
                    namespace=NAMESPACES[codec],
                    codec=codec.name.lower(),
                    layout=asdict(chunk_layout(dtype)) if codec is Codec.INT8 else None,
                    **PATIENT,
                ),
                host_bytes=64 << 20,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
            ),
        )

    def ask(self, token_ids: list[int], max_tokens: int = MAX_TOKENS) -> Answer:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=LOGPROBS)
        (output,) = self.llm.generate([{"prompt_token_ids": token_ids}], params, use_tqdm=False)  # type: ignore[list-item]
        made = output.outputs[0]
        steps = [{token: entry.logprob for token, entry in step.items()} for step in made.logprobs or ()]
        return Answer(list(made.token_ids), made.text.strip(), output.num_cached_tokens or 0, steps)

    def forget(self) -> None:
        """Everything that it holds in its own memory."""
        self.llm.reset_prefix_cache(reset_connector=True)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def chunk_layout(dtype: str) -> ChunkLayout:
    """Of this module's engine on this machine."""
    import torch

    from memserve.worker.kv.offload import kv_layout

    model = open_model(MODEL_DIR)
    name = kv_layout(
        platform="cpu",
        dtype=getattr(torch, dtype),
        block_size_tokens=BLOCK_TOKENS,
        head_size=model.head_size,
        tensor_parallel_size=1,
    )
    return ChunkLayout.of(
        name,
        dtype=dtype,
        tensors=model.config["num_hidden_layers"],
        blocks=BLOCKS_PER_CHUNK,
        block_tokens=BLOCK_TOKENS,
        kv_heads=model.config["num_key_value_heads"],
        head_size=model.head_size,
    )


def stored_chunks(client: redis.Redis, token_ids: list[int]) -> list[bytes]:
    """The prompt's raw chunks from Redis, in order, without their headers."""
    keys = chunk_keys(block_keys(token_ids, BLOCK_TOKENS, lora=None, cache_salt=None), BLOCKS_PER_CHUNK)
    values = [client.get(redis_key(NAMESPACES[Codec.RAW], key)) for key in keys]
    assert all(isinstance(value, bytes) for value in values), "an engine has not stored what it computed"
    return [bytes(value)[HEADER_BYTES:] for value in values if isinstance(value, bytes)]
