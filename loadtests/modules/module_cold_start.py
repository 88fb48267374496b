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
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_adapter, write_model
from loadtests.harness.stack import running_stack
from memserve.client import AsyncClient, CallFailed, Route, TextDelta
from memserve.config import Settings
from memserve.demo import facts
from memserve.domain import ModulePlace, ModuleVersion, Sampling
from memserve.memory.modules.registry.store import ModuleStore

LAYERS = 6
RANK = 16
PROMPT_TOKENS = 64
SLOTS = 4
FEW, MANY = 10, 1000
MANY_AT_MOST = 1.05
ROTATIONS = (8, 16, 32, 64)
IN_FLIGHT = 16
ANSWER_TOKENS = 16
# Of throughput; what two equal runs differ by on a machine that does other things.
WITHIN = 0.95
PLACE_TIMEOUT_S = 15.0
TENANT, PRINCIPAL = "default", "module_cold_start"
DEVICE, HOST, DISK, COLD = "in a slot", "in host memory", "on disk, in the page cache", "on disk"
PARTS = PLACES, REGISTERED, ROTATION = "places", "registered", "rotation"
ROUTING, RANDOM, PARTITIONED = "routing", "random", "partitioned"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published adapter and the file of its weights in the module store."""

    version: ModuleVersion
    weights: Path

    @property
    def reference(self) -> str:
        return self.version.reference


def prompt(seed: int) -> str:
    """A text that no other seed gives, of about PROMPT_TOKENS."""
    return f"{seed} {facts.handbook(seed, PROMPT_TOKENS).text}"


async def ttft_s(client: AsyncClient, text: str, module: str, worker_id: str) -> float:
    """Raises CallFailed."""
    first_s = 0.0
    started_s = time.perf_counter()
    async for event in client.stream(
        text, module=module, worker_id=worker_id, sampling=Sampling(max_tokens=2, min_tokens=2)
    ):
        if isinstance(event, TextDelta) and first_s == 0.0:
            first_s = time.perf_counter() - started_s
    return first_s


async def publish(
    client: AsyncClient, folder: Path, store: Path, numbers: Sequence[int]
) -> tuple[list[Adapter], float]:
    """Write, publish. Returns them and the seconds that publishing one took, the median."""
    adapters, seconds = [], []
    for number in numbers:
        written = await asyncio.to_thread(write_adapter, folder / f"r{number:02}", LAYERS, RANK, number)
        started_s = time.perf_counter()
        version = await client.modules.publish(f"r{number:02}", written)
        seconds.append(time.perf_counter() - started_s)
        adapters.append(Adapter(version, store / version.digest / "adapter_model.safetensors"))
    return adapters, statistics.median(seconds)


# 1. Where the adapter is


async def wait_for_place(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], place: ModulePlace
) -> None:
    """Until the status tells that the worker has all of them there."""
    deadline_s = time.monotonic() + PLACE_TIMEOUT_S
    while True:
        (held,) = [
            worker.modules for worker in (await client.status()).workers if worker.worker_id == worker_id
        ]
        if all(held.get(adapter.version.digest, ModulePlace.DISK) is place for adapter in adapters):
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the status does not tell that the adapters are {place.value}: {held}")
        await asyncio.sleep(0.05)


async def put(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], others: Sequence[Adapter], where: str
) -> None:
    """Have the worker hold `adapters` there. others: as many as there are slots."""
    if where in (DISK, COLD):
        for adapter in adapters:
            await client.modules.unload(adapter.reference, worker_id=worker_id)
        for adapter in adapters if where == COLD else ():
            drop_from_page_cache(adapter.weights)
        await wait_for_place(client, worker_id, adapters, ModulePlace.DISK)
        return
    # What is used last is in a slot.
    for adapter in [*adapters, *(others if where == HOST else ())]:
        await ttft_s(client, "warm", adapter.reference, worker_id)
    await wait_for_place(
        client, worker_id, adapters, ModulePlace.HOST if where == HOST else ModulePlace.DEVICE
    )


def drop_from_page_cache(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def places_round(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], seed: int
) -> dict[str, list[float]]:
    """TTFT of SLOTS adapters in every place, and of the base, in seconds."""
    measured, others = adapters[:SLOTS], adapters[SLOTS : 2 * SLOTS]
    taken: dict[str, list[float]] = {"base": []}
    for turn, where in enumerate((DEVICE, HOST, DISK, COLD)):
        await put(client, worker_id, measured, others, where)
        taken[where] = []
        for number, adapter in enumerate(measured):
            at = (seed * 4 + turn) * 2 * SLOTS + number
            taken[where].append(await ttft_s(client, prompt(at), adapter.reference, worker_id))
            taken["base"].append(await ttft_s(client, prompt(at + SLOTS), "", worker_id))
    return taken


# 2. How many are registered


@contextlib.asynccontextmanager
async def registered(store: ModuleStore, content: ModuleVersion, count: int) -> AsyncIterator[None]:
    """While inside, so many more modules are registered."""
    made = [
        await store.publish(TENANT, PRINCIPAL, replace(content, module=f"many-{number:04}"))
        for number in range(count)
    ]
    try:
        yield
    finally:
        for version in made:
            await store.delete_version(TENANT, PRINCIPAL, version.module, version.version)


async def resident_block(
    client: AsyncClient, worker_id: str, adapters: Sequence[Adapter], requests: int
) -> float:
    """Median TTFT of short prompts on adapters that are in slots, in seconds."""
    for adapter in adapters:
        await ttft_s(client, "warm", adapter.reference, worker_id)
    return statistics.median(
        [
            await ttft_s(client, f"Question {number}", adapters[number % len(adapters)].reference, worker_id)
            for number in range(requests)
        ]
    )


async def registered_round(
    client: AsyncClient, worker_id: str, store: ModuleStore, adapters: Sequence[Adapter], requests: int
) -> list[float]:
    """Median TTFT of four blocks: few, few, many, many registered."""
    resident = adapters[:SLOTS]
    taken = [await resident_block(client, worker_id, resident, requests) for _ in range(2)]
    async with registered(store, adapters[0].version, MANY - FEW):
        if (count := (await client.status()).modules) != MANY:
            raise RuntimeError(f"{count} modules are registered, not {MANY}")
        taken += [await resident_block(client, worker_id, resident, requests) for _ in range(2)]
    return taken


# 3. More adapters than slots


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one policy. shares: of requests by the adapter's place on their worker when they were
    routed.
    """

    tokens_per_s: float
    failed: int
    shares: dict[str, float]


