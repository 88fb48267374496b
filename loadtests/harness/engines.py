"""Real vLLM engines for the benchmarks, with the settings of memserve's workers on the CPU.

`BenchEngine` has a model of a 0.5B shape with random weights. The engine on the demo model is in
`demo_engine.py`.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memserve.kv.keys import HASH_ALGORITHM

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.lora.request import LoRARequest

VOCABULARY_TOKENS = 32768
# Qwen2.5-0.5B's shape: 24 layers, hidden 896, 2 KV heads of 64; in bfloat16 12 KiB of KV a token.
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY_TOKENS,
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
HOST_BYTES = 256 << 20


def prepare_environment() -> None:
    """Before vLLM is imported: every engine has the same thread binding, and nothing is sent anywhere."""
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
    """A model directory without weights. vLLM makes the weights up, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return folder


def random_prompt(seed: int, tokens: int) -> list[int]:
    return random.Random(seed).choices(range(100, VOCABULARY_TOKENS), k=tokens)


def engine_settings() -> dict[str, Any]:
    """Arguments of vLLM's engine that the engines of all benchmarks share."""
    from memserve.worker.engine.cpu import CpuExecutor

    return {
        "block_size": BLOCK_TOKENS,
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "prefix_caching_hash_algo": HASH_ALGORITHM,
        "disable_log_stats": True,
        "distributed_executor_backend": CpuExecutor,
    }


class Engine:
    """A vLLM engine, its core in a process of its own. `prepare_environment` comes first."""

    def __init__(self, model: Path, settings: Mapping[str, Any]) -> None:
        """settings: arguments of vLLM's engine, beside or in the place of `engine_settings`."""
        from vllm import LLM

        self.llm = LLM(str(model), **{**engine_settings(), **settings})

    def output(
        self, token_ids: Sequence[int], params: SamplingParams, lora: LoRARequest | None = None
    ) -> RequestOutput:
        """What vLLM answers to one prompt."""
        prompt: Any = {"prompt_token_ids": list(token_ids)}
        (output,) = self.llm.generate([prompt], params, lora_request=lora, use_tqdm=False)
        return output

    def forget(self) -> bool:
        """Drop every prefix in the engine and in its host memory. False: not all were dropped."""
        return bool(self.llm.reset_prefix_cache(reset_connector=True))

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


class BenchEngine(Engine):
    """An engine on a model of `write_shape`, with the Redis tier where a Redis is given."""

    def __init__(
        self,
        model: Path,
        *,
        redis_url: str = "",
        transfer: KVTransferConfig | None = None,
        vllms_executor: bool = False,
    ) -> None:
        """transfer: another store than redis_url's. vllms_executor: the executor that vLLM itself chooses
        on the CPU. It has the model in a process of its own.
        """
        from memserve.worker.kv.offload import chunk_blocks, kv_transfer_config
        from memserve.worker.kv.tier_settings import RedisTierSettings

        blocks_per_chunk = chunk_blocks(kv_bytes_per_token=KV_BYTES_PER_TOKEN, block_size_tokens=BLOCK_TOKENS)
        self.chunk_tokens = BLOCK_TOKENS * blocks_per_chunk
        if redis_url:
            transfer = kv_transfer_config(
                platform="cpu",
                tier=RedisTierSettings(redis_url=redis_url, namespace=NAMESPACE),
                host_bytes=HOST_BYTES,
                blocks_per_chunk=blocks_per_chunk,
            )
        settings: dict[str, Any] = {
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
            "max_model_len": 8192,
            "max_num_seqs": 4,
            "kv_cache_memory_bytes": 512 << 20,
            "kv_transfer_config": transfer,
        }
        if vllms_executor:
            settings["distributed_executor_backend"] = None
        super().__init__(model, settings)

    def first_token(self, prompt: Sequence[int]) -> tuple[float, int]:
        """Returns the seconds to the first token and how many prompt tokens were cached."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
        started_s = time.perf_counter()
        output = self.output(prompt, params)
        return time.perf_counter() - started_s, output.num_cached_tokens or 0
