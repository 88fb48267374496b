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

import multiprocessing
import os
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import psutil
import redis

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.kv.kv_correctness import PATIENT, Asked, DemoEngine, draw_prompts

PROMPTS, QUICK_PROMPTS = 24, 4
LOAD_BUDGET_S = 1.0
# Over the load budget: one more answer that does not come, and the computing.
SLACK_S = 1.5
# Older and younger than what the worker's sweep takes for a region that is being made. Not in a quick run:
# each takes two more starts of an engine.
REGION_AGES_S = (0.0, 65.0)
# Long enough to be at work on it, much shorter than the answers take.
ANSWERING_S = 0.2
COUNTED = ("hits", "misses", "refused", "unanswered", "skipped", "store_failures")
RECOVERY_S = 20.0
SETTLE_S = 5.0
FULL = "full"
NEW_PROMPTS = 4


class Proxy:
    """A TCP proxy to a unix socket that can delay, talk nonsense, or hang up."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self.delay_s = 0.0
        self.garbage = False
        self.before_load: Callable[[], object] = lambda: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._target)
            while True:
                for readable in select.select([client, server], [], [])[0]:
                    content = readable.recv(1 << 20)
                    if not content:
                        return
                    if readable is client:
                        if b"GETEX" in content:
                            self.before_load()
                        server.sendall(content)
                        continue
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    client.sendall(random.randbytes(len(content)) if self.garbage else content)


@dataclass(frozen=True, slots=True)
class Fault:
    """on and off: what is done to Redis or its entries. new_prompts: ask some as well that are not in Redis
    and are to be stored.
    """

    name: str
    on: Callable[[], object]
    off: Callable[[], object] = lambda: None
    new_prompts: bool = False


def entries(client: redis.Redis) -> list[bytes]:
    return sorted(client.scan_iter("memserve:kv:*", count=1000))


def wait_for_chunks(client: redis.Redis, chunks: int) -> None:
    """Until Redis holds as many, for a while at most: the bars see it when it does not."""
    deadline_s = time.monotonic() + SETTLE_S
    while len(entries(client)) < chunks and time.monotonic() < deadline_s:
        time.sleep(0.05)


def faults(server: PrivateRedis, proxy: Proxy, client: redis.Redis) -> list[Fault]:
    def rewrite(change: Callable[[bytearray], bytes | bytearray]) -> None:
        for key in entries(client):
            client.set(key, bytes(change(bytearray(cast(bytes, client.get(key))))), keepttl=True)

    def flip(value: bytearray) -> bytearray:
        value[random.randrange(len(value))] ^= 1 << random.randrange(8)
        return value

    def swap() -> None:
        keys = entries(client)
        values = client.mget(keys)
        for key, value in zip(keys, values[1:] + values[:1], strict=True):
            client.set(key, value or b"", keepttl=True)

    def kill() -> None:
        server.process.kill()
        server.process.wait()

    def restart_empty() -> None:
        kill()
        server.start()

    def restart() -> None:
        client.save()
        restart_empty()
        for dump in server.socket.parent.glob("*.rdb"):
            dump.unlink()

    def set_proxy(**values: object) -> Callable[[], object]:
        return lambda: vars(proxy).update(values)

    return [
        Fault("none", lambda: None),
        Fault(
            "paused (SIGSTOP)",
            lambda: server.process.send_signal(signal.SIGSTOP),
            lambda: server.process.send_signal(signal.SIGCONT),
        ),
        Fault("slow: 20 ms an answer", set_proxy(delay_s=0.02), set_proxy(delay_s=0.0)),
        Fault("slow: 300 ms an answer", set_proxy(delay_s=0.3), set_proxy(delay_s=0.0)),
        Fault("talks nonsense", set_proxy(garbage=True), set_proxy(garbage=False)),
        # It evicts nothing: what is there is loaded, what is new is refused with OOM.
        Fault(
            FULL,
            lambda: client.config_set("maxmemory", 1),
            lambda: client.config_set("maxmemory", 0),
            new_prompts=True,
        ),
        Fault(
            "removed between look-up and load",
            set_proxy(before_load=client.flushdb),
            set_proxy(before_load=lambda: None),
        ),
        Fault("a bit flipped in every entry", lambda: rewrite(flip)),
        Fault("every entry cut short", lambda: rewrite(lambda value: value[: random.randrange(len(value))])),
        Fault("entries swapped", swap),
        Fault("killed", kill, server.start),
        Fault("restarted", restart),
        Fault("restarted empty", restart_empty),
    ]


def ask_each(engine: DemoEngine, prompts: Sequence[Asked]) -> tuple[list[tuple[int, ...]], float, int]:
    """Returns the tokens, the longest wait, and the cached tokens."""
    answers, longest_s, cached = [], 0.0, 0
    for prompt in prompts:
        started_s = time.perf_counter()
        [answer] = engine.ask([prompt])
        longest_s = max(longest_s, time.perf_counter() - started_s)
        answers.append(answer.token_ids)
        cached += answer.cached_tokens
    return answers, longest_s, cached


def serve_worker(connection: Connection, redis_url: str) -> None:
    """Start as a worker does, and answer; the whole of a process."""
    prepare_environment()
    from memserve.worker.kv.offload import sweep_orphan_regions

    sweep_orphan_regions()
    engine = DemoEngine(redis_url, counts=True, **PATIENT)
    connection.send("ready")
    while prompts := connection.recv():
        answers, longest_s, cached = ask_each(engine, prompts)
        connection.send((answers, longest_s, cached, engine.counted("memserve_kv_tier_hits")))
    engine.close()


class Worker:
    """A process that runs `serve_worker`."""

    def __init__(self, redis_url: str) -> None:
        """Returns when it is ready."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_worker, args=(theirs, redis_url))
        self.process.start()
        theirs.close()
        self.connection.recv()

    def regions(self) -> set[Path]:
        """The shared memory that it and its engine have mapped."""
        root = psutil.Process(self.process.pid)
        maps = [each.path for one in (root, *root.children(recursive=True)) for each in one.memory_maps()]
        return {Path(path.removesuffix(" (deleted)")) for path in maps if "/vllm_offload_" in path}

    def kill(self) -> None:
        """With -9, it alone: its engine's process sees that and ends."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def close(self) -> None:
        self.connection.send(())
        self.process.join()


@dataclass(frozen=True, slots=True)
class Restart:
    """What became of a worker that was killed. left: files of its shared memory after the next one had
    started.
    """

    was_answering: bool
    left: int
    restart_s: float
    right: int
    cached_tokens: int
    hits: int


def kill_and_restart(
    redis_url: str, prompts: Sequence[Asked], cold: Sequence[tuple[int, ...]], region_age_s: float
) -> Restart:
    """prompts: [n], in Redis; cold: [n] their answers. region_age_s: how long the worker has run when it is
    killed.
    """
    worker = Worker(redis_url)
    regions = worker.regions()
    time.sleep(region_age_s)
    # Many times over: they must not be answered before the end.
    worker.connection.send([*prompts] * 10)
    time.sleep(ANSWERING_S)
    was_answering = bool(regions) and not worker.connection.poll()
    worker.kill()
    started_s = time.monotonic()
    successor = Worker(redis_url)
    restart_s = time.monotonic() - started_s
    left = [region for region in regions if region.exists()]
    successor.connection.send(prompts)
    answers, _, cached, hits = successor.connection.recv()
    successor.close()
    for region in left:
        region.unlink(missing_ok=True)
    same = sum(one == other for one, other in zip(answers, cold, strict=True))
    return Restart(was_answering, len(left), restart_s, same, cached, hits)


def comes_back(engine: DemoEngine, prompts: Sequence[Asked]) -> bool:
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
        writer = DemoEngine(server.url, **PATIENT)
        engine = DemoEngine(proxy.url, counts=True, load_budget_s=LOAD_BUDGET_S)
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
