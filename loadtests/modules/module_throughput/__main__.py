"""Tokens a second of a mixed batch over 8 LoRA adapters: through memserve, through vLLM alone, and of the
base model.

Through memserve: the gRPC client, the gateway and one worker, as `memserve up` starts them. vLLM alone:
`AsyncLLM` in a process of its own, called directly, without a server, a KV connector or KV events; else with
the same arguments, the same executor and LoRA arithmetic (memserve corrects vLLM's for the CPU, see
memserve/worker/engine/cpu.py), one thread on the same core, the same prompts and answers of the same length.
A second vLLM alone has vLLM's own arithmetic, for information.

The model has a 0.5B shape and random weights. The load is the engine's: more requests are under way than it
takes into its batch, and their answers differ in length. In every round each arm in turn answers the same
requests, with prompts that no round had before; the other arms' engines wait meanwhile, and the
processor time that they take is shown. A figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.engines import BLOCK_TOKENS, prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import HIDDEN, write_adapter, write_model
from loadtests.harness.stack import running_stack
from loadtests.modules.module_throughput.arms import (
    KV_BYTES,
    RANK,
    Alone,
    Served,
    pin_engine,
    processor_s,
)
from loadtests.modules.module_throughput.load import ADAPTERS, BATCH, IN_FLIGHT, requests_of
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import open_model

LAYERS, QUICK_LAYERS = 24, 12
AT_LEAST = 0.95
MEMSERVE, ALONE, STOCK = "memserve", "vLLM alone", "vLLM alone, its own LoRA arithmetic"


@dataclass(frozen=True, slots=True)
class Round:
    """Figures of every arm, by its name."""

    adapters: dict[str, float]
    """Output tokens a second, with the adapters."""
    base: dict[str, float]
    """Output tokens a second of the base model."""
    idle: dict[str, float]
    """Processor time while another arm answers, in shares of a core."""


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
            before = {other: processor_s(arms[other].processes) for other in names if other != name}
            started_s = time.perf_counter()
            speed[name] = arms[name].run(requests)
            seconds = time.perf_counter() - started_s
            for other, taken_s in before.items():
                idle[other].append((processor_s(arms[other].processes) - taken_s) / seconds)
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
        return statistics.median(ratio(of_round) for of_round in rounds)

    speeds = {
        f"{name}, {what}": statistics.median(getattr(of_round, field)[name] for of_round in rounds)
        for what, field in ((f"{ADAPTERS} adapters", "adapters"), ("base", "base"))
        for name in getattr(rounds[0], field)
    }
    ratios = {
        "memserve ÷ vLLM alone, adapters": median(
            lambda of_round: of_round.adapters[MEMSERVE] / of_round.adapters[ALONE]
        ),
        "memserve ÷ vLLM alone, base": median(
            lambda of_round: of_round.base[MEMSERVE] / of_round.base[ALONE]
        ),
        "adapters ÷ base, memserve": median(
            lambda of_round: of_round.adapters[MEMSERVE] / of_round.base[MEMSERVE]
        ),
        "adapters ÷ base, vLLM alone": median(
            lambda of_round: of_round.adapters[ALONE] / of_round.base[ALONE]
        ),
    }
    if STOCK in rounds[0].adapters:
        ratios["memserve ÷ vLLM alone with its own LoRA arithmetic"] = median(
            lambda of_round: of_round.adapters[MEMSERVE] / of_round.adapters[STOCK]
        )
    idle = {name: statistics.mean(of_round.idle[name] for of_round in rounds) for name in rounds[0].idle}
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
    spread = [of_round.adapters[MEMSERVE] / of_round.adapters[ALONE] for of_round in rounds]
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
