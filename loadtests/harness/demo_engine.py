"""The demo model in a real vLLM engine, and prompts as its chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.harness.engines import BLOCK_TOKENS, Engine
from memserve.demo import MODEL_DIR, facts

BLOCKS_PER_CHUNK = 2
CHUNK_TOKENS = BLOCK_TOKENS * BLOCKS_PER_CHUNK
HOST_BYTES = 64 << 20
# Settings of the Redis tier for tests of answers, where speed does not matter. No call is given up early.
PATIENT: dict[str, Any] = {"io_timeout_s": 10.0, "lookup_timeout_s": 10.0, "load_budget_s": 30.0}


class DemoEngine(Engine):
    """An engine on the demo model."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """settings: arguments of vLLM's engine, as `Engine` takes them."""
        super().__init__(MODEL_DIR, {"dtype": "float32", "max_model_len": 2048, **settings})


def demo_transfer(redis_url: str, namespace: str, tier: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of an engine that shares its KV through Redis. tier: more settings of the Redis tier."""
    from memserve.worker.kv.offload import kv_transfer_config
    from memserve.worker.kv.tier_settings import RedisTierSettings

    transfer = kv_transfer_config(
        platform="cpu",
        tier=RedisTierSettings(redis_url=redis_url, namespace=namespace, always_load=True, **tier),
        host_bytes=HOST_BYTES,
        blocks_per_chunk=BLOCKS_PER_CHUNK,
    )
    return {"kv_transfer_config": transfer}


class DemoTokenizer:
    """The demo model's chat template and tokenizer."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)

    def prompt(self, messages: Sequence[facts.Message]) -> tuple[int, ...]:
        """The token ids of a chat, up to the beginning of the answer."""
        turns = [message.as_dict() for message in messages]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, token_ids: Sequence[int]) -> str:
        """An answer without special tokens and without white space around it."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()
