"""What becomes of answers: memories that helped count more, those that misled count less, and a failure can
leave a reflection behind.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from memserve.domain import (
    KeptAnswer,
    Link,
    LinkKind,
    Memory,
    MemoryKind,
    NewMemory,
    RecordedOutcome,
    Reinforced,
    Tenant,
    WritePolicy,
)
from memserve.errors import (
    InvalidField,
    MemoryConflict,
    MemoryNotFound,
    NamespaceNotFound,
    OutcomeWithoutAnswer,
)
from memserve.gateway.remembering import Remembering
from memserve.memory.answers.store import KeptAnswers
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.requests import MemoryChanges
from memserve.memory.texts.rules import check_namespace
from memserve.memory.texts.uses import UseLedger
from memserve.policy.recall.reflection import reflection_text

NOTE_MAX_BYTES = 4096
TASK_MAX_BYTES = 2048
LINKS_MAX = 16
REFLECTION_STRENGTH = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer turned out, as a caller says."""

    request_id: str
    reward: float
    """-1 is a failure, 1 is a success."""
    note: str = ""
    reflect: bool = False
    """Store the note as a reflection."""
    task: str = ""
    """The task as it will be asked again. "": the question of the kept prompt."""
    namespace: str = ""
    """Of the reflection. "": the first one that the request recalled from."""


class Feedback:
    """For all tenants."""

    def __init__(
        self, answers: KeptAnswers, texts: VectorMemory, ledger: UseLedger, remembering: Remembering
    ) -> None:
        self._answers = answers
        self._texts = texts
        self._ledger = ledger
        self._remembering = remembering

    async def record(self, tenant: Tenant, outcome: Outcome) -> RecordedOutcome:
        """Count the outcome for every memory that the answer was made with. A second outcome of a request
        takes the place of the first.

        Raises InvalidField, OutcomeWithoutAnswer, RegistryUnavailable, and as `Remembering.remember`.
        """
        _check(outcome)
        answer = await self._answers.get(tenant.name, outcome.request_id) if self._answers.keeps else None
        if answer is None:
            raise OutcomeWithoutAnswer(outcome.request_id)
        namespace = outcome.namespace or next(iter(answer.namespaces), "")
        if outcome.reflect:
            self._check_reflection(outcome, namespace)
        now_s = time.time()
        memories = [memory for memory in await self._used(tenant, answer) if memory is not None]
        before = await self._ledger.strengths(tenant.name, memories, now_s)
        keys = [memory_key(tenant.name, *memory.name) for memory in memories]
        await self._ledger.record(tenant.name, outcome.request_id, keys, (outcome.reward + 1) / 2, now_s)
        after = await self._ledger.strengths(tenant.name, memories, now_s)
        reflection = None
        if outcome.reflect:
            task = outcome.task or _question(answer)
            reflection = await self._reflect(tenant, _reflection(namespace, task, outcome, memories))
        return RecordedOutcome(
            tuple(
                Reinforced(
                    memory.namespace,
                    memory.memory_id,
                    before[memory.name],
                    after[memory.name],
                )
                for memory in memories
            ),
            reflection,
        )

    async def _used(self, tenant: Tenant, answer: KeptAnswer) -> list[Memory | None]:
        """The memories of the answer's passages, as they are now."""
        return [
            await self._memory(tenant, passage.namespace, passage.memory_id) for passage in answer.passages
        ]

    async def _memory(self, tenant: Tenant, namespace: str, memory_id: str) -> Memory | None:
        try:
            return await self._texts.get(tenant.name, namespace, memory_id)
        except (NamespaceNotFound, MemoryNotFound):
            return None

    def _check_reflection(self, outcome: Outcome, namespace: str) -> None:
        """Before anything is counted. Raises InvalidField."""
        if not namespace:
            raise InvalidField("namespace", "must be named, because the request recalled from none")
        check_namespace("namespace", namespace)
        self._remembering.check_text("note", outcome.note)
        self._remembering.check_text("task", outcome.task)

    async def _reflect(self, tenant: Tenant, reflection: NewMemory) -> Memory | None:
        """Store the reflection. Of an outcome that is said again, the reflection gets a new version."""
        policy = WritePolicy(skip_relations=True)
        try:
            return (await self._remembering.remember(tenant, reflection, policy)).memory
        except MemoryConflict:
            changes = MemoryChanges(reflection)
            return (await self._remembering.update(tenant, changes, policy)).memory


def _reflection(namespace: str, task: str, outcome: Outcome, used: list[Memory]) -> NewMemory:
    links = [Link(LinkKind.DERIVED_FROM, memory.memory_id, memory.namespace) for memory in used[:LINKS_MAX]]
    return NewMemory(
        namespace,
        reflection_text(task, outcome.note),
        source=f"outcome of request {outcome.request_id}",
        memory_id=f"reflection:{outcome.request_id}",
        kind=MemoryKind.REFLECTION,
        metadata={"request_id": outcome.request_id, "reward": float(outcome.reward)},
        strength=REFLECTION_STRENGTH,
        links=tuple(links),
    )


def _check(outcome: Outcome) -> None:
    if not -1 <= outcome.reward <= 1:  # NaN fails too
        raise InvalidField("reward", "must be from -1, a failure, to 1, a success")
    if len(outcome.note.encode()) > NOTE_MAX_BYTES:
        raise InvalidField("note", f"must be at most {NOTE_MAX_BYTES} bytes")
    if len(outcome.task.encode()) > TASK_MAX_BYTES:
        raise InvalidField("task", f"must be at most {TASK_MAX_BYTES} bytes")
    if outcome.reflect and not outcome.note.strip():
        raise InvalidField("note", "must say what was learned, for a reflection")


def _question(answer: KeptAnswer) -> str:
    """The last question of the kept prompt; "" where none is kept."""
    if answer.prompt is None:
        return ""
    text = next((one.content for one in reversed(answer.prompt.messages) if one.role == "user"), "")
    return text.encode()[:TASK_MAX_BYTES].decode(errors="ignore")
