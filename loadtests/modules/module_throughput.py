"""Tokens a second of a mixed batch over 8 LoRA adapters: through memserve, through vLLM alone, and of the
base model.

Through memserve: the gRPC client, the gateway and one worker, as `memserve up` starts them. vLLM alone:
`AsyncLLM` in a process of its own, called directly, without a server, a KV connector or KV events; else with
the same arguments, the same executor and LoRA arithmetic (memserve corrects vLLM's for the CPU, see
memserve/worker/engine/cpu.py), one thread on the same core, the same prompts and answers of the same length.
A second vLLM alone has vLLM's own arithmetic, for information.

The model has a 0.5B shape and random weights. The load is the engine's: more requests are under way than it
takes into its batch, and their answers differ in length. In every round each arm in turn answers the same
requests, with prompts that no round had before; the other arms' engines wait meanwhile, and what processor
time they take is told. A figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import HIDDEN, write_adapter, write_model
from loadtests.harness.stack import running_stack
from loadtests.harness.up import is_engine
from memserve.client import AsyncClient, CallFailed, Client
from memserve.config import MIB
from memserve.demo import facts
from memserve.domain import Message, Role, Sampling
from memserve.embedded import Stack, marked_processes
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import open_model

ADAPTERS = 8
RANK = 16
LAYERS, QUICK_LAYERS = 24, 12
# Answers that the engine decodes at the same time, two of each adapter; so many requests are under way, so
# that it never waits for one.
BATCH, IN_FLIGHT = 16, 24
PROMPT_TOKENS = 96
# Every answer has one of these lengths, so that they do not all end in the same step.
ANSWER_TOKENS = range(16, 49)
BLOCK_TOKENS = 32
KV_BYTES = 512 * MIB
AT_LEAST = 0.95
START_TIMEOUT_S = 180.0
ROUND_TIMEOUT_S = 300.0
MEMSERVE, ALONE, STOCK = "memserve", "vLLM alone", "vLLM alone, its own LoRA arithmetic"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: the text, its prompt's token ids, the tokens of its answer, and the number of its adapter
    or None.
    """

    text: str
    token_ids: list[int]
    answer_tokens: int
    adapter: int | None


Ask = Callable[[Asked], Awaitable[int]]
"""Answers one request. Returns the tokens of the answer; -1 for an answer that failed or ended early."""


async def drive(ask: Ask, requests: Sequence[Asked]) -> float:
    """Answer all, IN_FLIGHT at a time. Returns output tokens a second; what failed counts nothing."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def one(request: Asked) -> int:
        async with free:
            return await ask(request)

    started_s = time.perf_counter()
    tokens = await asyncio.gather(*(one(request) for request in requests))
    seconds = time.perf_counter() - started_s
    if min(tokens) < 0:
        report(f"{sum(count < 0 for count in tokens)} of {len(tokens)} answers failed")
    return sum(max(count, 0) for count in tokens) / seconds


class Alone:
    """vLLM without memserve, in a process of its own."""

    def __init__(self, model: Path, adapters: Sequence[Path], *, own_arithmetic: bool) -> None:
        """own_arithmetic: vLLM's, not memserve's correction of it."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve_alone, args=(theirs, model, list(adapters), own_arithmetic)
        )
        self._process.start()
        if not self._pipe.poll(START_TIMEOUT_S):
            self.close()
            raise TimeoutError("vLLM alone does not start")
        self._pipe.recv()

    def run(self, requests: Sequence[Asked]) -> float:
        """As `drive`."""
        self._pipe.send(list(requests))
        if not self._pipe.poll(ROUND_TIMEOUT_S):
            raise TimeoutError("vLLM alone does not answer")
        return float(self._pipe.recv())

    @property
    def processes(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(20)
        if self._process.is_alive():
            for process in self.processes:
                process.kill()
            self._process.join()


def _serve_alone(pipe: Connection, model: Path, adapters: Sequence[Path], own_arithmetic: bool) -> None:
    """The process of `Alone`: answers the runs that come through the pipe, until None comes."""
    prepare_environment()
    # Its sockets go with the model's directory.
    os.environ["VLLM_RPC_BASE_PATH"] = str(model.parent)
    asyncio.run(_serve_runs(pipe, model, adapters, own_arithmetic))


async def _serve_runs(pipe: Connection, model: Path, adapters: Sequence[Path], own_arithmetic: bool) -> None:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from memserve.worker.engine.cpu import CpuExecutor
    from memserve.worker.engine.engine import HASH_ALGORITHM

    files = open_model(model)
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model),
            dtype=files.dtype,
            max_model_len=files.max_context_tokens,
            max_num_seqs=BATCH,
            kv_cache_memory_bytes=KV_BYTES,
            block_size=BLOCK_TOKENS,
            enforce_eager=True,
            enable_prefix_caching=True,
            prefix_caching_hash_algo=HASH_ALGORITHM,
            enable_lora=True,
            max_loras=ADAPTERS,
            max_cpu_loras=2 * ADAPTERS,
            max_lora_rank=RANK,
            distributed_executor_backend=UniProcExecutor if own_arithmetic else CpuExecutor,
        )
    )
    count = 0

    async def ask(request: Asked) -> int:
        nonlocal count
        count += 1
        number = request.adapter
        lora = (
            None if number is None else LoRARequest(adapters[number].name, number + 1, str(adapters[number]))
        )
        wanted = request.answer_tokens
        params = SamplingParams(
            temperature=0.0, max_tokens=wanted, min_tokens=wanted, output_kind=RequestOutputKind.DELTA
        )
        prompt: Any = {"prompt_token_ids": request.token_ids}
        tokens = 0
        async for output in llm.generate(prompt, params, str(count), lora_request=lora):
            tokens += len(output.outputs[0].token_ids)
        return tokens if tokens == wanted else -1

    pipe.send("ready")
    # Waiting blocks this loop: between two runs nothing is to be done in it.
    while (requests := pipe.recv()) is not None:
        pipe.send(await drive(ask, requests))
    llm.shutdown()


