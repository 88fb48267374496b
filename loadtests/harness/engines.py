"""Real vLLM engines for the benchmarks of activation memory, in processes of their own, on a model of a 0.5B
shape with random weights.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

# Qwen2.5-0.5B's shape: 24 layers, hidden 896, 2 KV heads of 64; in bfloat16 12 KiB of KV a token.
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 32768,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KV_BYTES_PER_TOKEN = 24 * 2 * 2 * 64 * 2
BLOCK_TOKENS = 32
NAMESPACE = "cd" * 32


def prepare_environment() -> None:
    """Before vLLM is imported: the same thread binding for every engine, and nothing sent anywhere."""
    os.environ.pop("PYTHONHASHSEED", None)
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        HF_HUB_OFFLINE="1",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
    )


def write_shape(folder: Path) -> Path:
    """A model directory without weights: vLLM makes them up, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return folder


def random_prompt(seed: int, tokens: int) -> list[int]:
    return random.Random(seed).choices(range(100, SHAPE["vocab_size"]), k=tokens)  # type: ignore[call-overload,no-any-return]


class BenchEngine:
    """One engine with prefix caching; with the Redis tier where it is given a Redis. `prepare_environment`
    comes first.
    """

    def __init__(
        self,
        model: Path,
        *,
        redis_url: str = "",
        host_bytes: int = 256 << 20,
        transfer: Any = None,
        vllms_executor: bool = False,
        **tier: Any,
    ) -> None:
        """transfer: a vLLM KVTransferConfig of another store, in the place of redis_url's. vllms_executor:
        the one that vLLM chooses on the CPU, with the model in a process of its own, and not memserve's.
        """
        from vllm import LLM

        from memserve.worker.engine.cpu import CpuExecutor
        from memserve.worker.kv.offload import chunk_blocks, kv_transfer_config
        from memserve.worker.kv.tier_settings import RedisTierSettings

        blocks_per_chunk = chunk_blocks(kv_bytes_per_token=KV_BYTES_PER_TOKEN, block_size_tokens=BLOCK_TOKENS)
        self.chunk_tokens = BLOCK_TOKENS * blocks_per_chunk
        if redis_url:
            transfer = kv_transfer_config(
                platform="cpu",
                tier=RedisTierSettings(redis_url=redis_url, namespace=NAMESPACE, **tier),
                host_bytes=host_bytes,
                blocks_per_chunk=blocks_per_chunk,
            )
        self.llm = LLM(
            model=str(model),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=8192,
            max_num_seqs=4,
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=512 << 20,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            disable_log_stats=True,
            distributed_executor_backend=None if vllms_executor else CpuExecutor,
            kv_transfer_config=transfer,
        )

    def first_token(self, prompt: list[int]) -> tuple[float, int]:
        """Returns the seconds to the first token and how many prompt tokens were cached."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
        started_s = time.perf_counter()
        (output,) = self.llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)  # type: ignore[list-item]
        return time.perf_counter() - started_s, output.num_cached_tokens or 0

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
