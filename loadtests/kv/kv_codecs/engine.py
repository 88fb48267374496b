"""A real engine on the demo model that stores its KV with a codec of choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import redis

from loadtests.harness.demo_engine import BLOCKS_PER_CHUNK, PATIENT, DemoEngine, demo_transfer
from loadtests.harness.engines import BLOCK_TOKENS
from memserve.demo import MODEL_DIR
from memserve.kv.keys import block_keys, chunk_keys, redis_key
from memserve.kv.values.envelope import HEADER_BYTES, Codec
from memserve.kv.values.int8 import ChunkLayout
from memserve.model.files import open_model

MAX_TOKENS = 16
LOGPROBS = 20
NAMESPACES = {Codec.RAW: "c0" * 32, Codec.LOSSLESS: "c1" * 32, Codec.INT8: "c2" * 32}


@dataclass(frozen=True, slots=True)
class Answer:
    """logprobs: of each token that was answered, the best tokens and their log-probabilities."""

    token_ids: list[int]
    text: str
    cached_tokens: int
    logprobs: list[dict[int, float]]


class CodecEngine(DemoEngine):
    """A real engine on the demo model in a dtype of choice, its KV in Redis, one question at a time."""

    def __init__(self, redis_url: str, dtype: str, codec: Codec) -> None:
        layout = asdict(chunk_layout(dtype)) if codec is Codec.INT8 else None
        tier = {"codec": codec.name.lower(), "layout": layout, **PATIENT}
        super().__init__(
            {
                "dtype": dtype,
                "max_num_seqs": 1,
                "kv_cache_memory_bytes": 64 << 20,
                **demo_transfer(redis_url, NAMESPACES[codec], tier),
            }
        )

    def ask(self, token_ids: Sequence[int]) -> Answer:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logprobs=LOGPROBS)
        output = self.output(token_ids, params)
        answer = output.outputs[0]
        steps = [{token: entry.logprob for token, entry in step.items()} for step in answer.logprobs or ()]
        return Answer(list(answer.token_ids), answer.text.strip(), output.num_cached_tokens or 0, steps)


def chunk_layout(dtype: str) -> ChunkLayout:
    """The layout of a chunk that an engine of this dtype writes on this machine."""
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


def stored_chunks(client: redis.Redis, token_ids: Sequence[int]) -> list[bytes]:
    """The prompt's raw chunks from Redis, in order, without their headers."""
    keys = chunk_keys(block_keys(token_ids, BLOCK_TOKENS, lora=None, cache_salt=None), BLOCKS_PER_CHUNK)
    values = [client.get(redis_key(NAMESPACES[Codec.RAW], key)) for key in keys]
    assert all(isinstance(value, bytes) for value in values), "an engine has not stored what it computed"
    return [bytes(value)[HEADER_BYTES:] for value in values if isinstance(value, bytes)]
