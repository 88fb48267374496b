"""What the surprise gate stores: of what a model knows, what is remembered, news, and contradictions.

One real worker scores every statement through a gateway of this process, by forced decoding. With the demo
model the known statements are those of its adapter `harbour`, in the words that it was trained to answer
with; the same in other words are reported, and no bar is set for them. `--model smollm2` asks
SmolLM2-135M-Instruct for facts of the world, and reports only.

The second table has the share that is stored at other thresholds: its columns are `known_below`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.real_models import smollm2
from loadtests.harness.stack import running_stack
from loadtests.texts.surprise_statements import Statement, demo_statements, world_statements
from memserve import credentials
from memserve.client import AsyncClient
from memserve.demo import ADAPTERS_DIR
from memserve.domain import Memory, ScoredMemory, SurpriseScore
from memserve.embedded import Stack
from memserve.gateway.access.callers import Access, load_access
from memserve.gateway.assembly import GatewayParts, open_parts, services_of
from memserve.gateway.scoring import BASE
from memserve.gateway.steps.resolve import AnsweringModule, AnsweringModules
from memserve.gateway.surprise import TextScores
from memserve.policy.recall.surprise import DEFAULT

MODULE = "harbour"
EACH, QUICK_EACH = 32, 8
AT_ONCE = 4
PATIENCE_S = 120.0
READY_S = 120.0
THRESHOLDS = (1.0, 2.0, 4.0, 6.0, 8.0)
KNOWN_LEFT_OUT_LEAST, CONTRADICTIONS_STORED_LEAST = 0.9, 0.95


@dataclass(frozen=True, slots=True)
class Scored:
    """A statement with its log-probabilities."""

    statement: Statement
    scores: TextScores
    took_s: float

    @property
    def score(self) -> SurpriseScore:
        return self.scores.judged()

    def stored_at(self, known_below: float) -> bool:
        new_from = max(DEFAULT.new_from, known_below)
        policy = replace(DEFAULT, known_below=known_below, new_from=new_from)
        return self.scores.judged(policy).stored


@asynccontextmanager
async def gateway_beside(stack: Stack) -> Any:
    """A gateway of this process on the stack's registry and workers: its parts and who may call."""
    with tempfile.TemporaryDirectory(prefix="memserve-surprise-") as folder:
        settings = stack.settings.model_copy(
            update={
                "data_dir": Path(folder),
                "module_store_url": str(stack.settings.modules_root / "modules"),
                "salt_key": SecretStr(credentials.salt_key(stack.settings).decode()),
            }
        )
        async with open_parts(settings) as parts:
            until_s = time.monotonic() + READY_S
            while not parts.pool.ready(time.monotonic()):
                if time.monotonic() > until_s:
                    raise RuntimeError("no worker is ready")
                await asyncio.sleep(0.1)
            yield parts, load_access(settings)


async def scored(stack: Stack, statements: Sequence[Statement], with_module: bool) -> list[Scored]:
    if with_module:
        async with AsyncClient(stack.address) as client:
            await client.modules.publish(MODULE, ADAPTERS_DIR / MODULE)
    async with gateway_beside(stack) as (parts, access):
        return await _score_all(parts, access, statements)


async def _score_all(parts: GatewayParts, access: Access, statements: Sequence[Statement]) -> list[Scored]:
    gate, tenant = services_of(parts, access).remembering.surprise, access.tenant("")
    modules = BASE
    if any(statement.with_module for statement in statements):
        found = await parts.modules.resolve("module", tenant.name, f"{MODULE}@1", "")
        modules = AnsweringModules((AnsweringModule(found.version, 1.0, found.reason),))
    done: list[Scored] = []

    async def lane(waiting: Iterator[Statement]) -> None:
        for statement in waiting:
            began_s = time.monotonic()
            scores = await gate.scores(
                tenant,
                statement.text,
                [_hit(number, text) for number, text in enumerate(statement.near)],
                modules if statement.with_module else BASE,
                deadline_s=began_s + PATIENCE_S,
            )
            done.append(Scored(statement, scores, time.monotonic() - began_s))
            if len(done) % 50 == 0:
                report(f"{len(done)} of {len(statements)} statements")

    waiting = iter(statements)
    async with asyncio.TaskGroup() as lanes:
        for _ in range(AT_ONCE):
            lanes.create_task(lane(waiting))
    return done


def _hit(number: int, text: str) -> ScoredMemory:
    return ScoredMemory(Memory(str(number), "notes", text, "", (), float(number)), 1.0, None, None)


def share(scored_ones: Sequence[Scored], known_below: float = DEFAULT.known_below) -> float:
    """Of the statements, those that are stored."""
    return sum(each.stored_at(known_below) for each in scored_ones) / len(scored_ones)


def tables(done: Sequence[Scored]) -> dict[str, Any]:
    """Print them. Returns the same figures by class."""
    classes = list(dict.fromkeys(each.statement.label for each in done))
    of = {label: [each for each in done if each.statement.label == label] for label in classes}
    figures: dict[str, Any] = {}
    for label, them in of.items():
        scores = [each.score for each in them]
        weaker = [score for score in scores if score.stored and score.strength < 1]
        figures[label] = {
            "statements": len(them),
            "stored": share(them),
            "weaker": len(weaker) / len(them),
            "nats_per_token": sum(score.nats_per_token or 0.0 for score in scores) / len(scores),
            "at": {f"{threshold:g}": share(them, threshold) for threshold in THRESHOLDS},
        }
    print_table(
        ("statements", "number", "stored", "of those weaker", "nats a token, alone"),
        [
            (
                label,
                str(row["statements"]),
                f"{row['stored']:.0%}",
                f"{row['weaker']:.0%}",
                f"{row['nats_per_token']:.2f}",
            )
            for label, row in figures.items()
        ],
    )
    print_table(
        ("stored at known_below", *(f"{threshold:g}" for threshold in THRESHOLDS)),
        [(label, *(f"{part:.0%}" for part in row["at"].values())) for label, row in figures.items()],
    )
    return figures


def bars_of(done: Sequence[Scored]) -> list[Bar]:
    expected = [each for each in done if each.statement.expected]
    known = [each for each in expected if not each.statement.is_news]
    contradictions = [each for each in expected if "contradict" in each.statement.label]
    new = [each for each in expected if each.statement.is_news and each not in contradictions]
    return [
        Bar("known or remembered, not stored", 1 - share(known), at_least=KNOWN_LEFT_OUT_LEAST),
        Bar("contradictions stored", share(contradictions), at_least=CONTRADICTIONS_STORED_LEAST),
        Bar("new facts stored", share(new), at_least=CONTRADICTIONS_STORED_LEAST),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("memory_surprise", __doc__)
    options.add_argument("--model", choices=("demo", "smollm2"), default="demo")
    chosen = options.parse_args(arguments)
    each, demo = QUICK_EACH if chosen.quick else EACH, chosen.model == "demo"
    statements = demo_statements(random.Random(0), each) if demo else world_statements()
    settings: dict[str, Any] = {} if demo else {"model": str(smollm2())}
    with running_stack(workers=1, **settings) as stack:
        done = asyncio.run(scored(stack, statements, with_module=demo))
    figures = tables(done)
    seconds = sorted(each.took_s for each in done)
    figures["seconds_a_statement_p50"] = seconds[len(seconds) // 2]
    print(f"a statement takes {figures['seconds_a_statement_p50'] * 1000:.0f} ms, {AT_ONCE} at a time (p50)")
    return finish(bars_of(done) if demo else [], figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
