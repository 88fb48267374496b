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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import redis

from loadtests.harness.demo_engine import PATIENT
from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.harness.tenant_engine import Asked, TenantEngine, draw_prompts
from loadtests.kv.kv_faults.redis_faults import FULL, Fault, Proxy, entries, faults, wait_for_chunks
from loadtests.kv.kv_faults.worker import Restart, ask_each, kill_and_restart

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


@dataclass(frozen=True, slots=True)
class Suffered:
    """What one fault did to the requests."""

    name: str
    asked: int
    right: int
    longest_s: float
    cached_tokens: int
    counts: dict[str, int]
    """Of the tier's counters COUNTED, what was added."""
    came_back: bool
    """Whether hits came back after the fault."""

    @property
    def row(self) -> list[object]:
        return [
            self.name,
            f"{self.right} of {self.asked}",
            f"{self.longest_s:.2f}",
            self.cached_tokens,
            *self.counts.values(),
            "yes" if self.came_back else "NO",
        ]


class FaultyRedis:
    """Two engines on one Redis. `writer` reaches Redis directly and fills it, `engine` reaches it through a
    proxy and suffers the faults.
    """

    def __init__(self, server: PrivateRedis, client: redis.Redis, prompts: Sequence[Asked]) -> None:
        """prompts: the first NEW_PROMPTS of them are not in Redis before they are asked."""
        self._client = client
        self.new, self.prompts = prompts[:NEW_PROMPTS], prompts[NEW_PROMPTS:]
        proxy = Proxy(server.socket)
        self.faults = faults(server, proxy, client)
        self._writer = TenantEngine(server.url, PATIENT)
        self._engine = TenantEngine(proxy.url, {"load_budget_s": LOAD_BUDGET_S}, counts=True)
        self._cold_new, _, _ = ask_each(self._writer, self.new)
        ask_each(self._engine, self.new)  # its first answers take longer than the others
        time.sleep(1)
        self.new_chunks = len(entries(client))
        client.flushdb()
        self.cold, self.cold_s, _ = ask_each(self._writer, self.prompts)
        time.sleep(1)
        self._chunks = len(entries(client))

    def fill(self) -> None:
        """Have the writer store again what a fault has damaged or removed."""
        self._writer.forget()
        ask_each(self._writer, self.prompts)
        wait_for_chunks(self._client, self._chunks)

    def suffer(self, fault: Fault) -> Suffered:
        engine = self._engine
        self.fill()
        engine.forget()
        before = {name: engine.counted(f"memserve_kv_tier_{name}") for name in COUNTED}
        fault.on()
        asked, right = self.prompts, self.cold
        if fault.new_prompts:
            asked, right = [*asked, *self.new], right + self._cold_new
        answers, longest_s, cached = ask_each(engine, asked)
        time.sleep(0.5)
        engine.ask(asked[-1:])  # vLLM takes the counts of what ended since when it makes its next step
        counts = {name: engine.counted(f"memserve_kv_tier_{name}") - before[name] for name in COUNTED}
        fault.off()
        back = comes_back(engine, self.prompts)
        same = sum(answer == cold for answer, cold in zip(answers, right, strict=True))
        report(f"{fault.name}: {same} of {len(asked)} right, longest {longest_s:.2f} s, back: {back}")
        return Suffered(fault.name, len(asked), same, longest_s, cached, counts, back)

    def close(self) -> None:
        self._writer.close()
        self._engine.close()


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


def restart_workers(redis_url: str, rig: FaultyRedis) -> dict[str, Restart]:
    restarts = {}
    for age_s in REGION_AGES_S:
        name = f"killed {age_s:.0f} s after its start"
        restarts[name] = kill_and_restart(redis_url, rig.prompts, rig.cold, age_s)
        report(f"worker {name}: {restarts[name]}")
    return restarts


def restart_bars(restarts: Sequence[Restart]) -> list[Bar]:
    return [
        Bar(
            "workers that were killed when they were not answering",
            sum(not restart.was_answering for restart in restarts),
            at_most=0,
        ),
        Bar(
            "files of shared memory that killed workers left behind",
            sum(restart.left for restart in restarts),
            at_most=0,
        ),
        Bar(
            "chunks that a restarted worker loaded, the fewest",
            min(restart.hits for restart in restarts),
            at_least=1,
        ),
    ]


def print_restarts(restarts: Mapping[str, Restart], prompts: int) -> None:
    columns = ("was answering", "files left", "restarted in s", "right tokens", "cached tokens", "hits")
    cells = [
        (
            name,
            restart.was_answering,
            restart.left,
            f"{restart.restart_s:.1f}",
            f"{restart.right} of {prompts}",
            restart.cached_tokens,
            restart.hits,
        )
        for name, restart in restarts.items()
    ]
    print()
    print_table(("worker", *columns), cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_faults", __doc__).parse_args(arguments)
    prepare_environment()
    random.seed(1)
    drawn, _ = draw_prompts(200, seed=2)
    # Every prompt the first of its prefix, so that each has to be fetched.
    firsts = list({(asked.token_ids[:256], asked.tenant, asked.module): asked for asked in drawn}.values())
    prompts = firsts[: NEW_PROMPTS + (QUICK_PROMPTS if chosen.quick else PROMPTS)]
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateRedis(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        rig = FaultyRedis(server, client, prompts)
        suffered = [rig.suffer(fault) for fault in rig.faults]
        rig.fill()
        rig.close()
        restarts = {} if chosen.quick else restart_workers(server.url, rig)
    print_table(
        (
            "Redis",
            "right tokens",
            "longest s",
            "cached tokens",
            *(name.replace("_", " ") for name in COUNTED),
            "comes back",
        ),
        [fault.row for fault in suffered],
    )
    wrong = sum(fault.asked - fault.right for fault in suffered)
    wrong += sum(len(rig.prompts) - restart.right for restart in restarts.values())
    [full] = [fault.counts for fault in suffered if fault.name == FULL]
    longest_s = max(fault.longest_s for fault in suffered)
    lost = sum(not fault.came_back for fault in suffered)
    bars = [
        Bar("answers with other tokens, or none", wrong, at_most=0),
        Bar("longest request, s", longest_s, at_most=rig.cold_s + LOAD_BUDGET_S + SLACK_S),
        Bar("faults after which hits did not come back", lost, at_most=0),
        Bar(
            f"{FULL}: chunks not stored and counted, of {rig.new_chunks}",
            full["store_failures"],
            at_least=rig.new_chunks,
        ),
        Bar(f"{FULL}: chunks loaded", full["hits"], at_least=1),
    ]
    if restarts:
        print_restarts(restarts, len(rig.prompts))
        bars += restart_bars(list(restarts.values()))
    figures: dict[str, object] = {
        "rows": [fault.row for fault in suffered],
        "cold_longest_s": rig.cold_s,
        "workers": {name: asdict(restart) for name, restart in restarts.items()},
    }
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