class Served:
    """memserve: a running stack with the adapters published, and its client."""

    def __init__(self, stack: Stack, adapters: Sequence[Path]) -> None:
        self._stack = stack
        with Client(stack.address) as client:
            self._references = [
                client.modules.publish(adapter.name, adapter).reference for adapter in adapters
            ]

    def run(self, requests: Sequence[Asked]) -> float:
        """As `drive`."""
        return asyncio.run(self._run(requests))

    async def _run(self, requests: Sequence[Asked]) -> float:
        async with AsyncClient(self._stack.address, timeout_s=ROUND_TIMEOUT_S) as client:

            async def ask(request: Asked) -> int:
                sampling = Sampling(max_tokens=request.answer_tokens, min_tokens=request.answer_tokens)
                module = "" if request.adapter is None else self._references[request.adapter]
                try:
                    answer = await client.generate(request.text, module=module, sampling=sampling)
                except CallFailed as error:
                    report(f"memserve: {error}")
                    return -1
                usage = answer.usage
                right = (usage.prompt_tokens, usage.output_tokens) == (
                    len(request.token_ids),
                    request.answer_tokens,
                )
                return usage.output_tokens if right else -1

            return await drive(ask, requests)

    @property
    def processes(self) -> list[psutil.Process]:
        return list(marked_processes(self._stack.settings.data))


def pin_engine(processes: Iterable[psutil.Process]) -> None:
    """Have the engine among them compute on the last core. Cores differ, and an engine stays on one.
    Everything else may run on any.
    """
    for process in processes:
        if is_engine(process):
            # Of the main thread, which is the one that computes.
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            return
    raise RuntimeError("there is no engine to pin to a core")


def _processor_s(processes: Iterable[psutil.Process]) -> float:
    """Processor time that living processes have taken so far."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def requests_of(tokenizer: ChatTokenizer, seed: int, count: int, *, with_adapters: bool) -> list[Asked]:
    """New prompts of about PROMPT_TOKENS, the adapters in rotation."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        text = f"{seed} {number} {facts.handbook(seed * 1000 + number, PROMPT_TOKENS).text}"
        token_ids = tokenizer.encode([Message(Role.USER, text)])
        made.append(
            Asked(text, token_ids, draw.choice(ANSWER_TOKENS), number % ADAPTERS if with_adapters else None)
        )
    return made


@dataclass(frozen=True, slots=True)
class Round:
    """Output tokens a second of every arm, with the adapters and of the base; processor time of arms that
    wait, in shares of a core.
    """

    adapters: dict[str, float]
    base: dict[str, float]
    idle: dict[str, float]


