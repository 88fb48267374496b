"""One memory's life, and what its history must say after each step."""

from __future__ import annotations

import time
from collections.abc import Callable

from loadtests.texts.memory_erasure.secrets import Secret
from memserve.client import CallFailed, Client, MemoryAction, MemoryState, Place

NAMESPACE = "notes"


class Checks:
    """Statements that must hold, each counted, and those that do not."""

    def __init__(self) -> None:
        self.made = 0
        self.failed: list[str] = []

    def holds(self, statement: str, truth: object) -> None:
        self.made += 1
        if not truth:
            self.failed.append(statement)

    def refused(self, statement: str, call: Callable[[], object], code: str) -> None:
        self.made += 1
        try:
            call()
        except CallFailed as error:
            if error.code.name == code:
                return
            self.failed.append(f"{statement}: {error.code.name} {error}")
        else:
            self.failed.append(f"{statement}: it was answered")


def remember(client: Client, secret: Secret, memory_id: str, namespace: str = NAMESPACE, at: int = 0) -> None:
    """With every field that may hold a text."""
    client.remember(
        namespace, secret.text, memory_id=memory_id, source=secret.source, keywords=[secret.keyword],
        metadata={"word": secret.value}, applies_when=f'user != "{secret.value}"',
        place=Place("session", at, secret.title, (secret.title,)),
    )  # fmt: skip


def tell(client: Client, secret: Secret, memory_id: str, checks: Checks) -> None:
    """Remember, update, contradict, restore, forget; the memory lives at the end."""
    remember(client, secret, memory_id, at=1)
    before_update_s = time.time()
    time.sleep(0.02)
    client.update_memory(NAMESPACE, memory_id, text=secret.later_text)
    checks.holds(
        "an update is the second version", client.get_memory(NAMESPACE, memory_id).version == 2
    )  # fmt: skip
    then = client.get_memory(NAMESPACE, memory_id, as_of_s=before_update_s)
    checks.holds("as of before the update it says what it said", then.text == secret.text)
    first = client.get_memory(NAMESPACE, memory_id, version=1)
    checks.holds("the first version is kept", first.text == secret.text)
    checks.holds("a search finds the second version", _found(client, secret.later_text, memory_id))
    _contradict(client, secret, memory_id, checks)
    restored = client.restore_memory(NAMESPACE, memory_id, version=1)
    checks.holds("restoring is a new version", restored.version == 4 and restored.text == secret.text)
    client.forget(NAMESPACE, memory_id)
    forgotten_s = time.time()
    checks.refused(
        "a forgotten memory is not read", lambda: client.get_memory(NAMESPACE, memory_id), "NOT_FOUND"
    )
    checks.holds("no search finds it", not _found(client, secret.text, memory_id))
    time.sleep(0.02)
    client.restore_memory(NAMESPACE, memory_id)
    history = client.memory_history(NAMESPACE, memory_id)
    actions = [version.action for version in history.versions]
    checks.holds(
        f"the history tells every step: {actions}",
        actions == [MemoryAction.REMEMBERED, MemoryAction.UPDATED, MemoryAction.SUPERSEDED,
                    MemoryAction.RESTORED, MemoryAction.FORGOTTEN, MemoryAction.RESTORED],
    )  # fmt: skip
    numbers = [version.memory.version for version in history.versions]
    checks.holds("versions are consecutive", numbers == list(range(1, len(numbers) + 1)))
    checks.refused(
        "as of when it was forgotten it is not read",
        lambda: client.get_memory(NAMESPACE, memory_id, as_of_s=forgotten_s), "NOT_FOUND",
    )  # fmt: skip
    checks.holds("a search finds it again", _found(client, secret.text, memory_id))


def _contradict(client: Client, secret: Secret, memory_id: str, checks: Checks) -> None:
    """Another memory takes its place. The loser keeps its history, and leaves its slot."""
    other = f"{memory_id}-other"
    stored = client.remember(NAMESPACE, secret.contradiction, memory_id=other)
    checks.holds("the contradiction is stored", stored.created)
    named = [finding.memory_id for finding in stored.findings]
    checks.holds(f"the reply names what it contradicts: {named}", memory_id in named)
    loser = client.supersede_memory(NAMESPACE, memory_id, other)
    checks.holds("the loser is marked", loser.state is MemoryState.SUPERSEDED and loser.version == 3)
    checks.holds("no search finds the loser", not _found(client, secret.later_text, memory_id))
    kept = client.memory_history(NAMESPACE, memory_id).versions
    checks.holds("the loser keeps its history", [each.memory.text for each in kept][:2] == [
        secret.text, secret.later_text])  # fmt: skip
    client.erase_memory(NAMESPACE, other)
    checks.refused("the winner is erased", lambda: client.get_memory(NAMESPACE, other), "NOT_FOUND")


def _found(client: Client, query: str, memory_id: str) -> bool:
    context = {"user": "nobody"}
    found = client.find(NAMESPACE, query, 16, context=context)
    return memory_id in [hit.memory.memory_id for hit in found.hits]
