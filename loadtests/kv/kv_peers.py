"""A prefix that only the store holds: TTFT with memserve's Redis tier against LMCache on Redis and against
vLLM's file-system tier.

One real vLLM engine an arm, on the same cores with the same thread binding and a model of a 0.5B shape. Every
arm is asked a prompt cold and stores it. Then, in every round, the engine of each arm in turn forgets it and
is asked again (remote hit) and once more (local hit). A figure is the median of the rounds' ratios.

LMCache (`python -m loadtests.install_lmcache`) runs in its multi-process mode, its server beside the engine,
and moves the KV in and out of the engine's memory itself (`lmcache_driven`): of its ways on the CPU none is
quicker. Its server's memory is emptied before every remote hit. Its engine is vLLM as vLLM serves on the CPU,
with the model in a process of its own. A fourth arm gives LMCache the executor of memserve's workers, which
is quicker and not part of vLLM: what is then left between the two is what their stores make of it.

The file-system tier has memserve's executor, too, and takes the same path through host memory as memserve's,
in chunks of the same size, to files on disk in a temporary folder, or in the folder that `--files-in` names:
in /dev/shm, which is memory, nothing can be quicker, and nothing is shared with another machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis

from loadtests.harness import install_lmcache
from loadtests.harness.engines import (
    BLOCK_TOKENS,
    KV_BYTES_PER_TOKEN,
    NAMESPACE,
    BenchEngine,
    prepare_environment,
    random_prompt,
    write_shape,
)
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.kept_port import KeptPort
from loadtests.harness.redis_server import PrivateRedis

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig

MEMSERVE, FILES, LMCACHE, LMCACHE_HERE = "memserve", "vLLM file system", "LMCache", "LMCache, our executor"
HOST_BYTES = 256 << 20
LMCACHE_CHUNK_TOKENS = 256
LMCACHE_START_TIMEOUT_S = 60.0
STORE_TIMEOUT_S = 30.0
# What of a prompt may miss: its last, partial chunk.
CACHED_AT_LEAST = 0.95
ANSWER_TOKENS = 16
AT_MOST = {FILES: 1.0, LMCACHE: 0.85}
MISSING = (
    "LMCache is not installed, its bar is not measured, the exit status will be 1: python -m "
    "loadtests.install_lmcache"
)
# Between an answer and what comes next: for what an engine or a server still does after it.
SETTLE_S = 0.1
# vLLM's own executor looks for work without a pause for a second after the last.
VLLMS_EXECUTOR_SETTLE_S = 1.2


class ArmEngine(BenchEngine):
    """The engine of one arm. They differ in `transfer` only."""

    def answer(self, prompt: list[int]) -> list[tuple[int, float]]:
        """Greedy tokens, each with its log-probability."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True, detokenize=False, logprobs=0
        )
        (output,) = self.llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)  # type: ignore[list-item]
        completion = output.outputs[0]
        return [
            (token, places[token].logprob)
            for token, places in zip(completion.token_ids, completion.logprobs or (), strict=True)
        ]

    def forget(self) -> None:
        """Drop every prefix in the engine's own memory and in its host memory."""
        assert self.llm.reset_prefix_cache(reset_connector=True)


@dataclass(frozen=True)
class Arm:
    """An engine and its store. stored: how many chunks the store holds. forget: drop prefixes from everywhere
    but the store. settle_s: until its engine is at rest after an answer.
    """

    name: str
    engine: ArmEngine
    chunk_tokens: int
    stored: Callable[[], int]
    forget: Callable[[], None]
    redis: redis.Redis | None
    settle_s: float = SETTLE_S

    def read(self) -> tuple[int, int]:
        """How often its Redis was asked for a value so far, and the bytes that it has sent."""
        if self.redis is None:
            return 0, 0
        counted: Any = self.redis.info("everything")
        values = sum(
            counted.get(f"cmdstat_{name}", {"calls": 0})["calls"]
            for name in ("get", "getex", "mget", "getrange")
        )
        return values, int(counted["total_net_output_bytes"])


