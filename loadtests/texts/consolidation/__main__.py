"""A namespace with duplicates and near misses becomes fewer memories: what is lost by it, and by a kill.

Seeded facts are stated once or several times in different words, beside other entities with the same values,
contradictions and episodes in the same words. The namespace is consolidated as a gateway does it: a real
store, a real registry, and the demo model, which transformers runs, in place of the served one. Questions in
other phrasings than the consolidation's own are answered by the demo model from what recall finds, before and
after. Then: a consolidation that fails, and one that is killed while it is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import RedisServer
from loadtests.texts.consolidation.town import Town, town
from memserve.demo import MODEL_DIR
from memserve.domain import (
    Consolidation,
    ConsolidationPlan,
    ConsolidationState,
    Memory,
    MergeKind,
    SearchQuery,
    Tenant,
)
from memserve.gateway.consolidation import ConsolidationOptions, Consolidations
from memserve.memory.erasures.store import KeptErasures
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ListQuery
from memserve.policy.consolidation import missing_values
from memserve.policy.modules.gate import Match, Probe, right
from memserve.turns import FairThreads

NAMESPACE = "town"
TENANT = Tenant("acme", "", "loadtest")
RECALLED = 6
ENTITIES, QUICK_ENTITIES = 40, 12
KILLS, QUICK_KILLS = 12, 3
KILL_AFTER_S = 0.6
"""The kills are spread over this time, in which an acceptance mostly ends."""
START_TIMEOUT_S = 60.0
MOST_RUNS = 8


class DemoAnswers:
    """The demo model in place of a gate's worker."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM

        from memserve.worker.training.distil.prompts import Prompts
        from memserve.worker.training.distil.teacher import Teacher

        self._prompts = Prompts(MODEL_DIR)
        model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype="auto").eval()
        self._teacher = Teacher(model, 0, self._prompts.end_ids)

    def answer(self, question: str, passages: Sequence[str]) -> str:
        [answer] = self._teacher.answers([self._prompts.prompt(question, passages)])
        return self._prompts.text(answer)

    async def base_answer(self, tenant: Tenant, probe: Probe) -> str:
        return await asyncio.to_thread(self.answer, probe.question, probe.passages)


class WrongAfter:
    """A served model that a summary confuses: it answers only from passages of one sentence."""

    async def base_answer(self, tenant: Tenant, probe: Probe) -> str:
        return probe.answers[0] if all(text.count(". ") == 0 for text in probe.passages) else "I do not know."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("consolidation", __doc__)
    options.add_argument("--seed", type=int, default=0, help="of the facts and the kills (default: 0)")
    options.add_argument(
        "--acceptor", nargs=2, metavar=("URI", "REDIS"), help="for the kills: accept, and end"
    )
    chosen = options.parse_args(arguments)
    if chosen.acceptor:
        asyncio.run(accept(*chosen.acceptor))
        return 0
    entities = QUICK_ENTITIES if chosen.quick else ENTITIES
    kills = QUICK_KILLS if chosen.quick else KILLS
    with tempfile.TemporaryDirectory(prefix="memserve-consolidation-") as scratch:
        redis = RedisServer(Path(scratch))
        redis.start_durably()
        try:
            figures = asyncio.run(measure(Path(scratch), redis, chosen.seed, entities))
            figures |= asyncio.run(kill(Path(scratch), redis, chosen.seed, kills))
        finally:
            redis.stop()
    show(figures)
    return finish(bars_of(figures), {"figures": figures}, chosen.json)


@contextlib.asynccontextmanager
async def opened(uri: str, redis_url: str, gate: Any) -> AsyncIterator[tuple[VectorMemory, Consolidations]]:
    texts = await VectorMemory.open(uri, BertEmbedder(), redis_url)
    store, erasures = ModuleStore(redis_url), KeptErasures(redis_url)
    threads = FairThreads("consolidation", 2)
    try:
        yield texts, Consolidations(texts, store, gate, threads, erasures)
    finally:
        await texts.close()
        await store.close()
        await erasures.close()
        threads.close()


