"""Real vLLM engines for the benchmarks, with the settings of memserve's workers on the CPU.

`BenchEngine` has a model with the shape of a 0.5B model and random weights. The engine on the demo model is
in `demo_engine.py`.
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
# The shape of Qwen2.5-0.5B: 24 layers, hidden size 896, 2 KV heads of 64. In bfloat16 a token has 12 KiB of
# KV. The vocabulary and the context are smaller than Qwen2.5's.
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
    """Set the environment of the engines. This comes before vLLM is imported.

    Every engine then has the same thread binding, and no engine sends anything to the network.
    """
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
    """Write a model directory without weights. vLLM makes up the weights, the same weights every time."""
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
    """A vLLM engine whose core has its own process. `prepare_environment` comes first."""

    def __init__(self, model: Path, settings: Mapping[str, Any]) -> None:
        """settings: arguments of vLLM's engine. They go before `engine_settings`."""
        from vllm import LLM

        self.llm = LLM(str(model), **{**engine_settings(), **settings})

    def output(
        self, token_ids: Sequence[int], params: SamplingParams, lora: LoRARequest | None = None
    ) -> RequestOutput:
        """vLLM's answer to one prompt."""
        prompt: Any = {"prompt_token_ids": list(token_ids)}
        (output,) = self.llm.generate([prompt], params, lora_request=lora, use_tqdm=False)
        return output

    def forget(self) -> bool:
        """Drop every prefix in the engine and in its host memory. False: some prefixes were not dropped."""
        return bool(self.llm.reset_prefix_cache(reset_connector=True))

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


class BenchEngine(Engine):
    """An engine on a model of `write_shape`. With a `redis_url` it has the Redis tier."""

    def __init__(
        self,
        model: Path,
        *,
        redis_url: str = "",
        transfer: KVTransferConfig | None = None,
        vllms_executor: bool = False,
    ) -> None:
        """transfer: another KV store. It is used only without a redis_url.

        vllms_executor: use the executor that vLLM chooses on the CPU. It runs the model in its own process.
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
        """Returns the seconds to the first token, and the number of cached prompt tokens."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
        started_s = time.perf_counter()
        output = self.output(prompt, params)
        return time.perf_counter() - started_s, output.num_cached_tokens or 0
