"""A vLLM engine in its own processes with the Redis tier, over a tiny random model."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from memserve.kv.keys import block_keys, chunk_keys
from tests.worker.kv.tier import NAMESPACE
from tests.worker.kv.tier_collectors import unregister_tier_metrics

VOCABULARY = 256
MAX_TOKENS = 8
ENGINE_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "PYTHONPATH": str(Path(__file__).parents[3]),
}


class PlatformEngine:
    """A vLLM engine in its own processes, with the Redis tier."""

    def __init__(self, model: Path, redis_url: str, directory: Path) -> None:
        from vllm import LLM
        from vllm.config.kv_events import KVEventsConfig

        from memserve.worker.kv.offload import kv_transfer_config
        from memserve.worker.kv.tier_settings import RedisTierSettings

        tier = RedisTierSettings(
            redis_url=redis_url,
            namespace=NAMESPACE.digest,
            io_timeout_s=0.3,
            pause_s=0.3,
            announce=True,
            always_load=True,
        )
        endpoint = f"ipc://{directory}/events-{os.urandom(4).hex()}"
        self.events = EventListener(endpoint)
        self.llm = LLM(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=4,
            block_size=NAMESPACE.block_size_tokens,
            num_gpu_blocks_override=256,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            disable_log_stats=False,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint),
            kv_transfer_config=kv_transfer_config(
                platform="cpu", tier=tier, host_bytes=16 << 20, blocks_per_chunk=NAMESPACE.blocks_per_chunk
            ),
        )

    def ask(self, prompt: list[int], salt: str | None = "tenant") -> Any:
        from vllm import SamplingParams

        request: dict[str, Any] = {"prompt_token_ids": prompt, **({"cache_salt": salt} if salt else {})}
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False)
        (output,) = self.llm.generate([request], params, use_tqdm=False)  # type: ignore[list-item]
        return output

    def free(self, tenant: str) -> list[int]:
        """As `memserve.worker.engine.engine.Engine.free_kv`: blocks, chunks, and chunks that are held."""
        from vllm import SamplingParams

        from memserve.worker.kv.tenant_kv import FREE, FREED

        params = SamplingParams(
            max_tokens=1, detokenize=False, extra_args={"kv_transfer_params": {FREE: tenant}}
        )
        (output,) = self.llm.generate([{"prompt_token_ids": [0]}], params, use_tqdm=False)
        return list(output.kv_transfer_params[FREED])

    def tokens(self, prompt: list[int], salt: str | None = "tenant") -> list[int]:
        return list(self.ask(prompt, salt).outputs[0].token_ids)

    def device_pages(self) -> set[str]:
        """Digests of every block in device memory, all layers together."""
        (digests,) = self.llm.collective_rpc(_device_pages)
        return set(digests)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        self.events.close()
        unregister_tier_metrics()


def _device_pages(worker: Any) -> list[str]:
    import torch

    layers = [
        cache.view(torch.int8).reshape(cache.shape[0], -1).numpy() for cache in worker.model_runner.kv_caches
    ]
    return [
        hashlib.sha256(b"".join(layer[block].tobytes() for layer in layers)).hexdigest()
        for block in range(layers[0].shape[0])
    ]


class EventListener:
    """Collects the KV events that an engine publishes."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._stop = threading.Event()
        self.received: list[Any] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        import msgspec
        import zmq
        from vllm.distributed.kv_events import KVEventBatch

        socket = zmq.Context.instance().socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(self._endpoint)
        while not self._stop.is_set():
            if socket.poll(100):
                _, _, payload = socket.recv_multipart()
                self.received += msgspec.msgpack.decode(payload, type=KVEventBatch).events
        socket.close(linger=0)

    def keys(self, medium: str) -> set[bytes]:
        return {
            key
            for event in self.received
            if getattr(event, "medium", None) == medium
            for key in event.block_hashes
        }

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def save_tiny_model(path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(path)


def prompt(seed: int, tokens: int = 300) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, tokens).tolist()


def prompt_chunks(token_ids: list[int], salt: str | None = "tenant") -> list[bytes]:
    return chunk_keys(
        block_keys(token_ids, NAMESPACE.block_size_tokens, lora=None, cache_salt=salt),
        NAMESPACE.blocks_per_chunk,
    )
