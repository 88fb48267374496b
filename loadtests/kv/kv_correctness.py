"""500 prompts, each answered five ways: cold, warm, from Redis on another engine, after a restart, and after
its blocks were evicted.

Real vLLM engines run the demo model, which is sure of its answers. Prompts share handbooks as beginnings, and
belong to three tenants (cache salts) and three modules (the base and the two adapters). They are asked in
batches, on a block pool that is too small for them, so that vLLM preempts and evicts. Whatever way an answer
took, its tokens must be those of the first, cold one; no way but the first may be cold; and a tenant who asks
for what only another tenant's prefix says never hears it.

A prefix hit, vLLM's own local one too, adds the same numbers in another order. So where the cold answer hung
on less than 0.05 between the log-probabilities of its two best tokens, another token proves nothing: such
answers are counted apart.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import redis

from loadtests.harness.demo_engine import PATIENT
from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis, wait_until_stored
from loadtests.harness.tenant_engine import BATCH, Answered, Asked, TenantEngine, draw_prompts

PROMPTS, QUICK_PROMPTS = 500, 60
SURE_BY = 0.05


def ask_all(engine: TenantEngine, prompts: Sequence[Asked], name: str) -> list[Answered]:
    answers: list[Answered] = []
    for start in range(0, len(prompts), BATCH):
        answers += engine.ask(prompts[start : start + BATCH])
        if start % (16 * BATCH) == 0:
            report(f"{name}: {start} of {len(prompts)}")
    return answers


def compare(
    name: str, cold: Sequence[Answered], answers: Sequence[Answered], counts: Counter[str]
) -> list[object]:
    others = [first for first, other in zip(cold, answers, strict=True) if first.token_ids != other.token_ids]
    unsure = sum(answer.margin < SURE_BY for answer in others)
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
        first, second = TenantEngine(server.url, PATIENT, counts=True), TenantEngine(server.url, PATIENT)
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
        wait_until_stored(client, 2.0)
        rows.append(compare("remote", cold, ask_all(second, prompts, "remote"), counts))
        counts["preemptions"] = first.counted("vllm:num_preemptions")
        first.close()
        restarted = TenantEngine(server.url, PATIENT)
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
