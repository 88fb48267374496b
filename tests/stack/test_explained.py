"""A real answer is traced to the passage that it came from."""

from __future__ import annotations

import random
import uuid

import pytest

from memserve.client import AnswerExplanation, Client
from memserve.demo import facts
from memserve.domain import Sampling
from tests.stack.fixtures import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

QUESTIONS = 4
PASSAGES = 4


def explained(client: Client, request_id: str) -> AnswerExplanation:
    """When the answer is kept."""
    eventually(lambda: client.explain_answer(request_id).answer is not None, timeout_s=10)
    return client.explain_answer(request_id, leave_one_out=True)


def test_without_the_passage_that_it_came_from_an_answer_is_least_likely(client: Client) -> None:
    draw = random.Random(7)
    for number in range(QUESTIONS):
        namespace = f"explained-{uuid.uuid4().hex[:8]}"
        stated = facts.distinct_facts(draw, "held_out", PASSAGES, near_share=0.5)
        for place, fact in enumerate(stated):
            client.remember(namespace, facts.statement(draw, fact), memory_id=str(place), source="a book")
        asked = stated[number]
        answer = client.generate(
            facts.question(draw, asked).text,
            namespaces=namespace,
            recall_limit=PASSAGES,
            recall_timeout_ms=30_000,
            sampling=Sampling(max_tokens=24),
            keep_prompt=True,
        )
        assert answer.text.strip() == asked.answer
        kept = explained(client, answer.route.request_id).answer
        assert kept is not None
        assert kept.leave_one_out is not None
        assert len(kept.passages) == PASSAGES
        by_id = {weight.memory_id: weight.nats for weight in kept.leave_one_out.passages}
        assert max(by_id, key=by_id.__getitem__) == str(number)
        assert by_id[str(number)] > 3.0
        assert all(nats < by_id[str(number)] / 2 for place, nats in by_id.items() if place != str(number))
