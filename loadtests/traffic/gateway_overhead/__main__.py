"""Processor time of the gateway's process for a token and for a request, beside bare relays.

Fake workers, the gateway, the relays and the client are processes of their own. The relay over gRPC is a
`grpc.aio` server that forwards a worker's bytes without reading them. The relay over HTTP is an ASGI
application on uvicorn that sends an event of fixed bytes for each message of a worker. Rounds alternate
between the gateway and the relay; a figure is the median of the rounds' ratios. The processor time is the
whole process's, threads included, less what the process uses without a request: the gateway follows workers
and registry, and that is a figure of its own.

A token: 16 answers at once, each a token every 20 ms, so that nothing is joined. A request: answers of one
token, four at a time.

The capacity is how many tokens a second a gateway carries with one core: 100 answers at once of 200 tokens a
second, and 64 of 400. Its loop is busy then, so that tokens are joined: up to 20 ms later, several in one
message. Beside the rate stand the messages, and the time between two messages of one answer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.harness.second_gateway import second_gateway
from loadtests.traffic.gateway_overhead.client import Job, Seen
from memserve.config import load_settings
from memserve.demo import MODEL_DIR
from memserve.processes.ports import taken_ports

WORKERS = 2
PACKAGE = "loadtests.traffic.gateway_overhead"
TOKEN_BAR, REQUEST_BAR, HTTP_BAR, CAPACITY_BAR = 1.3, 2.0, 1.5, 20_000.0
IDLE_S = 1.5
SHAPES = ((100, 5), (64, 2))
"""Of the capacity: answers at once, and milliseconds between two tokens of one."""


@dataclass(frozen=True, slots=True)
class Target:
    """A process that is measured."""

    name: str
    address: str
    process: psutil.Process
    idle_cores: float = 0.0
    """What it uses without a request."""
    tls: str = ""
    """As `Job.tls`."""

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


class Client:
    """The process that asks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, target: Target, **job: int) -> tuple[Seen, float]:
        """What came, and the seconds of processor time that the target took for it."""
        assert self._process.stdin and self._process.stdout
        before_s = target.cpu_s()
        line = json.dumps(asdict(Job(target.name, target.address, tls=target.tls, **job)))
        print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the client of {target.name} has ended")
        seen = Seen(**json.loads(answer))
        return seen, max(target.cpu_s() - before_s - target.idle_cores * seen.wall_s, 0.0)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def _process(module: str, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """A process of this package while inside, and the address that it prints first."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"{PACKAGE}.{module}", *arguments], stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"{module} has not started")
        yield address, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _targets(folder: Path) -> Iterator[dict[str, Target]]:
    with ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis(folder))
        workers = [
            stack.enter_context(_process("worker", redis.url, f"w{number}", str(MODEL_DIR)))[0]
            for number in range(WORKERS)
        ]
        settings = load_settings(
            {}, data_dir=folder / "first", model=str(MODEL_DIR), redis_url=redis.url, max_inflight=1024,
            max_inflight_per_tenant=1024, max_calls_per_tenant=1024,
        )  # fmt: skip
        gateway = stack.enter_context(second_gateway(settings, folder / "gateway"))
        process = psutil.Process(gateway.process.pid)
        http = f"127.0.0.1:{(taken_ports(folder / 'gateway', process.pid) or {})['http_port']}"
        targets = [Target("gateway_grpc", gateway.address, process), Target("gateway_http", http, process)]
        for kind in ("grpc", "http"):
            address, relay = stack.enter_context(_process("relay", kind, workers[0]))
            targets.append(Target(f"relay_{kind}", address, relay))
        yield {target.name: target for target in targets}


def _idle_cores(target: Target) -> float:
    before_s = target.cpu_s()
    time.sleep(IDLE_S)
    return (target.cpu_s() - before_s) / IDLE_S


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of processor time for one unit, of the gateway and of the relay, and their ratio."""

    gateway_us: float
    relay_us: float
    ratio: float


def _costs(client: Client, targets: dict[str, Target], wire: str, rounds: int, **job: int) -> Cost:
    """Of a token, where an answer has several, else of a request."""
    units = job["requests"] * job["tokens"]
    pairs: list[tuple[float, float]] = []
    for round_number in range(rounds + 1):
        names = (f"gateway_{wire}", f"relay_{wire}")
        used = {}
        for name in names if round_number % 2 else reversed(names):
            _, cpu_s = client.run(targets[name], **job)
            used[name] = cpu_s / units * 1e6
        if round_number:  # The first is warm-up.
            pairs.append((used[names[0]], used[names[1]]))
            report(f"{wire}: {used[names[0]]:.0f} us, the relay {used[names[1]]:.0f} us")
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Cost(ours, theirs, statistics.median(one / other for one, other in pairs))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one core of the gateway carries. delivered_tokens_s: what came, with the core it took."""

    wire: str
    answers: int
    step_ms: int
    offered_tokens_s: float
    delivered_tokens_s: float
    cores: float
    messages_s: float
    gap_p99_ms: float

    @property
    def tokens_s_core(self) -> float:
        """A second, for one core."""
        return self.delivered_tokens_s / max(self.cores, 1.0)


def _capacity(client: Client, target: Target, answers: int, step_ms: int, seconds: float) -> Capacity:
    tokens = int(seconds * 1000 / step_ms)
    job = {"streams": answers, "requests": answers, "tokens": tokens, "step_ms": step_ms}
    client.run(target, **job | {"tokens": tokens // 4})
    seen, cpu_s = client.run(target, **job)
    gaps = sorted(seen.gaps_s)
    return Capacity(
        wire=target.name.rpartition("_")[2],
        answers=answers,
        step_ms=step_ms,
        offered_tokens_s=answers * 1000 / step_ms,
        delivered_tokens_s=answers * tokens / seen.wall_s,
        cores=cpu_s / seen.wall_s,
        messages_s=seen.messages / seen.wall_s,
        gap_p99_ms=gaps[int(len(gaps) * 0.99)] * 1000,
    )


def main() -> int:
    options = parser("gateway_overhead", __doc__).parse_args()
    rounds, requests, tokens = (3, 150, 80) if options.quick else (7, 800, 400)
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as folder, _targets(Path(folder)) as targets:
        client = Client()
        try:
            targets = {
                name: replace(target, idle_cores=_idle_cores(target)) for name, target in targets.items()
            }
            idle_cores = targets["gateway_grpc"].idle_cores
            for wire in ("grpc", "http"):
                stream = {"streams": 16, "requests": 16, "tokens": tokens, "step_ms": 20}
                costs[f"token_{wire}"] = _costs(client, targets, wire, rounds, **stream)
                single = {"streams": 4, "requests": requests, "tokens": 1, "step_ms": 0}
                costs[f"request_{wire}"] = _costs(client, targets, wire, rounds, **single)
            seconds = 2.0 if options.quick else 10.0
            carried = [
                _capacity(client, targets[f"gateway_{wire}"], answers, step_ms, seconds)
                for wire in ("grpc", "http")
                for answers, step_ms in SHAPES
            ]
        finally:
            client.close()
    _print(costs, carried, idle_cores)
    bars = [
        Bar("gRPC, a token: gateway / relay", costs["token_grpc"].ratio, at_most=TOKEN_BAR),
        Bar("gRPC, a request: gateway / relay", costs["request_grpc"].ratio, at_most=REQUEST_BAR),
        Bar("HTTP, a token: gateway / uvicorn", costs["token_http"].ratio, at_most=HTTP_BAR),
        Bar(
            "gRPC, tokens a second and core",
            max(each.tokens_s_core for each in carried if each.wire == "grpc"),
            at_least=CAPACITY_BAR,
        ),
    ]
    figures: dict[str, Any] = {
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "capacity": [asdict(each) | {"tokens_s_core": each.tokens_s_core} for each in carried],
        "idle_cores": idle_cores,
    }
    return finish(bars, figures, options.json)


def _print(costs: dict[str, Cost], carried: list[Capacity], idle_cores: float) -> None:
    print_table(
        ("processor time, us", "gateway", "bare relay", "ratio"),
        [
            (name.replace("_", ", "), f"{cost.gateway_us:.0f}", f"{cost.relay_us:.0f}", f"{cost.ratio:.2f}")
            for name, cost in costs.items()
        ],
    )
    print()
    print_table(
        (
            "capacity",
            "offered tokens/s",
            "delivered",
            "cores",
            "tokens/s a core",
            "messages/s",
            "gap p99, ms",
        ),
        [
            (
                f"{each.wire}, {each.answers} answers",
                f"{each.offered_tokens_s:.0f}",
                f"{each.delivered_tokens_s:.0f}",
                f"{each.cores:.2f}",
                f"{each.tokens_s_core:.0f}",
                f"{each.messages_s:.0f}",
                f"{each.gap_p99_ms:.1f}",
            )
            for each in carried
        ],
    )
    print(f"\nwithout a request the gateway uses {idle_cores:.3f} cores")


if __name__ == "__main__":
    sys.exit(main())
