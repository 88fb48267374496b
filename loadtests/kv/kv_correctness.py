"""500 prompts, each answered five ways: cold, warm, from Redis on another engine, after a restart, and after
its blocks were evicted.

Real vLLM engines run the demo model, which is sure of its answers. Prompts share handbooks as beginnings, and
belong to three tenants (cache salts) and three modules (the base and the two adapters). They are asked in
batches, on a block pool that is too small for them, so that vLLM preempts and evicts. Whatever way an answer
took, its tokens must be those of the first, cold one; no way but the first may be cold; and a tenant who asks
for what only another tenant's prefix says is never told.

A prefix hit, vLLM's own local one too, adds the same numbers in another order. So where the cold answer hung
on less than 0.05 between the log-probabilities of its two best tokens, another token proves nothing: such
answers are counted apart.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts

PROMPTS, QUICK_PROMPTS = 500, 60
BATCH = 8
BLOCK_TOKENS, BLOCKS_PER_CHUNK = 32, 2
# A test of answers, not of speed: nothing is given up early.
PATIENT: dict[str, Any] = {"io_timeout_s": 10.0, "lookup_timeout_s": 10.0, "load_budget_s": 30.0}
# Room for about three prompts of a batch's eight.
DEVICE_BLOCKS = 130
HOST_BYTES = 64 << 20
NAMESPACE = "ee" * 32
TENANTS = ("acme", "bolt", "crab")
MODULES = ("", "harbour", "observatory")
HANDBOOK_TOKENS = 900
MAX_TOKENS = 16
SURE_BY = 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as one tenant asks it of one module."""

    token_ids: tuple[int, ...]
    tenant: str
    module: str


@dataclass(frozen=True, slots=True)
class Answered:
    token_ids: tuple[int, ...]
    cached_tokens: int
    text: str
    margin: float  # between the log-probabilities of the two best tokens, where it was least