@dataclass
class Residency:
    """What the gateway knows of where adapters are, asked again and again."""

    by_worker: dict[str, dict[str, ModulePlace]]

    async def follow(self, client: AsyncClient) -> None:
        while True:
            self.by_worker = {worker.worker_id: worker.modules for worker in (await client.status()).workers}
            await asyncio.sleep(0.1)


async def rotate(
    client: AsyncClient,
    adapters: Sequence[Adapter],
    worker_of: Callable[[int], str],
    seed: int,
    requests: int,
) -> Run:
    """Requests on the adapters in shuffled rotation, IN_FLIGHT at a time. worker_of: number of the adapter to
    the worker, "" for any.

    The first rotation of the adapters, at least IN_FLIGHT requests, is not timed.
    """
    draw = random.Random(seed)
    warming = max(len(adapters), IN_FLIGHT)
    order: list[int] = []
    while len(order) < warming + requests:
        order += draw.sample(range(len(adapters)), len(adapters))
    known = Residency({})
    free = asyncio.Semaphore(IN_FLIGHT)
    found: Counter[str] = Counter()

    async def ask(place: int) -> int:
        async with free:
            adapter = adapters[order[place]]
            sampling = Sampling(max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS)
            tokens = 0
            try:
                async for event in client.stream(
                    prompt(seed * 10_000 + place),
                    module=adapter.reference,
                    worker_id=worker_of(order[place]),
                    sampling=sampling,
                ):
                    if isinstance(event, Route):
                        held = known.by_worker.get(event.worker_id, {})
                        found[held.get(adapter.version.digest, ModulePlace.DISK).value] += 1
                    elif isinstance(event, TextDelta):
                        tokens += len(event.token_ids)
            except CallFailed as error:
                report(str(error))
                return 0
            return tokens

    following = asyncio.create_task(known.follow(client))
    try:
        await asyncio.gather(*(ask(place) for place in range(warming)))
        found.clear()
        started_s = time.perf_counter()
        tokens = await asyncio.gather(*(ask(place) for place in range(warming, warming + requests)))
        seconds = time.perf_counter() - started_s
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    total = sum(found.values())
    return Run(
        sum(tokens) / seconds,
        tokens.count(0),
        {place: count / total for place, count in sorted(found.items())},
    )


async def rotation_round(
    client: AsyncClient, adapters: Sequence[Adapter], counts: Sequence[int], seed: int, requests: int
) -> dict[int, dict[str, Run]]:
    """Every policy on every number of adapters; the order of the policies turns."""
    workers = sorted(worker.worker_id for worker in (await client.status()).workers)
    draw = random.Random(seed)
    policies: dict[str, Callable[[int], str]] = {
        ROUTING: lambda adapter: "",
        RANDOM: lambda adapter: draw.choice(workers),
        PARTITIONED: lambda adapter: workers[adapter % len(workers)],
    }
    names = list(policies)
    turned = names[seed % len(names) :] + names[: seed % len(names)]
    runs: dict[int, dict[str, Run]] = {}
    for place, count in enumerate(counts):
        # Equal requests, but prompts of its own for each policy: nobody has another's KV.
        runs[count] = {
            name: await rotate(
                client,
                adapters[:count],
                policies[name],
                (seed * len(counts) + place) * len(names) + names.index(name),
                requests,
            )
            for name in turned
        }
        report(
            f"{count} adapters: "
            + ", ".join(
                f"{name} {run.tokens_per_s:.0f} tokens/s {run.shares}" for name, run in runs[count].items()
            )
        )
    return runs


