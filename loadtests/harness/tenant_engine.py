"""Prompts of several tenants and modules with the same beginnings, and an engine that answers them.

The engine has the demo model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.harness.demo_engine import DemoEngine, DemoTokenizer, demo_transfer
from memserve.demo import ADAPTERS_DIR, facts

BATCH = 8
# Room for about three of the eight prompts of a batch.
DEVICE_BLOCKS = 130
NAMESPACE = "ee" * 32
TENANTS = ("acme", "bolt", "crab")
MODULES = ("", "harbour", "observatory")
HANDBOOK_TOKENS = 900
MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as one tenant asks it of one module."""

    token_ids: tuple[int, ...]
    tenant: str
    module: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a prompt."""

    token_ids: tuple[int, ...]
    cached_tokens: int
    """Prompt tokens whose KV the engine had."""
    text: str
    margin: float
    """The least difference between the log-probabilities of the two best tokens of a step."""


class TenantEngine(DemoEngine):
    """An engine that answers tenants with and without adapters. Its KV is shared through Redis."""

    def __init__(self, redis_url: str, tier: Mapping[str, Any], *, counts: bool = False) -> None:
        """tier: settings of the Redis tier.

        counts: keep statistics. Only one engine of a process can keep statistics.
        """
        super().__init__(
            {
                "max_num_seqs": BATCH,
                "num_gpu_blocks_override": DEVICE_BLOCKS,
                "kv_cache_memory_bytes": 256 << 20,
                "enable_lora": True,
                "max_loras": 2,
                "max_lora_rank": 16,
                "disable_log_stats": not counts,
                **demo_transfer(redis_url, NAMESPACE, tier),
            }
        )

    def ask(self, batch: Sequence[Asked]) -> list[Answered]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        prompts: Any = [
            {"prompt_token_ids": list(asked.token_ids), "cache_salt": asked.tenant} for asked in batch
        ]
        loras = [
            LoRARequest(asked.module, MODULES.index(asked.module), str(ADAPTERS_DIR / asked.module))
            if asked.module
            else None
            for asked in batch
        ]
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logprobs=2)
        answers = []
        for output in self.llm.generate(prompts, params, lora_request=loras, use_tqdm=False):
            answer = output.outputs[0]
            margins = []
            for step in answer.logprobs or ():
                best, second = sorted((entry.logprob for entry in step.values()), reverse=True)[:2]
                margins.append(best - second)
            answers.append(
                Answered(
                    tuple(answer.token_ids), output.num_cached_tokens or 0, answer.text.strip(), min(margins)
                )
            )
        return answers

    def counted(self, name: str) -> int:
        """The value of a counter of vLLM or of the Redis tier, summed over its labels.

        name: without the ending `_total`.
        """
        from prometheus_client import REGISTRY

        samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
        return int(sum(sample.value for sample in samples if sample.name == f"{name}_total"))


def draw_prompts(count: int, seed: int) -> tuple[list[Asked], list[tuple[Asked, str]]]:
    """Draw prompts, and needles that must not be found.

    A needle is a question about one tenant's handbook, asked by another tenant without the handbook, and the
    answer that must not come.

    Returns `count` prompts, and the needles.
    """
    tokens = DemoTokenizer().prompt
    rng = random.Random(seed)
    prompts: list[Asked] = []
    needles: list[tuple[Asked, str]] = []
    book_number = 0
    while len(prompts) < count:
        book = facts.handbook(seed * 1000 + book_number, HANDBOOK_TOKENS)
        book_number += 1
        tenant, module = rng.choice(TENANTS), rng.choice(MODULES)
        for question in facts.handbook_questions(book, seed, 5):
            asked = Asked(tokens(facts.prompt(book.text, [], question.text)), tenant, module)
            prompts.append(asked)
            other = rng.choice([name for name in TENANTS if name != tenant])
            needles.append((Asked(tokens(facts.prompt("", [], question.text)), other, ""), question.answer))
            if rng.random() < 0.3:  # the same words, another tenant or module: nothing may be shared
                prompts.append(Asked(asked.token_ids, other, module))
                prompts.append(
                    Asked(asked.token_ids, tenant, rng.choice([name for name in MODULES if name != module]))
                )
    return list(dict.fromkeys(prompts))[:count], needles
