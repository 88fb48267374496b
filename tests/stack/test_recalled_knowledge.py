"""What recall does with a failure, with conditions and times, and with links, seen from a client."""

from __future__ import annotations

import time

import pytest

from memserve.client import Answer, Client
from memserve.domain import (
    Link,
    LinkKind,
    MemoryKind,
    Place,
    RecallOutcome,
    RecallSource,
    Sampling,
    ScoredMemory,
    SkipReason,
)

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

SHORT = Sampling(max_tokens=24)
# On a busy machine a search may take longer than by default.
PATIENT_MS = 10_000
UNKNOWN = "I do not know."
DAY_S = 86_400.0


def asked(client: Client, question: str, namespace: str, **options: object) -> Answer:
    """options: of the search."""
    return client.generate(
        question,
        namespaces=namespace,
        recall_limit=1,
        recall_timeout_ms=PATIENT_MS,
        recall_options=options,
        sampling=SHORT,
    )


def passages(answer: Answer) -> list[str]:
    return [hit.memory.memory_id for hit in answer.route.passages]


def skipped(answer: Answer) -> dict[str, SkipReason]:
    return {one.memory_id: one.reason for one in answer.route.skipped}


@pytest.mark.parametrize("misled", [False, True], ids=["nothing known", "misled"])
def test_a_task_that_failed_is_done_once_its_reflection_is_recalled(client: Client, misled: bool) -> None:
    question = "What is the code of Amber Lantern?"
    answers = {}
    for feedback in (True, False):
        namespace = f"reflections-{misled}-{feedback}".lower()
        client.remember(namespace, "The harbour of Silver Falcon is Lisbon.", memory_id="other")
        if misled:
            client.remember(namespace, "The code of Amber Lantern is 1702.", memory_id="wrong")
        first = asked(client, question, namespace)
        assert "4071" not in first.text
        if feedback:
            outcome = client.record_outcome(
                first.route.request_id,
                -1.0,
                note="The code of Amber Lantern is 4071.",
                reflect=True,
                task=question,
            )
            assert outcome.reflection is not None
            assert outcome.reflection.kind is MemoryKind.REFLECTION
            weakened = {one.memory_id for one in outcome.memories if one.strength < one.strength_before}
            assert weakened == set(passages(first))
        answers[feedback] = asked(client, question, namespace)
    [reflection] = answers[True].route.passages
    assert reflection.memory.kind is MemoryKind.REFLECTION
    assert answers[True].text.strip() == "The code of Amber Lantern is 4071."
    assert "4071" not in answers[False].text
    assert all(hit.memory.kind is not MemoryKind.REFLECTION for hit in answers[False].route.passages)


def test_a_memory_is_used_when_its_condition_holds_and_else_the_receipt_says_why_not(client: Client) -> None:
    question, namespace = "What is the password of Noble Vault?", "conditions"
    client.remember(
        namespace,
        "The password of Noble Vault is badger.",
        memory_id="secret",
        applies_when='user.role == "keeper"',
    )
    keeper = asked(client, question, namespace, context={"user.role": "keeper"})
    assert passages(keeper) == ["secret"]
    assert "badger" in keeper.text
    for context in ({"user.role": "guest"}, {}):
        other = asked(client, question, namespace, context=context)
        assert passages(other) == []
        assert other.route.recall_outcome is RecallOutcome.EMPTY
        assert skipped(other) == {"secret": SkipReason.CONDITION}
        assert "badger" not in other.text
        [texts] = [part for part in other.route.recall if part.source is RecallSource.TEXTS]
        assert texts.given == 0


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"valid_until_s": -DAY_S}, SkipReason.EXPIRED),
        ({"valid_from_s": DAY_S}, SkipReason.NOT_YET_VALID),
    ],
    ids=["expired", "not yet valid"],
)
def test_a_fact_outside_its_time_is_not_used_and_the_one_that_holds_is(
    client: Client, times: dict[str, float], reason: SkipReason
) -> None:
    question, namespace = "What is the gate of Rainy Tower?", f"times-{reason}"
    now_s = time.time()
    outside = {name: now_s + offset_s for name, offset_s in times.items()}
    client.remember(namespace, "The gate of Rainy Tower is 46.", memory_id="outside", **outside)  # type: ignore[arg-type]
    alone = asked(client, question, namespace)
    assert passages(alone) == []
    assert skipped(alone) == {"outside": reason}
    assert alone.text.strip() == UNKNOWN
    client.remember(namespace, "The gate of Rainy Tower is 81.", memory_id="holds")
    both = asked(client, question, namespace)
    assert passages(both) == ["holds"]
    assert skipped(both) == {"outside": reason}
    assert "81" in both.text
    then_s = now_s - 2 * DAY_S if reason is SkipReason.EXPIRED else now_s + 2 * DAY_S
    earlier_or_later = client.find(namespace, question, as_of_s=then_s)
    assert "outside" in [hit.memory.memory_id for hit in earlier_or_later.hits]


