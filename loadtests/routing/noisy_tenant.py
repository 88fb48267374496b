"""One of four tenants at ten times its share, against real workers.

First all tenants send what fits, open-loop. Then one of them sends ten times its share of what the workers
can do. Shown are the parts of the others' requests that came in time, before and then, and Jain's index over
the prompt tokens that each tenant was served while all of them asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_model
from loadtests.harness.stack import running_stack
from loadtests.routing.overload import BATCH, LAYERS, OUTPUT_TOKENS, TIMEOUT_S, WORKERS, capacity, prompt
from memserve.client import AsyncClient, CallFailed, TextDelta, Usage
from memserve.domain import Slo

QUIET = ("a", "b", "c")
NOISY = "noisy"
TENANTS = (*QUIET, NOISY)
FITS = 0.6
"""The part of its share that a tenant sends."""
TIMES = 10.0
WISH_S = 4.0


@dataclass(slots=True)
class Tenant:
    """What became of one tenant's requests."""

    sent: int = 0
    in_time: int = 0
    tokens: int = 0
    """Of the prompts of its answers."""
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def attained(self) -> float:
        return self.in_time / max(self.sent, 1)


async def load(
    clients: dict[str, AsyncClient], per_s: dict[str, float], seconds: float, seed: int
) -> dict[str, Tenant]:
    """Requests of each tenant come at random times, whatever becomes of those before."""
    tenants = {name: Tenant() for name in per_s}
    tasks: list[asyncio.Task[None]] = []

    async def one(name: str, dice: random.Random) -> None:
        tenant, began_s, first_s = tenants[name], time.monotonic(), None
        try:
            stream = clients[name].stream(
                prompt(dice), max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS,
                slo=Slo(WISH_S * 1000, refuse_late=True),
            )  # fmt: skip
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, TextDelta) and first_s is None:
                        first_s = time.monotonic() - began_s
                    if isinstance(event, Usage):
                        tenant.tokens += event.prompt_tokens
        except CallFailed as error:
            reason = str(error.reason or error.code.name)
            tenant.reasons[reason] = tenant.reasons.get(reason, 0) + 1
            return
        tenant.in_time += first_s is not None and first_s <= WISH_S

    async def source(name: str) -> None:
        dice = random.Random(f"{name} {seed}")
        began_s, at_s = time.monotonic(), 0.0
        while (at_s := at_s + dice.expovariate(per_s[name])) < seconds:
            await asyncio.sleep(max(began_s + at_s - time.monotonic(), 0.0))
            tenants[name].sent += 1
            tasks.append(asyncio.create_task(one(name, random.Random(dice.random()))))

    await asyncio.gather(*map(source, per_s))
    await asyncio.gather(*tasks)
    return tenants


async def measure(
    address: str, keys: dict[str, str], seconds: float
) -> tuple[float, dict[str, Tenant], dict[str, Tenant]]:
    """What the workers do a second, and every tenant, without and with the noise."""
    async with contextlib.AsyncExitStack() as opened:
        clients = {
            name: await opened.enter_async_context(AsyncClient(address, api_key=key, timeout_s=TIMEOUT_S))
            for name, key in keys.items()
        }
        await capacity(clients[NOISY], 3.0, 100_000)
        per_s = await capacity(clients[NOISY], min(seconds / 2, 15.0), 200_000)
        report(f"{per_s:.1f} requests/s")
        share = per_s / len(TENANTS)
        fits = dict.fromkeys(TENANTS, FITS * share)
        before = await load(clients, fits, seconds, 1)
        report("all tenants sent what fits; now one sends ten times its share")
        beside = await load(clients, {**fits, NOISY: TIMES * share}, seconds, 2)
    return per_s, before, beside


def jain(parts: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal. Source: Jain, Chiu and Hawe 1984."""
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("noisy_tenant", __doc__).parse_args(arguments)
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        folder = Path(name)
        keys = {tenant: secrets.token_urlsafe(16) for tenant in TENANTS}
        key_file = folder / "keys.json"
        key_file.write_text(json.dumps({key: tenant for tenant, key in keys.items()}), encoding="utf-8")
        model = write_model(folder / "model", LAYERS)
        with running_stack(
            model=str(model), workers=WORKERS, max_concurrent=BATCH, api_keys_file=key_file
        ) as stack:
            run = asyncio.run(measure(stack.address, keys, 15.0 if chosen.quick else 60.0))
    per_s, before, beside = run
    print_table(
        ["tenant", "sent", "in time %", "sent beside", "in time %", "tokens beside", "refused beside"],
        [
            [
                tenant,
                before[tenant].sent,
                f"{100 * before[tenant].attained:.1f}",
                beside[tenant].sent,
                f"{100 * beside[tenant].attained:.1f}",
                beside[tenant].tokens,
                ", ".join(f"{count} {reason}" for reason, count in beside[tenant].reasons.items()),
            ]
            for tenant in TENANTS
        ],
    )
    falls = 100 * (
        sum(before[tenant].in_time for tenant in QUIET) / sum(before[tenant].sent for tenant in QUIET)
        - sum(beside[tenant].in_time for tenant in QUIET) / sum(beside[tenant].sent for tenant in QUIET)
    )
    index = jain([beside[tenant].tokens for tenant in TENANTS])
    print(f"the engines answer {per_s:.1f} requests/s; Jain's index over tokens served beside it {index:.3f}")
    bars = [Bar("points that the others' attainment falls by", falls, at_most=3.0)]
    return finish(bars, {"requests_per_s": per_s, "jain": index}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
