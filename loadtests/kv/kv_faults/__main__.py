"""What Redis and its entries can do to an engine while requests run: every request succeeds, with the right
tokens, in bounded time.

A real vLLM engine on the demo model, whose prefixes another engine has put into Redis, reaches Redis through
a proxy. For each fault it forgets what it holds, the fault is on, and the same prompts are asked one after
the other; then the fault is off, and what it stores and loads must come back by itself. Damaged entries must
be refused and computed again.

Then the worker is at fault: an engine in a process of its own is killed with -9 while it answers, and started
again as a worker starts, which deletes the shared memory of the dead first. None of it may be left, and the
answers must come from Redis.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import redis

from loadtests.harness.demo_engine import PATIENT
from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.harness.tenant_engine import Asked, TenantEngine, draw_prompts
from loadtests.kv.kv_faults.redis_faults import FULL, Proxy, entries, faults, wait_for_chunks
from loadtests.kv.kv_faults.worker import ask_each, kill_and_restart

PROMPTS, QUICK_PROMPTS = 24, 4
LOAD_BUDGET_S = 1.0
# Over the load budget: one more answer that does not come, and the computing.
SLACK_S = 1.5
# Older and younger than what the worker's sweep takes for a region that is being made. Not in a quick run:
# each takes two more starts of an engine.
REGION_AGES_S = (0.0, 65.0)
COUNTED = ("hits", "misses", "refused", "unanswered", "skipped", "store_failures")
RECOVERY_S = 20.0
NEW_PROMPTS = 4


def comes_back(engine: TenantEngine, prompts: Sequence[Asked]) -> bool:
    """Whether what the engine stores is loaded again, without a restart."""
    deadline_s = time.monotonic() + RECOVERY_S
    while time.monotonic() < deadline_s:
        engine.ask(prompts[:1])
        time.sleep(0.5)
        engine.forget()
        if engine.ask(prompts[:1])[0].cached_tokens:
            return True
        engine.forget()
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_faults", __doc__).parse_args(arguments)
    prepare_environment()
    random.seed(1)
    drawn, _ = draw_prompts(200, seed=2)
    # Every prompt the first of its prefix, so that each has to be fetched.
    firsts = list({(one.token_ids[:256], one.tenant, one.module): one for one in drawn}.values())
    new, prompts = firsts[:NEW_PROMPTS], firsts[NEW_PROMPTS:][: QUICK_PROMPTS if chosen.quick else PROMPTS]
    rows: list[list[object]] = []
    wrong, longest, lost, not_stored, kept = 0, 0.0, [], 0, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateRedis(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        proxy = Proxy(server.socket)
        writer = TenantEngine(server.url, PATIENT)
        engine = TenantEngine(proxy.url, {"load_budget_s": LOAD_BUDGET_S}, counts=True)
        cold_new, _, _ = ask_each(writer, new)
        ask_each(engine, new)  # its first answers take longer than the others
        time.sleep(1)
        new_chunks = len(entries(client))
        client.flushdb()
        cold, cold_s, _ = ask_each(writer, prompts)
        time.sleep(1)
        chunks = len(entries(client))
        for fault in faults(server, proxy, client):
            writer.forget()
            ask_each(writer, prompts)  # what the fault before has damaged or removed is there again
            wait_for_chunks(client, chunks)
            engine.forget()
            before = {name: engine.counted(f"memserve_kv_tier_{name}") for name in COUNTED}
            fault.on()
            asked, right = ([*prompts, *new], cold + cold_new) if fault.new_prompts else (prompts, cold)
            answers, longest_s, cached = ask_each(engine, asked)
            time.sleep(0.5)
            engine.ask(asked[-1:])  # vLLM takes the counts of what ended since when it makes its next step
            counts = [engine.counted(f"memserve_kv_tier_{name}") - before[name] for name in COUNTED]
            fault.off()
            back = comes_back(engine, prompts)
            same = sum(one == other for one, other in zip(answers, right, strict=True))
            report(f"{fault.name}: {same} of {len(asked)} right, longest {longest_s:.2f} s, back: {back}")
            rows.append(
                [
                    fault.name,
                    f"{same} of {len(asked)}",
                    f"{longest_s:.2f}",
                    cached,
                    *counts,
                    "yes" if back else "NO",
                ]
            )
            wrong += len(asked) - same
            longest = max(longest, longest_s)
            lost += [] if back else [fault.name]
            if fault.new_prompts:
                not_stored = counts[COUNTED.index("store_failures")]
                kept = counts[COUNTED.index("hits")]
        writer.forget()
        ask_each(writer, prompts)
        wait_for_chunks(client, chunks)
        writer.close()
        engine.close()
        restarts = {}
        for age_s in () if chosen.quick else REGION_AGES_S:
            name = f"killed {age_s:.0f} s after its start"
            restarts[name] = restart = kill_and_restart(server.url, prompts, cold, age_s)
            report(f"worker {name}: {restart}")
            wrong += len(prompts) - restart.right
    columns = (
        "Redis",
        "right tokens",
        "longest s",
        "cached tokens",
        *(name.replace("_", " ") for name in COUNTED),
        "comes back",
    )
    print_table(columns, rows)
    bars = [
        Bar("answers with other tokens, or none", wrong, at_most=0),
        Bar("longest request, s", longest, at_most=cold_s + LOAD_BUDGET_S + SLACK_S),
        Bar("faults after which hits did not come back", len(lost), at_most=0),
        Bar(f"{FULL}: chunks not stored and counted, of {new_chunks}", not_stored, at_least=new_chunks),
        Bar(f"{FULL}: chunks loaded", kept, at_least=1),
    ]
    if restarts:
        print()
        print_table(
            (
                "worker",
                "was answering",
                "files left",
                "restarted in s",
                "right tokens",
                "cached tokens",
                "hits",
            ),
            [
                (
                    name,
                    one.was_answering,
                    one.left,
                    f"{one.restart_s:.1f}",
                    f"{one.right} of {len(prompts)}",
                    one.cached_tokens,
                    one.hits,
                )
                for name, one in restarts.items()
            ],
        )
        bars += [
            Bar(
                "workers that were killed when they were not answering",
                sum(not one.was_answering for one in restarts.values()),
                at_most=0,
            ),
            Bar(
                "files of shared memory that killed workers left behind",
                sum(one.left for one in restarts.values()),
                at_most=0,
            ),
            Bar(
                "chunks that a restarted worker loaded, the fewest",
                min(one.hits for one in restarts.values()),
                at_least=1,
            ),
        ]
    restarted = {name: asdict(one) for name, one in restarts.items()}
    return finish(bars, {"rows": rows, "cold_longest_s": cold_s, "workers": restarted}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
