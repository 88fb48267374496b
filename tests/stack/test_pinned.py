"""Pinned memories on the whole of memserve: their prefix is there before the first request that needs it."""

from __future__ import annotations

import pytest

from memserve.client import Client
from memserve.domain import RecallSource
from memserve.embedded import Stack
from memserve.embedded.story import ANSWER
from tests.stack.fixtures import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

NAMESPACE = "front-desk"
RULES = (
    "Codes and phone numbers are read out digit by digit, and nothing is left out or added to them.",
    "Stations, ships and farms are in the north of the country, and all times are those of the harbour.",
    "Say that you do not know when the notes do not have the answer, and never guess a code or a colour.",
    *(
        f"The keeper of pier {number} writes down who comes, who leaves, what they carry and where they go, "
        "and reads it out to the harbour master in the evening, when the last ferry has left."
        for number in range(2, 14)
    ),
)
"""Long enough that a worker which has none of their KV would rather fetch it than compute it."""
CHANGED = "Codes and phone numbers are spelt in words, two digits at a time, and are said only once."
QUESTION = "What is the code of Amber Lantern?"


def redis_tokens(client: Client, question: str) -> int:
    """Leading tokens of the prompt that Redis has, before any request has computed them."""
    return client.recall(question, namespaces=NAMESPACE, timeout_ms=10_000).redis_tokens or 0


def test_the_first_request_after_pinning_and_after_a_change_finds_the_prefix(
    stack: Stack, client: Client
) -> None:
    client.remember(NAMESPACE, "The code of Amber Lantern is 4071.", memory_id="code")
    for number, rule in enumerate(RULES):
        client.remember(NAMESPACE, rule, memory_id=f"rule{number}", pinned=True)
    chunk_tokens = client.activation.lookup(QUESTION).chunk_tokens
    eventually(lambda: redis_tokens(client, QUESTION) >= chunk_tokens, timeout_s=60)
    warm = redis_tokens(client, QUESTION)
    for worker in client.status().workers:
        answer = client.generate(
            QUESTION,
            namespaces=NAMESPACE,
            worker_id=worker.worker_id,
            recall_timeout_ms=10_000,
            sampling=ANSWER,
        )
        assert answer.usage.cached.total >= warm
    pinned = next(part for part in answer.route.recall if part.source is RecallSource.PINNED)
    assert pinned.given == len(RULES)
    assert pinned.prompt_tokens >= warm // 2

    client.update_memory(NAMESPACE, "rule0", text=CHANGED)
    other = "Which code does Amber Lantern have?"
    eventually(lambda: redis_tokens(client, other) >= chunk_tokens, timeout_s=60)
    answer = client.generate(
        other, namespaces=NAMESPACE, recall_timeout_ms=10_000, sampling=ANSWER, keep_prompt=True
    )
    assert answer.usage.cached.total >= chunk_tokens
    request_id = answer.route.request_id
    eventually(lambda: client.explain_answer(request_id).answer is not None, timeout_s=20)
    kept = client.explain_answer(request_id).answer
    assert kept is not None
    assert kept.prompt is not None
    assert CHANGED in kept.prompt.text
    assert RULES[0] not in kept.prompt.text