def test_a_question_of_two_hops_is_answered_through_a_link(client: Client) -> None:
    """What the question finds leads to what answers it."""
    namespace, question = "hops", "Which captain does Silver Falcon have?"
    client.remember(namespace, "The captain of Silver Falcon is Anna Berg.", memory_id="answer")
    client.remember(
        namespace,
        "About the captain that Silver Falcon has, see the list of captains.",
        memory_id="pointer",
        strength=10.0,
        links=[Link(LinkKind.DERIVED_FROM, "answer")],
    )
    plain = asked(client, question, namespace)
    assert passages(plain) == ["pointer"]
    assert "Anna Berg" not in plain.text
    linked = asked(client, question, namespace, link_depth=1)
    assert set(passages(linked)) == {"pointer", "answer"}
    [reached] = [hit for hit in linked.route.passages if hit.via is not None]
    assert reached.via is not None
    assert (reached.memory.memory_id, reached.via.memory_id) == ("answer", "pointer")
    assert (reached.via.kind, reached.via.depth) == (LinkKind.DERIVED_FROM, 1)
    assert "Anna Berg" in linked.text
    other_kind = asked(client, question, namespace, link_depth=1, link_kinds=(LinkKind.CAUSED_BY,))
    assert passages(other_kind) == ["pointer"]


def test_the_order_of_an_episode_is_read_by_place_and_by_next_and_previous(client: Client) -> None:
    namespace, session = "episodes", "voyage"
    steps = ["Left Lisbon at dawn.", "Met a storm.", "Mended the sail.", "Reached Porto at night."]
    # Remembered in another order than they happened.
    for position in (2, 0, 3, 1):
        following = [Link(LinkKind.NEXT, f"step-{position + 1}")] if position + 1 < len(steps) else []
        client.remember(
            namespace,
            steps[position],
            memory_id=f"step-{position}",
            kind=MemoryKind.EPISODE,
            place=Place(session, position),
            links=following,
        )
    assert [memory.text for memory in client.read_places(namespace, session)] == steps
    onwards = client.follow_links(namespace, "step-0", depth=3, kinds=[LinkKind.NEXT])
    assert by_depth(onwards) == ["step-1", "step-2", "step-3"]
    assert not any(hit.via.backwards for hit in onwards if hit.via is not None)
    before = client.follow_links(namespace, "step-3", depth=3, kinds=[LinkKind.NEXT])
    assert by_depth(before) == ["step-2", "step-1", "step-0"]
    assert all(hit.via is not None and hit.via.backwards for hit in before)
    storm = client.find(namespace, "storm", 1, neighbours=1)
    assert [hit.memory.memory_id for hit in storm.hits if hit.via is None] == ["step-1"]
    beside = {hit.memory.memory_id for hit in storm.hits if hit.via is not None and hit.via.kind is None}
    assert beside == {"step-0", "step-2"}


def by_depth(hits: list[ScoredMemory]) -> list[str]:
    found = {hit.via.depth: hit.memory.memory_id for hit in hits if hit.via is not None}
    return [found[depth] for depth in sorted(found)]