async def measure(scratch: Path, redis: RedisServer, seed: int, entities: int) -> dict[str, Any]:
    made = town(NAMESPACE, seed, entities)
    demo = DemoAnswers()
    async with opened(str(scratch / "m.db"), redis.url, demo) as (texts, consolidations):
        async for told in texts.remember_many(TENANT.name, list(made.memories)):
            assert told.error is None, told.error
        before = await state(texts)
        answered = await answers(texts, demo, made)
        report(f"{len(made.memories)} memories, {answered} of {len(made.asked)} answers")
        failed = await failing(texts, consolidations)
        runs: list[Consolidation] = []
        begun_s = time.monotonic()
        dropped: list[str] = []
        while len(runs) < MOST_RUNS:
            tried = await prepared(consolidations, ConsolidationOptions(budget_s=600.0))
            if tried is None:
                break
            dropped += [each.reason for each in tried.plan.left_alone if "answers" in each.reason]
            if tried.state is not ConsolidationState.CANDIDATE:
                break
            runs.append(await consolidations.accept(TENANT, NAMESPACE, tried.consolidation_id))
            report(f"{len(runs[-1].plan.merges)} merges, {runs[-1].plan.fewer} memories fewer")
        after = await state(texts)
        return {
            "memories": [len(before), len(after)],
            "questions": len(made.asked),
            "answers": [answered, await answers(texts, demo, made)],
            "duplicates": made.duplicates,
            "merges": {
                str(kind): sum(merge.kind is kind for run in runs for merge in run.plan.merges)
                for kind in (MergeKind.DUPLICATES, MergeKind.SUMMARY)
            },
            "dropped_sources": len(dropped),
            "false_merges": sum(false_merges(made, before, run.plan) for run in runs),
            "runs": len(runs),
            "seconds": round(time.monotonic() - begun_s, 1),
            "failed_state": failed[0],
            "failed_changed": failed[1],
        }


async def failing(texts: VectorMemory, consolidations: Consolidations) -> tuple[str, int]:
    """Consolidations that fail: the model is confused by each summary, then it is too slow for the budget.

    Returns the state of the second, and how often memories changed or a confusing summary passed.
    """
    before = digest(await state(texts))
    threads = FairThreads("failing", 1)
    try:
        confused = Consolidations(texts, consolidations.store, WrongAfter(), threads, consolidations.erasures)
        tried = await prepared(confused, ConsolidationOptions(budget_s=600.0))
        passed = tried is not None and MergeKind.SUMMARY in {merge.kind for merge in tried.plan.merges}
        if tried is not None and tried.state is ConsolidationState.CANDIDATE:
            await confused.reject(TENANT, NAMESPACE, tried.consolidation_id)
        late = Consolidations(texts, consolidations.store, Late(), threads, consolidations.erasures)
        ended = await prepared(late, ConsolidationOptions(budget_s=1.0))
    finally:
        threads.close()
    changed = int(before != digest(await state(texts))) + int(passed)
    return ("none" if ended is None else str(ended.state)), changed


class Late:
    """A served model that is too slow for the budget."""

    async def base_answer(self, tenant: Tenant, probe: Probe) -> str:
        await asyncio.sleep(3600)
        return ""


async def prepared(consolidations: Consolidations, options: ConsolidationOptions) -> Consolidation | None:
    """None: there is nothing to do."""
    from memserve.errors import InvalidField

    try:
        async with contextlib.aclosing(consolidations.prepare(TENANT, NAMESPACE, options)) as events:
            async for event in events:
                if isinstance(event, Consolidation):
                    return event
    except InvalidField as error:
        report(str(error))
    return None


async def state(texts: VectorMemory) -> dict[str, Memory]:
    """The live memories, by id."""
    found: dict[str, Memory] = {}
    token = ""
    while True:
        page = await texts.list_memories(TENANT.name, ListQuery((NAMESPACE,), limit=256, page_token=token))
        found |= {memory.memory_id: memory for memory in page.memories}
        token = page.next_page_token
        if not token:
            return found


def digest(memories: dict[str, Memory]) -> str:
    told = sorted((each.memory_id, each.version, each.text) for each in memories.values())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


async def answers(texts: VectorMemory, demo: DemoAnswers, made: Town) -> int:
    """How many questions the demo model answers from what recall finds."""
    count = 0
    for question, value in made.asked:
        query = SearchQuery((NAMESPACE,), question, limit=RECALLED)
        found = await texts.search(TENANT.name, query, 30.0)
        answer = await asyncio.to_thread(demo.answer, question, tuple(hit.memory.text for hit in found.hits))
        count += right(answer, (value,), Match.CONTAINS)
    return count


def false_merges(made: Town, before: dict[str, Memory], plan: ConsolidationPlan) -> int:
    """Merges of memories that say different things, and summaries that lack a value."""
    wrong = 0
    for merge in plan.merges:
        ids = [source.memory_id for source in merge.sources if source.memory_id in made.stated]
        if merge.kind is MergeKind.DUPLICATES and merge.memory_id in made.stated:
            said = {made.stated[each] for each in (merge.memory_id, *ids)}
            wrong += len(said) != 1 or None in said
        sources = [before[each] for each in ids if each in before]
        wrong += merge.kind is MergeKind.SUMMARY and bool(missing_values(merge.text, sources))
        values: dict[tuple[str, str], set[str]] = {}
        for entity, attribute, value in filter(None, (made.stated[each] for each in ids)):
            values.setdefault((entity, attribute), set()).add(value)
        wrong += any(len(each) > 1 for each in values.values())
    return wrong