@dataclass(frozen=True, slots=True)
class Measured:
    """Of every round."""

    publish_s: float
    places: list[dict[str, list[float]]]
    registered: list[list[float]]
    rotations: list[dict[int, dict[str, Run]]]


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
        figures["places"] = _report_places(measured.places)
    if measured.registered:
        many, noise = _report_registered(measured.registered)
        figures |= {"many_of_few": many, "equal_blocks_differ_by": noise}
        bars.append(Bar(f"TTFT with {MANY:,} modules registered ÷ with {FEW}", many, at_most=MANY_AT_MOST))
    if measured.rotations:
        figures["rotations"], found = _report_rotations(measured.rotations)
        bars += found
    return finish(bars, figures, as_json)


def _report_places(rounds: Sequence[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    rows = {
        where: {
            "ttft_ms": statistics.median(seconds for each in rounds for seconds in each[where]) * 1000,
            "of_base": statistics.median(
                seconds / statistics.median(each["base"]) for each in rounds for seconds in each[where]
            ),
        }
        for where in rounds[0]
    }
    cells = [(where, f"{row['ttft_ms']:.1f}", f"{row['of_base']:.2f}") for where, row in rows.items()]
    print_table(("first request on an adapter", "TTFT ms", "÷ base"), cells)
    return rows


def _report_registered(rounds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns many ÷ few, the median of the rounds, and by how much equal blocks differ, the median too."""
    many = statistics.median(statistics.mean(blocks[2:]) / statistics.mean(blocks[:2]) for blocks in rounds)
    noise = statistics.median(
        abs(one / other - 1)
        for few, again, more, last in rounds
        for one, other in ((again, few), (last, more))
    )
    few_ms, many_ms = (
        statistics.median(seconds for blocks in rounds for seconds in blocks[at]) * 1000
        for at in (slice(2), slice(2, 4))
    )
    rows = [
        (f"{FEW}", f"{few_ms:.2f}"),
        (f"{MANY:,}", f"{many_ms:.2f}"),
        ("ratio", f"{many:.3f}"),
        ("equal blocks differ by", f"{noise:.3f}"),
    ]
    print_table(("modules registered", "TTFT ms"), rows)
    return many, noise


def _report_rotations(
    rounds: Sequence[dict[int, dict[str, Run]]],
) -> tuple[list[dict[str, object]], list[Bar]]:
    rows: list[dict[str, object]] = []
    bars = [
        Bar(
            "requests that failed",
            sum(run.failed for each in rounds for runs in each.values() for run in runs.values()),
            at_most=0,
        )
    ]
    cells = []
    for count, policies in rounds[0].items():
        for name in policies:
            runs = [each[count][name] for each in rounds]
            speed = statistics.median(run.tokens_per_s for run in runs)
            of_eight = statistics.median(
                each[count][name].tokens_per_s / each[ROTATIONS[0]][name].tokens_per_s for each in rounds
            )
            routing_of_it = statistics.median(
                each[count][ROUTING].tokens_per_s / each[count][name].tokens_per_s for each in rounds
            )
            shares = [
                statistics.mean(run.shares.get(place.value, 0.0) for run in runs)
                for place in (ModulePlace.DEVICE, ModulePlace.HOST)
            ]
            rows.append(
                {
                    "adapters": count,
                    "policy": name,
                    "tokens_per_s": speed,
                    "of_eight": of_eight,
                    "routing_of_it": routing_of_it,
                    "in_a_slot": shares[0],
                    "in_host_memory": shares[1],
                }
            )
            cells.append(
                (
                    f"{count} {name}",
                    f"{speed:.0f}",
                    f"{of_eight:.2f}",
                    f"{routing_of_it:.3f}",
                    *(f"{share:.0%}" for share in shares),
                )
            )
            if name != ROUTING:
                bars.append(Bar(f"{count} adapters: routing ÷ {name}", routing_of_it, at_least=WITHIN))
    print_table(("adapters, worker by", "tokens/s", "÷ of 8", "routing ÷ it", DEVICE, HOST), cells)
    return rows, bars


if __name__ == "__main__":
    sys.exit(main())
