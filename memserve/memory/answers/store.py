"""Keeps answers in the registry Redis for a while, each tenant's by itself. The scripts are in `answers.lua`.

An answer is never held up for it: what is to be kept goes into a queue, and a loop writes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from memserve.domain import KeptAnswer, LeaveOneOut
from memserve.errors import RegistryDiskFull, RegistryUnavailable
from memserve.memory.answers.records import (
    TOO_LARGE,
    packed,
    read_answer,
    record_of,
    weights_of,
)
from memserve.memory.texts.records import memory_key
from memserve.records import LenientReader
from memserve.registry.client import answering, close_client, registry_client
from memserve.registry.script import Script
from memserve.turns import FairThreads

log = logging.getLogger("memserve.memory.answers")

SCRIPT = Script.of("memserve.memory.answers", "answers")
PREFIX = "memserve:answers:"
ANSWERS_MAX = 10_000
"""Of one tenant. The oldest leave."""
PROMPTS_MAX = 256
"""Of one tenant's answers, so many have their prompts."""
WAITING_MAX = 1024
"""Answers that wait to be written. More are dropped, and counted."""
WAITING_PROMPTS_MAX = 64
TOGETHER_S = 0.02
BATCH = 64
FORGOTTEN_AT_ONCE = 256
"""Memories in one call of the script, which holds up the registry meanwhile."""
CLOSE_S = 1.0
_REQUEST_ID = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class _Waiting:
    tenant: str
    answer: KeptAnswer
    accepted_s: float
    """On the monotonic clock."""
    memories: tuple[str, ...]
    """Keys of those that it used or skipped, and of the modules that it used."""