async def accept(uri: str, redis_url: str) -> None:
    """The acceptor: it is killed while it accepts."""
    async with opened(uri, redis_url, Late()) as (texts, consolidations):
        # The embedding model is loaded: the kill is to fall into the acceptance.
        await texts.embed(TENANT.name, "warm", query=False)
        print("accepting", flush=True)
        await consolidations.accept(TENANT, NAMESPACE, "")
        print("accepted", flush=True)
        await asyncio.sleep(3600)


async def kill(scratch: Path, redis: RedisServer, seed: int, kills: int) -> dict[str, Any]:
    """Kill acceptors. Counts how each namespace was found, and those that could not be accepted again."""
    rng = random.Random(f"kill-{seed}")
    found = {"before": 0, "after": 0, "half": 0}
    unfinished = 0
    for number in range(kills):
        uri = str(scratch / f"kill{number}.db")
        redis.start_durably()
        redis.client.flushall()
        made = town(NAMESPACE, seed + number, 6)
        async with opened(uri, redis.url, _Nobody()) as (texts, consolidations):
            async for told in texts.remember_many(TENANT.name, list(made.memories)):
                assert told.error is None, told.error
            before = await state(texts)
            tried = await prepared(consolidations, ConsolidationOptions())
            assert tried is not None and tried.state is ConsolidationState.CANDIDATE
        _run_and_kill(uri, redis.url, KILL_AFTER_S * (number + rng.random()) / kills)
        async with opened(uri, redis.url, _Nobody()) as (texts, consolidations):
            now = await state(texts)
            gone = {source.memory_id for merge in tried.plan.merges for source in merge.sources}
            if digest(now) == digest(before):
                found["before"] += 1
            elif not gone & now.keys() and len(now) == len(before) - tried.plan.fewer:
                found["after"] += 1
            else:
                found["half"] += 1
            newest = (await consolidations.newest(TENANT))[0]
            if newest.state is not ConsolidationState.ACCEPTED:
                newest = await consolidations.accept(TENANT, NAMESPACE, "")
            whole = len(await state(texts)) == len(before) - tried.plan.fewer
            unfinished += not whole or newest.state is not ConsolidationState.ACCEPTED
        report(f"kill {number + 1} of {kills}: {found}")
    return {"kills": found, "unfinished": unfinished}


class _Nobody:
    """No worker: recall alone is looked at."""

    async def base_answer(self, tenant: Tenant, probe: Probe) -> str:
        from memserve.errors import NoWorker

        raise NoWorker("none is ready")


def _run_and_kill(uri: str, redis_url: str, after_s: float) -> None:
    command = [sys.executable, "-m", "loadtests.consolidation", "--acceptor", uri, redis_url]
    acceptor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        assert acceptor.stdout is not None
        if acceptor.stdout.readline().strip() != "accepting":
            raise RuntimeError("the acceptor did not begin")
        time.sleep(after_s)
    finally:
        acceptor.kill()
        acceptor.wait()
        if acceptor.stdout is not None:
            acceptor.stdout.close()


def show(figures: dict[str, Any]) -> None:
    rows = [
        ["memories", *figures["memories"]],
        [f"answers of {figures['questions']}", *figures["answers"]],
    ]
    print_table(["", "before", "after"], rows)
    print(
        f"{figures['merges']} in {figures['runs']} runs and {figures['seconds']} s; "
        f"{figures['duplicates']} memories said what another one said; {figures['dropped_sources']} sources "
        f"of merges that lost an answer; {figures['false_merges']} false merges; killed: {figures['kills']}"
    )


def bars_of(figures: dict[str, Any]) -> list[Bar]:
    before, after = figures["memories"]
    answers_before, answers_after = figures["answers"]
    kept = answers_after / max(1, answers_before)
    return [
        Bar("false merges", figures["false_merges"], at_most=0),
        Bar("answers after / before", kept, at_least=1.0),
        Bar("memories fewer / duplicates", (before - after) / max(1, figures["duplicates"]), at_least=0.8),
        Bar("memories that a failed one changed", figures["failed_changed"], at_most=0),
        Bar("a late one has failed", float(figures["failed_state"] == "failed"), at_least=1.0),
        Bar("halves after a kill", figures["kills"]["half"], at_most=0),
        Bar("not accepted after a kill", figures["unfinished"], at_most=0),
    ]


if __name__ == "__main__":
    sys.exit(main())