class LMCacheServer:
    """LMCache's server process with Redis as its second level. Runs while the `with` block does."""

    def __init__(self, store: PrivateRedis, folder: Path) -> None:
        self._log = folder / "lmcache.log"
        self._kept = KeptPort(), KeptPort()
        self.port, http_port = (kept.number for kept in self._kept)
        self._http = f"http://127.0.0.1:{http_port}"
        level = {"type": "resp", "host": "127.0.0.1", "port": store.port}
        self._command = [
            sys.executable,
            "-m",
            "lmcache.v1.multiprocess.http_server",
            "--disable-observability",
        ]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port), "--http-port", str(http_port)]
        self._command += ["--chunk-size", str(LMCACHE_CHUNK_TOKENS), "--l2-adapter", json.dumps(level)]
        self._command += ["--l1-size-gb", "0.5", "--no-l1-use-lazy", "--eviction-policy", "LRU"]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(install_lmcache.FOLDER)}
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        deadline_s = time.monotonic() + LMCACHE_START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                raise RuntimeError(
                    f"LMCache's server does not start:\n{self._log.read_text(encoding='utf-8')[-2000:]}"
                )
            time.sleep(0.1)
        return self

    def forget(self) -> None:
        """Drop what its own memory holds; Redis keeps it."""
        urllib.request.urlopen(
            urllib.request.Request(f"{self._http}/cache/clear", method="POST"), timeout=10
        ).close()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self._http}/healthcheck", timeout=1).close()
        except (urllib.error.URLError, TimeoutError):
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _redis(stack: contextlib.ExitStack, folder: Path) -> tuple[PrivateRedis, redis.Redis]:
    folder.mkdir()
    server = stack.enter_context(PrivateRedis(folder))
    return server, stack.enter_context(redis.Redis.from_url(server.url))


def _engine(
    stack: contextlib.ExitStack, model: Path, transfer: KVTransferConfig, *, vllms_executor: bool = False
) -> ArmEngine:
    engine = ArmEngine(model, transfer=transfer, vllms_executor=vllms_executor)
    stack.callback(engine.close)
    return engine


def memserve_arm(stack: contextlib.ExitStack, model: Path, folder: Path) -> Arm:
    from memserve.kv.keys import VALUE_PREFIX
    from memserve.worker.kv.offload import chunk_blocks, kv_transfer_config
    from memserve.worker.kv.redis_tier import RedisTierSettings

    server, client = _redis(stack, folder / "memserve")
    blocks = chunk_blocks(kv_bytes_per_token=KV_BYTES_PER_TOKEN, block_size_tokens=BLOCK_TOKENS)
    tier = RedisTierSettings(redis_url=server.url, namespace=NAMESPACE)
    transfer = kv_transfer_config(platform="cpu", tier=tier, host_bytes=HOST_BYTES, blocks_per_chunk=blocks)
    engine = _engine(stack, model, transfer)

    def stored() -> int:
        return sum(1 for _ in client.scan_iter(match=f"{VALUE_PREFIX}*", count=1000))

    return Arm(MEMSERVE, engine, blocks * BLOCK_TOKENS, stored, engine.forget, client)


def files_arm(stack: contextlib.ExitStack, model: Path, folder: Path) -> Arm:
    from vllm.config import KVTransferConfig

    from memserve.worker.kv.offload import CpuTieringOffloadingSpec, chunk_blocks

    root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
    blocks = chunk_blocks(kv_bytes_per_token=KV_BYTES_PER_TOKEN, block_size_tokens=BLOCK_TOKENS)
    transfer = KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "spec_name": CpuTieringOffloadingSpec.__name__,
            "spec_module_path": CpuTieringOffloadingSpec.__module__,
            "cpu_bytes_to_use": HOST_BYTES,
            "blocks_per_chunk": blocks,
            "secondary_tiers": [{"type": "fs", "root_dir": str(root)}],
        },
    )
    engine = _engine(stack, model, transfer)
    return Arm(
        FILES, engine, blocks * BLOCK_TOKENS, lambda: sum(1 for _ in root.rglob("*.bin")), engine.forget, None
    )