class KeptAnswers:
    """What this gateway's answers used is written here, and read whichever gateway answered.

    `write` is the step of one of the gateway's loops.
    """

    def __init__(
        self,
        redis_url: str,
        kept_s: float,
        text_of: Callable[[Sequence[int]], str],
        dropped: Callable[[int], None] = lambda answers: None,
        *,
        answers_max: int = ANSWERS_MAX,
        prompts_max: int = PROMPTS_MAX,
    ) -> None:
        """kept_s: 0 for nothing. text_of: of a prompt's token ids.

        dropped: called with how many answers are not kept though they should be.
        """
        self._kept_s = int(kept_s)
        self._text_of = text_of
        self._dropped = dropped
        self._answers_max, self._prompts_max = answers_max, prompts_max
        self._redis = registry_client(redis_url, decode_responses=False)
        self._reader = LenientReader(log)
        self._waiting: deque[_Waiting] = deque()
        # On its way into the registry: no longer waiting, and not there yet.
        self._writing: list[_Waiting] = []
        self._came = asyncio.Event()
        # A prompt may take milliseconds to pack.
        self._packing = FairThreads("answers", 1)

    @property
    def keeps(self) -> bool:
        return self._kept_s > 0

    async def close(self) -> None:
        """Write what waits, for a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._waiting:
                    await self._write_some()
        self._packing.close()
        await close_client(self._redis)

    def keep(self, tenant: str, answer: KeptAnswer, accepted_s: float) -> None:
        """Have an answer kept. Returns at once.

        answer: the text of its prompt is filled in here. accepted_s: when its request was accepted, on the
        monotonic clock.
        """
        if not self._kept_s:
            return
        if len(self._waiting) >= WAITING_MAX:
            self._dropped(1)
            return
        prompts = sum(waiting.answer.prompt is not None for waiting in self._waiting)
        if answer.prompt is not None and prompts >= WAITING_PROMPTS_MAX:
            answer = answer.without_prompt("too many prompts waited to be kept")
        self._waiting.append(_Waiting(tenant, answer, accepted_s, _memories(tenant, answer)))
        self._came.set()

    async def write(self) -> None:
        """Wait until something is to be kept, and write all that is."""
        await self._came.wait()
        # Others come along: the registry syncs its file once for all of them.
        await asyncio.sleep(TOGETHER_S)
        while self._waiting:
            await self._write_some()
        self._came.clear()

    async def get(self, tenant: str, request_id: str) -> KeptAnswer | None:
        """None: it is not kept (any more). Raises RegistryUnavailable and UnreadableRecord."""
        if not _REQUEST_ID.match(request_id):
            return None
        for waiting in (*self._waiting, *self._writing):
            if waiting.tenant == tenant and waiting.answer.request_id == request_id:
                return await self._packing.run(tenant, partial(_with_text, waiting.answer, self._text_of))
        async with answering():
            fields = await self._redis.hgetall(f"{_prefix(tenant)}:a:{request_id}")
        if not fields:
            return None
        answer = read_answer(fields)
        if answer.prompt is None and not answer.prompt_absent:
            return answer.without_prompt(f"it has left: {self._prompts_max} of a tenant's prompts are kept")
        return answer

    async def keep_weights(self, tenant: str, request_id: str, found: LeaveOneOut) -> None:
        """Keep them with their answer, where that is still kept. Raises RegistryUnavailable."""
        await self._run(tenant, "weigh", request_id, weights_of(found))

    async def forget_memory(self, tenant: str, key: str) -> int:
        """As `forget_memories`, of one."""
        return await self.forget_memories(tenant, [key])

    async def forget_memories(self, tenant: str, keys: Sequence[str]) -> int:
        """Remove every answer that used one of these memories, and those that are under way with them.

        keys: as of `memory.texts.records.memory_key`. Returns how many were removed. Raises
        RegistryUnavailable; then some may be left.
        """
        forgotten, removed = set(keys), 0
        kept = [
            each for each in self._waiting if each.tenant != tenant or forgotten.isdisjoint(each.memories)
        ]
        removed += len(self._waiting) - len(kept)
        self._waiting = deque(kept)
        # The script does not keep what is on its way with one of them; until then it is not told either.
        self._writing = [
            each for each in self._writing if each.tenant != tenant or forgotten.isdisjoint(each.memories)
        ]
        for start in range(0, len(keys), FORGOTTEN_AT_ONCE):
            removed += await self._run(tenant, "forget", *keys[start : start + FORGOTTEN_AT_ONCE])
        return removed

    async def of_memory(self, tenant: str, key: str, most: int) -> list[KeptAnswer]:
        """The newest answers that used a memory, without their prompts, the newest first.

        key: as of `forget_memories`. Those that wait to be written are part of it.
        Raises RegistryUnavailable.
        """
        waiting = [
            each.answer
            for each in (*self._writing, *self._waiting)
            if each.tenant == tenant and key in each.memories
        ]
        async with answering():
            records = await SCRIPT.run(self._redis, [_prefix(tenant)], ("of_memory", key, most))
        found = {answer.request_id: answer for answer in reversed(waiting)}
        for answer in self._reader.read([{b"record": record} for record in records], read_answer):
            found.setdefault(answer.request_id, answer)
        return list(found.values())[:most]

    async def _write_some(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))]
        self._writing = batch
        tenants = sorted(batch, key=lambda waiting: waiting.tenant)
        for tenant, group in groupby(tenants, key=lambda waiting: waiting.tenant):
            answers = list(group)
            arguments = await self._packing.run(tenant, partial(_arguments, answers, self._text_of))
            bounds = self._kept_s, self._answers_max, self._prompts_max
            try:
                await self._run(tenant, "put", *bounds, *arguments)
            except (RegistryUnavailable, RegistryDiskFull) as error:
                self._dropped(len(answers))
                log.warning("%d answers are not kept: %s", len(answers), error)
        self._writing = []

    async def _run(self, tenant: str, operation: str, *arguments: Any) -> int:
        async with answering():
            return int(await SCRIPT.run(self._redis, [_prefix(tenant)], (operation, *arguments)))


def _with_text(answer: KeptAnswer, text_of: Callable[[Sequence[int]], str]) -> KeptAnswer:
    prompt = answer.prompt
    return (
        answer if prompt is None else replace(answer, prompt=replace(prompt, text=text_of(prompt.token_ids)))
    )


def _arguments(answers: Iterable[_Waiting], text_of: Callable[[Sequence[int]], str]) -> list[Any]:
    """Of the script's `put`."""
    arguments: list[Any] = []
    for waiting in answers:
        answer, prompt = _with_text(waiting.answer, text_of), b""
        if answer.prompt is not None:
            prompt = packed(answer.prompt) or b""
            answer = answer if prompt else answer.without_prompt(TOO_LARGE)
        age_s = time.monotonic() - waiting.accepted_s
        memories = json.dumps(waiting.memories)
        arguments += [answer.request_id, f"{age_s:.3f}", memories, record_of(answer), prompt]
    return arguments


def _memories(tenant: str, answer: KeptAnswer) -> tuple[str, ...]:
    used = [(each.namespace, each.memory_id) for each in answer.passages]
    used += [(each.namespace, each.memory_id) for each in answer.skipped]
    keys = [memory_key(tenant, namespace, memory_id) for namespace, memory_id in dict.fromkeys(used)]
    return (*keys, *(module_key(module.digest) for module in answer.modules))


def module_key(digest: str) -> str:
    """What `KeptAnswers.forget_memories` and `of_memory` take for the content of a module version."""
    return f"module-{digest}"


def _prefix(tenant: str) -> str:
    # A tenant's name may have a colon.
    return PREFIX + hashlib.sha256(tenant.encode()).hexdigest()[:32]