def measure(arms: dict[str, Alone | Served], tokenizer: ChatTokenizer, seed: int, count: int) -> Round:
    """One round. The order of the arms turns from round to round."""
    names = list(arms)
    names = names[seed % len(names) :] + names[: seed % len(names)]
    idle: dict[str, list[float]] = {name: [] for name in names}
    speeds: list[dict[str, float]] = []
    for with_adapters in (True, False):
        requests = requests_of(tokenizer, 2 * seed + with_adapters, count, with_adapters=with_adapters)
        speed: dict[str, float] = {}
        for name in names:
            if name == STOCK and not with_adapters:
                continue
            before = {other: _processor_s(arms[other].processes) for other in names if other != name}
            started_s = time.perf_counter()
            speed[name] = arms[name].run(requests)
            seconds = time.perf_counter() - started_s
            for other, taken_s in before.items():
                idle[other].append((_processor_s(arms[other].processes) - taken_s) / seconds)
        speeds.append(speed)
    return Round(speeds[0], speeds[1], {name: statistics.mean(shares) for name, shares in idle.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("module_throughput", __doc__)
    options.add_argument(
        "--layers",
        type=int,
        default=LAYERS,
        help=f"layers of the model (default: {LAYERS}; quick: {QUICK_LAYERS})",
    )
    chosen = options.parse_args(arguments)
    layers = QUICK_LAYERS if chosen.quick else chosen.layers
    count = 24 if chosen.quick else 32
    prepare_environment()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ms-")))
        report(f"writing a model of {layers} layers and {ADAPTERS} adapters of rank {RANK}")
        model = write_model(folder / "model", layers)
        adapters = [
            write_adapter(folder / f"adapter-{number}", layers, RANK, seed=number)
            for number in range(ADAPTERS)
        ]
        served = running_stack(
            model=str(model),
            workers=1,
            max_concurrent=BATCH,
            block_tokens=BLOCK_TOKENS,
            kv_device_bytes=KV_BYTES,
            max_loras=ADAPTERS,
            max_cpu_loras=2 * ADAPTERS,
            max_lora_rank=RANK,
        )
        arms: dict[str, Alone | Served] = {MEMSERVE: Served(stack.enter_context(served), adapters)}
        for name in [ALONE] if chosen.quick else [ALONE, STOCK]:
            report(f"starting {name}")
            arms[name] = alone = Alone(model, adapters, own_arithmetic=name == STOCK)
            stack.callback(alone.close)
        tokenizer = ChatTokenizer(open_model(model))
        for name, arm in arms.items():
            report(f"first use: {name}")
            pin_engine(arm.processes)
            arm.run(requests_of(tokenizer, 999_999, BATCH, with_adapters=True))
        rounds = []
        for seed in range(2 if chosen.quick else 5):
            rounds.append(measure(arms, tokenizer, seed, count))
            report(f"round {seed + 1}: {rounds[-1]}")
    return show_results(rounds, count, layers, chosen.json)


def show_results(rounds: Sequence[Round], count: int, layers: int, as_json: bool) -> int:
    """The table and the bar. Returns the exit status."""

    def median(ratio: Callable[[Round], float]) -> float:
        return statistics.median(ratio(each) for each in rounds)

    speeds = {
        f"{name}, {what}": statistics.median(getattr(each, field)[name] for each in rounds)
        for what, field in ((f"{ADAPTERS} adapters", "adapters"), ("base", "base"))
        for name in getattr(rounds[0], field)
    }
    ratios = {
        "memserve ÷ vLLM alone, adapters": median(
            lambda each: each.adapters[MEMSERVE] / each.adapters[ALONE]
        ),
        "memserve ÷ vLLM alone, base": median(lambda each: each.base[MEMSERVE] / each.base[ALONE]),
        "adapters ÷ base, memserve": median(lambda each: each.adapters[MEMSERVE] / each.base[MEMSERVE]),
        "adapters ÷ base, vLLM alone": median(lambda each: each.adapters[ALONE] / each.base[ALONE]),
    }
    if STOCK in rounds[0].adapters:
        ratios["memserve ÷ vLLM alone with its own LoRA arithmetic"] = median(
            lambda each: each.adapters[MEMSERVE] / each.adapters[STOCK]
        )
    idle = {name: statistics.mean(each.idle[name] for each in rounds) for name in rounds[0].idle}
    print(
        f"{layers} layers of hidden {HIDDEN}, rank {RANK}, {count} requests in a run, {IN_FLIGHT} "
        f"under way, {BATCH} in the engine's batch"
    )
    print_table(("arm", "tokens/s"), [(name, f"{speed:.1f}") for name, speed in speeds.items()])
    print_table(
        ("median of the rounds' ratios", ""), [(name, f"{ratio:.3f}") for name, ratio in ratios.items()]
    )
    print_table(("waiting", "share of a core"), [(name, f"{share:.3f}") for name, share in idle.items()])
    bars = [
        Bar("memserve ÷ vLLM alone, adapters", ratios["memserve ÷ vLLM alone, adapters"], at_least=AT_LEAST)
    ]
    spread = [each.adapters[MEMSERVE] / each.adapters[ALONE] for each in rounds]
    return finish(
        bars,
        {
            "layers": layers,
            "tokens_per_s": speeds,
            "ratios": ratios,
            "spread": spread,
            "idle_core_share": idle,
        },
        as_json,
    )


if __name__ == "__main__":
    sys.exit(main())