def lmcache_arm(stack: contextlib.ExitStack, model: Path, folder: Path, *, vllms_executor: bool) -> Arm:
    from vllm.config import KVTransferConfig

    folder = folder / f"lmcache-{vllms_executor}"
    store, client = _redis(stack, folder)
    os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_LOG_LEVEL="ERROR", LMCACHE_DISABLE_BANNER="1")
    server = stack.enter_context(LMCacheServer(store, folder))
    # At the end, so that nothing of the environment is hidden; the engine's process inherits it.
    if str(install_lmcache.FOLDER) not in sys.path:
        sys.path.append(str(install_lmcache.FOLDER))
    transfer = KVTransferConfig(
        kv_connector="LMCacheMPConnector",
        kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": server.port,
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
        },
    )
    engine = _engine(stack, model, transfer, vllms_executor=vllms_executor)

    def forget() -> None:
        engine.forget()
        server.forget()

    name, settle_s = (LMCACHE, VLLMS_EXECUTOR_SETTLE_S) if vllms_executor else (LMCACHE_HERE, SETTLE_S)
    return Arm(name, engine, LMCACHE_CHUNK_TOKENS, lambda: int(client.dbsize()), forget, client, settle_s)


@dataclass
class Taken:
    """What one arm did with prompts of one length. local_reads: how often its local hits asked Redis for a
    value; read_bytes: what Redis sent for one remote hit; as_local, as_cold: prompts that a remote hit
    answered as a local hit did, to the last bit of the log-probabilities, and with the tokens of the cold
    answer.
    """

    remote_s: list[float] = field(default_factory=list)
    local_s: list[float] = field(default_factory=list)
    local_reads: int = 0
    read_bytes: int = 0
    as_local: int = 0
    as_cold: int = 0


def fill(arm: Arm, prompt: list[int], taken: Taken) -> None:
    """Ask a new prompt, wait until the store has it, and compare what a local and a remote hit answer."""
    wanted = arm.stored() + (len(prompt) - 1) // arm.chunk_tokens
    cold = arm.engine.answer(prompt)
    deadline_s = time.monotonic() + STORE_TIMEOUT_S
    while arm.stored() < wanted:
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"{arm.name}: {arm.stored()} of {wanted} chunks are stored after {STORE_TIMEOUT_S:.0f} s"
            )
        time.sleep(0.02)
    local = arm.engine.answer(prompt)
    arm.forget()
    remote = arm.engine.answer(prompt)
    taken.as_local += remote == local
    taken.as_cold += [token for token, _ in remote] == [token for token, _ in cold]


def hit(arm: Arm, prompt: list[int]) -> tuple[float, int, int]:
    """Returns the TTFT of a hit in seconds, how often it asked Redis for a value, and the bytes that Redis
    sent.
    """
    values, sent = arm.read()
    seconds, cached = arm.engine.first_token(prompt)
    time.sleep(arm.settle_s)
    values_after, sent_after = arm.read()
    if cached < CACHED_AT_LEAST * len(prompt):
        raise AssertionError(f"{arm.name}: {cached} of {len(prompt)} tokens were cached")
    return seconds, values_after - values, sent_after - sent


def measure(arms: Sequence[Arm], tokens: int, prompts: int, rounds: int) -> dict[str, Taken]:
    """By name of the arm. Every prompt has a first round that warms up and does not count."""
    taken = {arm.name: Taken() for arm in arms}
    for number in range(prompts):
        prompt = random_prompt(tokens * 1000 + number, tokens)
        for arm in arms:
            report(f"{tokens} tokens, prompt {number + 1} of {prompts}: cold, {arm.name}")
            fill(arm, prompt, taken[arm.name])
        for turn in range(rounds + 1):
            first = turn % len(arms)
            for arm in (*arms[first:], *arms[:first]):
                own = taken[arm.name]
                arm.forget()
                time.sleep(arm.settle_s)
                remote_s, values, own.read_bytes = hit(arm, prompt)
                local_s, local_values, _ = hit(arm, prompt)
                if arm.redis is not None and values < (tokens - 1) // arm.chunk_tokens:
                    raise AssertionError(f"{arm.name}: a remote hit read {values} values from Redis")
                own.local_reads += local_values
                if turn:
                    own.remote_s.append(remote_s)
                    own.local_s.append(local_s)
            if turn:
                report(
                    f"round {turn} of {rounds}, remote: "
                    + ", ".join(f"{name} {own.remote_s[-1]:.3f} s" for name, own in taken.items())
                )
    return taken


