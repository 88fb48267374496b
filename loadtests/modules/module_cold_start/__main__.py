"""What an adapter costs where it is not ready: from disk, from host memory, among a thousand others, and with
more adapters than slots.

One memserve with two workers, four adapter slots in each and room for sixteen adapters in each one's host
memory (the defaults), on a model of a 0.5B shape with fewer layers and random weights. Everything goes
through the gRPC client; a TTFT is from the call to the first token, as the client sees it, in an idle
memserve.

1. First request on an adapter, on one worker, by where the status says that it has it: in a slot, in host
   memory, on disk with its file in the page cache, on disk with the file dropped from it. Each round asks the
   base as often; a figure is the median of TTFT ÷ the round's base TTFT.
2. Requests on resident adapters with 10 and with 1,000 modules registered, in blocks 10, 10, 1,000, 1,000 in
   every round: the two equal blocks tell the noise. The 990 are registered and removed in the registry
   itself, with the content of one that was published.
3. 8, 16, 32 and 64 adapters in shuffled rotation over the eight slots. `routing` leaves the choice of the
   worker to memserve, `random` draws it, `partitioned` gives every adapter a worker for good, which no
   affinity can do better while the load is even. Throughput of the same requests in one run, in turn. Shares
   are of requests, by where their worker had the adapter when they were routed.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, report
from loadtests.harness.random_model import write_model
from loadtests.harness.stack import running_stack
from loadtests.modules.module_cold_start.adapters import LAYERS, RANK, publish
from loadtests.modules.module_cold_start.places import SLOTS, places_round, show_places
from loadtests.modules.module_cold_start.registered import (
    FEW,
    MANY,
    registered_round,
    show_registered,
)
from loadtests.modules.module_cold_start.rotation import ROTATIONS, Run, rotation_round, show_rotations
from memserve.client import AsyncClient
from memserve.config import Settings
from memserve.memory.modules.registry.store import ModuleStore

MANY_AT_MOST = 1.05
PARTS = PLACES, REGISTERED, ROTATION = "places", "registered", "rotation"


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of every round."""

    publish_s: float
    """What publishing one adapter takes, the median."""
    places: list[dict[str, list[float]]]
    """As of `places_round`."""
    registered: list[list[float]]
    """As of `registered_round`."""
    rotations: list[dict[int, dict[str, Run]]]
    """As of `rotation_round`."""


async def measure(
    settings: Settings, address: str, folder: Path, parts: Sequence[str], *, quick: bool
) -> Measured:
    """Measure the parts, in their order: only 10 modules are registered in the first two."""
    counts = ROTATIONS[:3:2] if quick else ROTATIONS
    modules = settings.modules_root / "modules"
    store = ModuleStore(settings.redis)
    measured = Measured(0.0, [], [], [])
    try:
        async with AsyncClient(address, timeout_s=300.0) as client:
            worker_id = min(worker.worker_id for worker in (await client.status()).workers)
            adapters, publish_s = await publish(client, folder, modules, range(FEW))
            measured = replace(measured, publish_s=publish_s)
            report(
                f"publishing an adapter of {adapters[0].version.size_bytes / 1e6:.1f} MB takes "
                f"{publish_s:.2f} s"
            )
            for seed in range(2 if quick else 10) if PLACES in parts else ():
                measured.places.append(await places_round(client, worker_id, adapters, seed))
                report(f"places: {_medians_ms(measured.places[-1])}")
            for _ in range(2 if quick else 6) if REGISTERED in parts else ():
                measured.registered.append(
                    await registered_round(client, worker_id, store, adapters, 40 if quick else 150)
                )
                report(f"registered: {[f'{block * 1000:.2f} ms' for block in measured.registered[-1]]}")
            if ROTATION in parts:
                adapters += (await publish(client, folder, modules, range(FEW, max(counts))))[0]
                for seed in range(1 if quick else 3):
                    measured.rotations.append(
                        await rotation_round(client, adapters, counts, 100 + seed, 32 if quick else 96)
                    )
    finally:
        await store.close()
    return measured


def _medians_ms(taken: dict[str, list[float]]) -> dict[str, str]:
    return {name: f"{statistics.median(seconds) * 1000:.1f} ms" for name, seconds in taken.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("module_cold_start", __doc__)
    options.add_argument(
        "--part",
        choices=PARTS,
        action="append",
        help="measure this part only; may be given again (default: all)",
    )
    chosen = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="memserve-model-") as scratch:
        folder = Path(scratch)
        report(f"writing a model of {LAYERS} layers")
        model = write_model(folder / "model", LAYERS)
        with running_stack(model=str(model), workers=2, max_loras=SLOTS, max_lora_rank=RANK) as stack:
            measured = asyncio.run(
                measure(stack.settings, stack.address, folder, chosen.part or PARTS, quick=chosen.quick)
            )
    return show_results(measured, chosen.json)


def show_results(measured: Measured, as_json: bool) -> int:
    """The tables and the bars. Returns the exit status."""
    bars: list[Bar] = []
    figures: dict[str, object] = {"publish_s": measured.publish_s}
    if measured.places:
        figures["places"] = show_places(measured.places)
    if measured.registered:
        many, noise = show_registered(measured.registered)
        figures |= {"many_of_few": many, "equal_blocks_differ_by": noise}
        bars.append(Bar(f"TTFT with {MANY:,} modules registered ÷ with {FEW}", many, at_most=MANY_AT_MOST))
    if measured.rotations:
        figures["rotations"], more_bars = show_rotations(measured.rotations)
        bars += more_bars
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
