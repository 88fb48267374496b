"""What Redis and its entries can do to an engine while requests run: every request succeeds, with the right tokens, in bounded time.

A real vLLM engine on the demo model, whose prefixes another engine has put into Redis, reaches Redis through a proxy. For each fault it
forgets what it holds, the fault is on, and the same prompts are asked one after the other; then the fault is off, and what it stores and
loads must come back by itself. Damaged entries must be refused and computed again.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import redis

from loadtests.engines import prepare_environment
from loadtests.figures import Bar, finish, parser, print_table, told
from loadtests.kv_correctness import PATIENT, Asked, DemoEngine, draw_prompts
from loadtests.redis_server import PrivateRedis

PROMPTS, QUICK_PROMPTS = 24, 8
LOAD_BUDGET_S = 1.0
# Over the load budget: one more answer that does not come, and the computing.
SLACK_S = 1.5
COUNTED = ("hits", "misses", "refused", "unanswered", "skipped", "store_failures")
RECOVERY_S = 20.0


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
    """on and off: what is done to Redis or its entries."""

    name: str
    on: Callable[[], object]
    off: Callable[[], object] = lambda: None


def faults(server: PrivateRedis, proxy: Proxy, client: redis.Redis) -> list[Fault]:
    def entries() -> list[bytes]:
        return sorted(client.scan_iter("memserve:kv:*", count=1000))

    def rewrite(change: Callable[[bytearray], bytes | bytearray]) -> None:
        for key in entries():
            client.set(key, bytes(change(bytearray(cast(bytes, client.get(key))))), keepttl=True)

    def flip(value: bytearray) -> bytearray:
        value[random.randrange(len(value))] ^= 1 << random.randrange(8)
        return value

    def swap() -> None:
        keys = entries()
        values = client.mget(keys)
        for key, value in zip(keys, values[1:] + values[:1], strict=True):
            client.set(key, value or b"", keepttl=True)

    def kill() -> None:
        server.process.kill()
        server.process.wait()

    def restart() -> None:
        kill()
        server.start()

    def set_proxy(**values: object) -> Callable[[], object]:
        return lambda: vars(proxy).update(values)

    return [
        Fault("none", lambda: None),
        Fault("paused (SIGSTOP)", lambda: server.process.send_signal(signal.SIGSTOP), lambda: server.process.send_signal(signal.SIGCONT)),
        Fault("slow: 20 ms an answer", set_proxy(delay_s=0.02), set_proxy(delay_s=0.0)),
        Fault("slow: 300 ms an answer", set_proxy(delay_s=0.3), set_proxy(delay_s=0.0)),
        Fault("talks nonsense", set_proxy(garbage=True), set_proxy(garbage=False)),
        Fault("full", lambda: client.config_set("maxmemory", 1), lambda: client.config_set("maxmemory", 0)),
        Fault("removed between look-up and load", set_proxy(before_load=client.flushdb), set_proxy(before_load=lambda: None)),
        Fault("a bit flipped in every entry", lambda: rewrite(flip)),
        Fault("every entry cut short", lambda: rewrite(lambda value: value[: random.randrange(len(value))])),
        Fault("entries swapped", swap),
        Fault("killed", kill, server.start),
        Fault("restarted empty", restart),
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
    prompts = list({(one.token_ids[:256], one.tenant, one.module): one for one in drawn}.values())[
        : QUICK_PROMPTS if chosen.quick else PROMPTS
    ]
    rows: list[list[object]] = []
    wrong, longest, lost = 0, 0.0, []
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server, redis.Redis.from_url(server.url) as client:
        proxy = Proxy(server.socket)
        writer = DemoEngine(server.url, **PATIENT)
        engine = DemoEngine(proxy.url, counts=True, load_budget_s=LOAD_BUDGET_S)
        cold, cold_s, _ = ask_each(writer, prompts)
        for fault in faults(server, proxy, client):
            writer.forget()
            ask_each(writer, prompts)  # what the fault before has damaged or removed is there again
            time.sleep(1)
            engine.forget()
            before = {name: engine.counted(f"memserve_kv_tier_{name}") for name in COUNTED}
            fault.on()
            answers, longest_s, cached = ask_each(engine, prompts)
            counts = [engine.counted(f"memserve_kv_tier_{name}") - before[name] for name in COUNTED]
            fault.off()
            back = comes_back(engine, prompts)
            same = sum(one == other for one, other in zip(answers, cold, strict=True))
            told(f"{fault.name}: {same} of {len(prompts)} right, longest {longest_s:.2f} s, back: {back}")
            rows.append([fault.name, f"{same} of {len(prompts)}", f"{longest_s:.2f}", cached, *counts, "yes" if back else "NO"])
            wrong += len(prompts) - same
            longest = max(longest, longest_s)
            lost += [] if back else [fault.name]
        writer.close()
        engine.close()
    columns = ("Redis", "right tokens", "longest s", "cached tokens", *(name.replace("_", " ") for name in COUNTED), "comes back")
    print_table(columns, rows)
    bars = [
        Bar("answers with other tokens, or none", wrong, at_most=0),
        Bar("longest request, s", longest, at_most=cold_s + LOAD_BUDGET_S + SLACK_S),
        Bar("faults after which hits did not come back", len(lost), at_most=0),
    ]
    return finish(bars, {"rows": rows, "cold_longest_s": cold_s}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