def rows(tokens: int, taken: dict[str, Taken]) -> list[dict[str, Any]]:
    """One an arm, for the table and for JSON."""
    ours = taken[MEMSERVE].remote_s
    return [
        {
            "arm": name,
            "tokens": tokens,
            "remote_s": statistics.median(own.remote_s),
            "memserve_of_it": statistics.median(
                mine / other for mine, other in zip(ours, own.remote_s, strict=True)
            ),
            "local_s": statistics.median(own.local_s),
            "read_bytes": own.read_bytes,
            "local_reads": own.local_reads,
            "as_local": own.as_local,
            "as_cold": own.as_cold,
        }
        for name, own in taken.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("kv_peers", __doc__)
    options.add_argument(
        "--files-in",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="folder for the file-system tier (default: %(default)s)",
    )
    chosen = options.parse_args(arguments)
    with_lmcache = not chosen.quick and install_lmcache.is_installed()
    if chosen.quick:
        report("LMCache is left out: three engines do not start in a minute")
    elif not with_lmcache:
        report(MISSING)
    prepare_environment()
    sizes, prompts, rounds = ((2080,), 1, 3) if chosen.quick else ((2080, 4128), 2, 10)
    figures: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = write_shape(folder / "model")
        report("starting the engines")
        arms = [memserve_arm(stack, model, folder), files_arm(stack, model, chosen.files_in)]
        if with_lmcache:
            arms += (lmcache_arm(stack, model, folder, vllms_executor=each) for each in (True, False))
        for tokens in sizes:
            figures += rows(tokens, measure(arms, tokens, prompts, rounds))
    status = show_results(figures, prompts, chosen)
    if not chosen.quick and not with_lmcache:
        report(MISSING)
        return 1
    return status


def show_results(figures: list[dict[str, Any]], prompts: int, chosen: argparse.Namespace) -> int:
    """The table and the bars. Returns the exit status."""
    columns = (
        "tokens, arm",
        "remote s",
        "memserve ÷ it",
        "local s",
        "MB a remote hit",
        "reads by local hits",
        "as local",
        "as cold",
    )
    cells = [
        (
            f"{row['tokens']:,} {row['arm']}",
            *(f"{row[name]:.3f}" for name in ("remote_s", "memserve_of_it", "local_s")),
            f"{row['read_bytes'] / 1e6:.1f}" if row["arm"] != FILES else "",
            row["local_reads"] if row["arm"] != FILES else "",
            f"{row['as_local']} of {prompts}",
            f"{row['as_cold']} of {prompts}",
        )
        for row in figures
    ]
    print_table(columns, cells)
    ours = [row for row in figures if row["arm"] == MEMSERVE]
    longest = max(row["tokens"] for row in figures)
    bars = [
        Bar(
            f"{longest:,} tokens, remote: memserve ÷ {row['arm']}",
            row["memserve_of_it"],
            at_most=AT_MOST[row["arm"]],
        )
        for row in figures
        if row["tokens"] == longest and row["arm"] in AT_MOST
    ]
    bars.append(
        Bar(
            "values that local hits of memserve read from Redis",
            sum(row["local_reads"] for row in ours),
            at_most=0,
        )
    )
    bars.append(
        Bar(
            "remote hits of memserve that answer unlike local ones",
            sum(prompts - row["as_local"] for row in ours),
            at_most=0,
        )
    )
    return finish(bars, {"figures": figures, "files_in": str(chosen.files_in)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
