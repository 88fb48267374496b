"""Does `memserve bench` find what was planted: a worker that stalls for 200 ms, and 5 % of refusals?

A real gateway process, and two worker processes without engines. One of them sends nothing for 200 ms, again
and again; every 20th question is refused by both. The workers write down what they did. `memserve bench`
sends a question every 40 ms, over gRPC and over HTTP, and must count the same: the stalls and whose they are,
the questions that a stall held for 100 ms or more, and the refusals. Then a closed loop, which waits for its
answer before it asks again, runs on the same workers. During a stall it asks nothing, so that the stall is
one of its many requests (coordinated omission).

A question that a stall holds waits 200, 160, 120, 80 or 40 ms, because one comes every 40 ms. The limits lie
between: at 100 ms for the workers, and 10 ms more for the way there and back. Answers that are late by the
generator alone, which it tells apart, are not counted. Nothing is planted at the other worker: a run in which
it stalls or answers late shows that the machine paused, and is run again, as one that calls itself invalid.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.harness.second_gateway import second_gateway
from loadtests.traffic.planted_worker import Planted, command
from memserve.bench.figures import Spread, spread
from memserve.client import AsyncClient, CallFailed, TextDelta, wait_until_ready
from memserve.config import load_settings
from memserve.demo import MODEL_DIR
from memserve.processes.ports import taken_ports

SALT_KEY = "cd" * 32
STALLING = "w1"
STALL_EVERY_S = 3.0
PER_S, TOKENS = 25, 2
HELD_MS, ON_THE_WAY_MS, STALL_MS = 100.0, 10.0, 150.0
TRIES, QUICK_TRIES = 6, 3
INVALID_STATUS = 3
WORDS = "{salt} {number}.0 amber beacon canal desert ember falcon garden harbour"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where they are. truth: where the workers say what they did."""

    address: str
    http_url: str
    record: Path
    """What `memserve bench` writes."""
    truth: Path

    def planted(self, since: int) -> dict[str, int]:
        """What was planted after so many bytes of the file."""
        with self.truth.open("rb") as stream:
            stream.seek(since)
            events = [json.loads(line) for line in stream]
        held = [event["ms"] for event in events if event["kind"] == "held"]
        return {
            "stalls": sum(event["kind"] == "stall" for event in events),
            "held": sum(ms >= HELD_MS for ms in held),
            # Both workers refuse the same question: the gateway asks the other one too.
            "refused": len({event["number"] for event in events if event["kind"] == "refused"}),
        }

    def written_bytes(self) -> int:
        return self.truth.stat().st_size


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Running while inside."""
    truth = folder / "truth.jsonl"
    truth.touch()
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(PrivateRedis(folder))
        for worker_id in ("w0", STALLING):
            every_s = STALL_EVERY_S if worker_id == STALLING else 0.0
            planted = Planted(redis.url, SALT_KEY, worker_id, str(truth), stall_every_s=every_s)
            worker = subprocess.Popen(command(planted))
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
        settings = load_settings(
            {}, data_dir=folder, model=str(MODEL_DIR), redis_url=redis.url, salt_key=SALT_KEY
        )
        gateway = stack.enter_context(second_gateway(settings, folder / "gateway"))
        ports = taken_ports(folder / "gateway", gateway.process.pid)
        if ports is None or not wait_until_ready(gateway.address, 60.0, workers=2):
            raise RuntimeError("the gateway did not find its workers")
        yield Servers(gateway.address, f"http://127.0.0.1:{ports['http_port']}", folder / "bench.json", truth)


@dataclass(frozen=True, slots=True)
class Found:
    """What `memserve bench` found, and what was planted meanwhile."""

    way: str
    figures: dict[str, Any]
    planted: dict[str, int]

    @property
    def counted(self) -> dict[str, int]:
        """As the workers count."""
        return {
            "stalls": len(self.figures["stalls"]),
            "held": self.figures["reasons"].get("late", {}).get("ttft", 0)
            - self.figures["late_by_generator"],
            "refused": self.figures["outcomes"]["refused"],
        }


def bench(running: Servers, way: str, seconds: float, tries: int) -> Found:
    """One valid run. Raises RuntimeError when no try is valid."""
    words = [
        "chat", "--address", running.address, "--rate", str(PER_S), "--seconds", str(seconds),
        "--save", str(running.record),
        *(("--http", running.http_url) if way == "HTTP" else ()),
    ]  # fmt: skip
    for setting in (
        "arrivals.order='constant'", "prompt.shared_texts=0", f"output.tokens={TOKENS}",
        f"slo.ttft_ms={HELD_MS + ON_THE_WAY_MS}", "slo.tpot_ms=1000", f"limits.stall_ms={STALL_MS}",
    ):  # fmt: skip
        words += ["--set", setting]
    for number in range(tries):
        since = running.written_bytes()
        report(f"memserve bench over {way}, {PER_S}/s for {seconds:g} s, try {number + 1}")
        done = subprocess.run(
            [sys.executable, "-m", "memserve", "bench", *words],
            stdout=sys.stderr.fileno(), check=False,
        )  # fmt: skip
        if done.returncode not in (0, INVALID_STATUS):
            raise RuntimeError(f"memserve bench ended with {done.returncode}")
        # The workers write when a stall ends; what the last one held is written then.
        time.sleep(0.5)
        run = json.loads(running.record.read_text(encoding="utf-8"))["runs"][0]
        noise = list(noise_of(run))
        if done.returncode == 0 and not noise:
            return Found(way, run["figures"], running.planted(since))
        report("the run does not count: " + (", ".join(noise) or "it is invalid"))
    raise RuntimeError(f"no valid run in {tries} tries: this machine is too busy")


def noise_of(run: dict[str, Any]) -> Iterator[str]:
    """What the machine itself did: nothing was planted at the other worker, which must show nothing."""
    others = [row for row in run["rows"] if row["worker"] and row["worker"] != STALLING]
    late = [row for row in others if 1000 * (row["ttft_s"] or 0.0) > HELD_MS + ON_THE_WAY_MS]
    by_server = [row for row in late if row["sent_s"] - row["intended_s"] < ON_THE_WAY_MS / 1000]
    if by_server:
        yield f"{len(by_server)} late at the other worker"
    stalls = [stall for stall in run["figures"]["stalls"] if stall["worker"] != STALLING]
    if stalls:
        yield f"{len(stalls)} stalls of the other worker"


async def closed_loop(running: Servers, seconds: float) -> list[float]:
    """TTFTs as such a tool takes them, in seconds, from when it sends."""
    taken: list[float] = []
    until_s = time.monotonic() + seconds
    async with AsyncClient(running.address) as client:
        for number in itertools.count():
            if time.monotonic() >= until_s:
                break
            question = WORDS.format(salt="closed", number=number)
            began_s, heard = time.monotonic(), False
            with contextlib.suppress(CallFailed):
                async for event in client.stream(question, max_tokens=TOKENS, min_tokens=TOKENS):
                    if isinstance(event, TextDelta) and not heard:
                        heard = True
                        taken.append(time.monotonic() - began_s)
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("planted", __doc__).parse_args(arguments)
    seconds, tries = (8.0, QUICK_TRIES) if chosen.quick else (60.0, TRIES)
    # A unix socket's path has 100 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ms-") as name, servers(Path(name)) as running:
        asyncio.run(closed_loop(running, 1.0))  # the first requests of a gateway are slow
        found = [bench(running, way, seconds, tries) for way in ("gRPC", "HTTP")]
        since = running.written_bytes()
        report(f"a closed loop for {seconds:g} s")
        ttfts_s = asyncio.run(closed_loop(running, seconds))
        closed = Closed(ttfts_s, seconds, running.planted(since)["stalls"])
    return told(found, closed, as_json=chosen.json)


@dataclass(frozen=True, slots=True)
class Closed:
    """What the closed loop measured."""

    ttfts_s: Sequence[float]
    seconds: float
    stalls: int
    """That happened meanwhile."""

    @property
    def took(self) -> Spread:
        took = spread(self.ttfts_s)
        assert took is not None
        return took

    @property
    def slow(self) -> int:
        return sum(1000 * ttft >= HELD_MS + ON_THE_WAY_MS for ttft in self.ttfts_s)


def told(found: Sequence[Found], closed: Closed, *, as_json: bool) -> int:
    """Returns the exit status."""
    took = closed.took
    rows = [
        [
            f"bench, {each.way}", each.figures["offered"], f"{each.figures['sent_per_s']:.1f}",
            *(f"{each.counted[name]} / {each.planted[name]}" for name in ("stalls", "held", "refused")),
            *(f"{each.figures['ttft_ms'][name]:.0f}" for name in ("p50", "p90", "p99", "most")),
        ]
        for each in found
    ]  # fmt: skip
    rows.append(
        [
            "closed loop", took.count, f"{took.count / closed.seconds:.1f}",
            f"- / {closed.stalls}", closed.slow, "-", *_ms(took),
        ]
    )  # fmt: skip
    columns = ["tool", "requests", "a second", "stalls found / planted", "held", "refused"]
    print_table([*columns, "TTFT p50", "p90", "p99", "most"], rows)
    bars = []
    for each in found:
        for name in ("stalls", "held", "refused"):
            off = abs(each.counted[name] - each.planted[name])
            bars.append(Bar(f"{each.way}: {name}, found less planted", off, at_most=0))
        bars.append(Bar(f"{each.way}: stalls planted", each.planted["stalls"], at_least=2))
        share = 100 * each.planted["refused"] / each.figures["offered"]
        bars.append(Bar(f"{each.way}: refusals planted, %", share, at_least=5, at_most=5))
        bars.append(Bar(f"{each.way}: p99 of TTFT, ms", each.figures["ttft_ms"]["p99"], at_least=HELD_MS))
    bars.append(Bar("closed loop: stalls meanwhile", closed.stalls, at_least=2))
    bars.append(Bar("closed loop: p99 of TTFT, ms, which does not see them", took.p99, at_most=HELD_MS))
    figures: dict[str, object] = {
        "found": {each.way: {"counted": each.counted, "planted": each.planted} for each in found},
        "closed_ttft_ms": {"p50": took.p50, "p99": took.p99, "most": took.most, "slow": closed.slow},
    }
    return finish(bars, figures, as_json)


def _ms(took: Spread) -> list[str]:
    return [f"{value:.0f}" for value in (took.p50, took.p90, took.p99, took.most)]


if __name__ == "__main__":
    sys.exit(main())