class DemoEngine:
    """A real engine on the demo model, its KV shared through Redis."""

    def __init__(self, redis_url: str, *, counts: bool = False, **tier: Any) -> None:
        """counts: keep statistics, which one engine of a process can. tier: settings of the Redis tier."""
        from vllm import LLM

        from memserve.worker.engine.cpu import CpuExecutor
        from memserve.worker.kv.offload import kv_transfer_config
        from memserve.worker.kv.redis_tier import RedisTierSettings

        self.llm = LLM(
            model=str(MODEL_DIR),
            dtype="float32",
            max_model_len=2048,
            max_num_seqs=BATCH,
            block_size=BLOCK_TOKENS,
            num_gpu_blocks_override=DEVICE_BLOCKS,
            kv_cache_memory_bytes=256 << 20,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor",
            enable_lora=True,
            max_loras=2,
            max_lora_rank=16,
            disable_log_stats=not counts,
            distributed_executor_backend=CpuExecutor,
            kv_transfer_config=kv_transfer_config(
                platform="cpu",
                tier=RedisTierSettings(redis_url=redis_url, always_load=True, namespace=NAMESPACE, **tier),
                host_bytes=HOST_BYTES,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
            ),
        )

    def ask(self, batch: Sequence[Asked]) -> list[Answered]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        prompts: Any = [{"prompt_token_ids": list(one.token_ids), "cache_salt": one.tenant} for one in batch]
        loras = [
            LoRARequest(one.module, MODULES.index(one.module), str(ADAPTERS_DIR / one.module))
            if one.module
            else None
            for one in batch
        ]
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logprobs=2)
        answers = []
        for output in self.llm.generate(prompts, params, lora_request=loras, use_tqdm=False):
            made = output.outputs[0]
            margins = []
            for step in made.logprobs or ():
                best, second = sorted((entry.logprob for entry in step.values()), reverse=True)[:2]
                margins.append(best - second)
            answers.append(
                Answered(
                    tuple(made.token_ids), output.num_cached_tokens or 0, made.text.strip(), min(margins)
                )
            )
        return answers

    def forget(self) -> None:
        """Everything that it holds in its own memory."""
        self.llm.reset_prefix_cache(reset_connector=True)

    def counted(self, name: str) -> int:
        """A counter of vLLM's or the tier's, summed over its labels; of this process's only engine that
        counts.
        """
        from prometheus_client import REGISTRY

        samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
        return int(sum(sample.value for sample in samples if sample.name == f"{name}_total"))

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def draw_prompts(count: int, seed: int) -> tuple[list[Asked], list[tuple[Asked, str]]]:
    """Returns the prompts, and needles: what one tenant's handbook says, asked by another without it, and the
    answer that must not come.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    rng = random.Random(seed)

    def tokens(messages: Sequence[facts.Message]) -> tuple[int, ...]:
        text = tokenizer.apply_chat_template(
            [each.as_dict() for each in messages], tokenize=False, add_generation_prompt=True
        )
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

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
            other = rng.choice([each for each in TENANTS if each != tenant])
            needles.append((Asked(tokens(facts.prompt("", [], question.text)), other, ""), question.answer))
            if rng.random() < 0.3:  # the same words, another tenant or module: nothing may be shared
                prompts.append(Asked(asked.token_ids, other, module))
                prompts.append(
                    Asked(asked.token_ids, tenant, rng.choice([each for each in MODULES if each != module]))
                )
    return list(dict.fromkeys(prompts))[:count], needles


def ask_all(engine: DemoEngine, prompts: Sequence[Asked], name: str) -> list[Answered]:
    answers: list[Answered] = []
    for start in range(0, len(prompts), BATCH):
        answers += engine.ask(prompts[start : start + BATCH])
        if start % (16 * BATCH) == 0:
            report(f"{name}: {start} of {len(prompts)}")
    return answers


def compare(
    name: str, cold: Sequence[Answered], answers: Sequence[Answered], counts: Counter[str]
) -> list[object]:
    others = [one for one, other in zip(cold, answers, strict=True) if one.token_ids != other.token_ids]
    unsure = sum(one.margin < SURE_BY for one in others)
    hits = sum(answer.cached_tokens > 0 for answer in answers)
    counts["other tokens than cold"] += len(others) - unsure
    counts["other tokens where the cold answer was unsure"] += unsure
    return [
        name,
        len(answers),
        len(answers) - len(others),
        hits,
        sum(answer.cached_tokens for answer in answers),
    ]


def measure(server: PrivateRedis, count: int, seed: int) -> tuple[list[list[object]], Counter[str]]:
    counts: Counter[str] = Counter()
    prompts, needles = draw_prompts(count, seed)
    rows: list[list[object]] = []
    with redis.Redis.from_url(server.url) as client:
        first, second = DemoEngine(server.url, counts=True, **PATIENT), DemoEngine(server.url, **PATIENT)
        alone = [first.ask([prompt])[0] for prompt in prompts[:5]]
        client.flushall()
        first.forget()
        cold: list[Answered] = ask_all(first, prompts, "cold")
        rows.append(compare("cold", cold, cold, counts))
        counts["prompts whose cold answer was unsure"] = sum(answer.margin < SURE_BY for answer in cold)
        counts["other tokens alone than in a batch"] = sum(
            a.token_ids != c.token_ids for a, c in zip(alone, cold, strict=False)
        )
        rows.append(compare("warm", cold, [first.ask([prompt] * 2)[1] for prompt in prompts], counts))
        _settle(client)
        rows.append(compare("remote", cold, ask_all(second, prompts, "remote"), counts))
        counts["preemptions"] = first.counted("vllm:num_preemptions")
        first.close()
        restarted = DemoEngine(server.url, **PATIENT)
        rows.append(compare("restarted", cold, ask_all(restarted, prompts, "restarted"), counts))
        # Half of what Redis holds goes, at random: chains lose their ends, their middles and their
        # beginnings.
        keys = sorted(client.scan_iter("memserve:kv:*"))
        client.delete(*random.Random(seed).sample(keys, len(keys) // 2))
        second.forget()
        rows.append(compare("after eviction", cold, ask_all(second, prompts, "after eviction"), counts))
        report(f"{len(needles)} needles")
        for start in range(0, len(needles), BATCH):
            some = needles[start : start + BATCH]
            answers = restarted.ask([asked for asked, _ in some])
            counts["needles told to another tenant"] += sum(
                answer.text == secret for answer, (_, secret) in zip(answers, some, strict=True)
            )
        counts["needles"] = len(needles)
        counts["chunks in Redis"] = len(keys)
        second.close()
        restarted.close()
    return rows, counts


def _settle(client: redis.Redis) -> None:
    """Until nothing more is stored."""
    last, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < 2:
        held = int(client.dbsize())
        if held != last:
            last, since_s = held, time.monotonic()
        time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("kv_correctness", __doc__)
    options.add_argument("--seed", type=int, default=1, help="seed of the prompts (default: 1)")
    chosen = options.parse_args(arguments)
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server:
        rows, counts = measure(server, QUICK_PROMPTS if chosen.quick else PROMPTS, chosen.seed)
    print_table(("way", "prompts", "same tokens as cold", "with a hit", "cached tokens"), rows)
    print_table(("counted", "number"), [(name, f"{number:,}") for name, number in counts.items()])
    asked = int(str(rows[0][1]))
    bars = [
        Bar("sure answers with other tokens than cold", counts["other tokens than cold"], at_most=0),
        Bar(
            "answers with other tokens in all, share",
            counts["other tokens where the cold answer was unsure"] / asked,
            at_most=0.01,
        ),
    ]
    bars += [
        Bar(f"{row[0]}: share of prompts with a hit", int(str(row[3])) / asked, at_least=0.95)
        for row in rows[1:4]
    ]
    bars.append(Bar("needles told to another tenant", counts["needles told to another tenant"], at_most=0))
    bars.append(Bar("preemptions (so that they are tried)", counts["preemptions"], at_least=1))
    return finish(bars, {"rows": rows, "counts": dict(counts)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
