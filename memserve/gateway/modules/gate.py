"""Asks a worker a version's probes, with the version and without it, and judges the answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from memserve.domain import (
    GateReport,
    Memory,
    Message,
    ModuleVersion,
    Priority,
    Role,
    Sampling,
    ScoredMemory,
    Tenant,
)
from memserve.domain.kinds import KINDS
from memserve.domain.worker_calls import (
    PLACEHOLDER_TOKEN,
    AppliedModule,
    WorkerFailure,
    WorkerRequest,
    WrongRequest,
)
from memserve.errors import InvalidField, InvalidModule, NoWorker
from memserve.gateway.layout import PromptLayout
from memserve.gateway.modules.progress import ProgressCallback
from memserve.gateway.workers.picking import least_loaded
from memserve.gateway.workers.pool import WorkerPool
from memserve.gateway.workers.pooled_worker import PooledWorker
from memserve.memory.modules.probes import Probes
from memserve.policy.modules.gate import (
    CALIBRATION,
    Answer,
    Probe,
    confidence,
    judge,
)
from memserve.turns import FairThreads

# Probes that are asked at the same time. The worker lets fewer in where users ask too.
CONCURRENT = 24
# An answer is cut off at this length, and is judged as it is.
MAX_ANSWER_TOKENS = 64
# A worker that takes longer than this for one answer is asked no more in this run. Where users ask, it lets
# in one probe at a time, and the last of those that are asked waits for all others: each has 15 s.
PROBE_TIMEOUT_S = 15.0 * CONCURRENT

_SAMPLING = Sampling(max_tokens=MAX_ANSWER_TOKENS, logprobs=True)


class Gate:
    """Runs probes on the pool's workers.

    Prompts are put together as the prompts of requests are. Answers are greedy, so that they can be compared.
    """

    def __init__(
        self,
        pool: WorkerPool,
        layout: PromptLayout,
        tokenizing: FairThreads,
        max_context_tokens: int,
    ) -> None:
        self._pool = pool
        self._layout = layout
        self._tokenizing = tokenizing
        self._max_context_tokens = max_context_tokens

    async def run(
        self,
        tenant: Tenant,
        version: ModuleVersion,
        probes: Probes | None,
        *,
        worker_id: str = "",
        on_progress: ProgressCallback,
    ) -> GateReport:
        """Judge the version by its probes, which the base model is asked too.

        A version without probes passes, with no figures. Cancelling the call aborts the work.

        worker_id: empty for the least loaded worker. Another worker then takes over from a worker that fails,
        and the report names the last worker.
        Raises NoWorker, and InvalidModule for a probe that the model cannot be asked.
        """
        if probes is None:
            return GateReport(True, (), "", time.time(), "")
        prompts = await self._tokenizing.run(tenant.name, partial(self._prompts, probes, 0))
        own = prompts
        if version.prefix_tokens:
            behind = partial(self._prompts, probes, version.prefix_tokens)
            own = await self._tokenizing.run(tenant.name, behind)
        run = _Run(self._pool, tenant, version, worker_id)
        base, module = await run.ask(prompts, own, on_progress)
        figures = judge(probes.sets, probes.thresholds, base, module)
        if not KINDS[version.kind].moves_logprobs:
            # The engine's log-probabilities leave the module out. They do not show how sure the module is.
            figures = tuple(figure for figure in figures if figure.name != CALIBRATION)
        return GateReport(
            all(each.holds for each in figures), figures, run.answered_by, time.time(), probes.digest
        )

    async def base_answer(self, tenant: Tenant, probe: Probe) -> str:
        """What the served model answers by itself. Raises NoWorker and InvalidModule."""
        prompt = await self._tokenizing.run(tenant.name, partial(self._prompt, probe, "the question", 0))
        return (await _Run(self._pool, tenant, None, "").answer(prompt)).text

    def _prompts(self, probes: Probes, prefix_tokens: int) -> list[list[int]]:
        """prefix_tokens: positions of a cartridge before each prompt."""
        return [
            self._prompt(probe, f"probes.json: sets[{place}].probes[{number}]", prefix_tokens)
            for place, each in enumerate(probes.sets)
            for number, probe in enumerate(each.probes)
        ]

    def _prompt(self, probe: Probe, path: str, prefix_tokens: int) -> list[int]:
        for text in (probe.question, probe.system, *probe.passages):
            if token := self._layout.tokenizer.special_token_in(text):
                raise InvalidModule(path, f"must not contain the model's control token {token!r}")
        asked = [Message(Role.USER, probe.question)]
        if probe.system:
            asked.insert(0, Message(Role.SYSTEM, probe.system))
        passages = [_recalled(text) for text in probe.passages]
        try:
            arranged = self._layout.arrange(asked, passages)
            token_ids = [PLACEHOLDER_TOKEN] * prefix_tokens
            token_ids += self._layout.encode(arranged, behind=prefix_tokens > 0)
        except InvalidField as error:
            raise InvalidModule(path, error.rule) from None
        room = self._max_context_tokens - MAX_ANSWER_TOKENS
        if len(token_ids) > room:
            raise InvalidModule(
                path,
                f"makes a prompt of {len(token_ids)} tokens; with the answer at most {room} fit into "
                "the model's context",
            )
        return token_ids


@dataclass
class _Run:
    """The questions of one run. All of them go to one worker for as long as it answers."""

    pool: WorkerPool
    tenant: Tenant
    version: ModuleVersion | None
    """None: only the base is asked."""
    worker_id: str
    """The worker to ask; empty for any worker."""
    worker: PooledWorker | None = None
    """The worker that is asked now."""
    given_up: dict[str, str] = field(default_factory=dict)
    """Workers that failed, by id, and why."""

    @property
    def answered_by(self) -> str:
        """The id of the worker that was asked last; empty before the first question."""
        return self.worker.lease.worker_id if self.worker else ""

    async def ask(
        self, prompts: list[list[int]], own: list[list[int]], on_progress: ProgressCallback
    ) -> tuple[list[Answer], list[Answer]]:
        """[prompts] answers of the base, and of the version.

        own: [prompts] as they are with the version.
        """
        answers: dict[tuple[int, bool], Answer] = {}

        async def lane(waiting: Iterator[tuple[int, bool]]) -> None:
            for place, with_version in waiting:
                asked = own if with_version else prompts
                answers[place, with_version] = await self._answer(asked[place], with_version)
                on_progress(len(answers), 2 * len(prompts))

        # The version is asked before the base. So a version that no worker can load is noticed at once.
        waiting = ((place, with_version) for place in range(len(prompts)) for with_version in (True, False))
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(CONCURRENT):
                    lanes.create_task(lane(waiting))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        base, module = (
            [answers[place, with_version] for place in range(len(prompts))] for with_version in (False, True)
        )
        return base, module

    async def answer(self, token_ids: list[int]) -> Answer:
        """Of the base. Raises NoWorker, InvalidModule."""
        return await self._answer(token_ids, False)

    async def _answer(self, token_ids: list[int], with_version: bool) -> Answer:
        while True:
            worker = self._chosen()
            try:
                return await self._ask(worker, token_ids, with_version)
            except WrongRequest as error:
                raise InvalidModule("probes.json", error.detail) from None
            except WorkerFailure as failure:
                self.given_up[worker.lease.worker_id] = failure.detail

    def _chosen(self) -> PooledWorker:
        if self.worker is None or not self.worker.connected or self.answered_by in self.given_up:
            now_s = time.monotonic()
            open_to = self.pool.ready(now_s) if self.worker_id else self.pool.open_to(self.tenant.name, now_s)
            ready = [worker for worker in open_to if worker.lease.worker_id not in self.given_up]
            if self.worker_id:
                ready = [worker for worker in ready if worker.lease.worker_id == self.worker_id]
            if not ready:
                nobody = f"worker {self.worker_id} is not ready" if self.worker_id else "none is ready"
                raise NoWorker("; ".join(f"{name}: {why}" for name, why in self.given_up.items()) or nobody)
            self.worker = least_loaded(ready)
        return self.worker

    async def _ask(self, worker: PooledWorker, token_ids: list[int], with_version: bool) -> Answer:
        """One answer of a worker, with its confidence. Raises WorkerFailure."""
        version = self.version
        request = WorkerRequest(
            request_id=uuid.uuid4().hex,
            token_ids=token_ids,
            tenant=self.tenant.name,
            cache_salt=self.tenant.cache_salt,
            sampling=_SAMPLING,
            modules=(AppliedModule(version.digest, version.kind),) if version and with_version else (),
            priority=Priority.BACKGROUND,
        )
        text: list[str] = []
        logprobs: list[float] = []
        sent = worker.own_question(len(token_ids))
        with worker.serving(self.tenant.name, request.request_id, sent), worker.calling() as calls:
            async with contextlib.aclosing(calls.generate(request, PROBE_TIMEOUT_S)) as parts:
                async for part in parts:
                    worker.has_first_token(request.request_id)
                    text.append(part.text)
                    logprobs.extend(part.logprobs)
        return Answer("".join(text), confidence(logprobs))


def _recalled(text: str) -> ScoredMemory:
    """The text as a recalled memory. A prompt shows only the text, so that the other fields do not matter."""
    return ScoredMemory(Memory("", "", text, "", (), 0.0), 1.0, None, None)
