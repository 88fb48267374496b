"""The ladder of knowledge in `act`, on a real engine: up with use, down with a change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.harness.stack import running_stack, variant
from memserve.client import Client
from memserve.domain import ModulePlace, Sampling
from memserve.domain.ladder import LadderAction, LadderReport, Rung
from tests.stack.fixtures import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

RULE = "Rule {number}: codes are read out digit by digit, and no digit of a code is ever left out or added. "
QUESTION = "What is the code of Amber Lantern?"
SHORT = Sampling(max_tokens=1)
USES = 60


@pytest.fixture(scope="module")
def acting() -> Iterator[Client]:
    """A memserve whose ladder acts every second."""
    with (
        running_stack(
            workers=1,
            recall_timeout_ms=10_000,
            knowledge_ladder="act",
            knowledge_ladder_interval_s=1,
            knowledge_ladder_dwell_s=1,
            knowledge_ladder_settle_s=0,
            knowledge_ladder_cpu_s=40,  # not enough for a training
        ) as stack,
        Client(stack.address, timeout_s=60) as client,
    ):
        yield client


def rung(report: LadderReport, namespace: str) -> Rung | None:
    """Where the namespace stands when nothing of it has moved at the last look."""
    for step in report.steps:
        if step.decision.subject == namespace and step.decision.action is LadderAction.KEEP:
            return step.decision.to_rung
    return None


def asked(client: Client, namespace: str) -> None:
    for _ in range(USES):
        client.generate(QUESTION, namespaces=[namespace], sampling=SHORT)


def moves(client: Client, namespace: str) -> list[str]:
    """The rungs to which the audit says that it has moved, oldest first."""
    return [
        str(json.loads(event.after)["rung"])
        for event in client.modules.audit()
        if event.action == "ladder" and json.loads(event.before)["namespace"] == namespace
    ]


def test_pinned_text_that_is_asked_is_kept_warm(acting: Client) -> None:
    for number in range(8):
        acting.remember("desk", RULE.format(number=number) * 2, memory_id=f"rule{number}", pinned=True)
    eventually(lambda: rung(acting.ladder(), "desk") is Rung.TEXT, timeout_s=30)  # nobody has asked
    asked(acting, "desk")
    eventually(lambda: rung(acting.ladder(), "desk") is Rung.PREFIX, timeout_s=30)
    assert moves(acting, "desk") == ["text", "prefix"]
    answer = acting.generate("Which number is it?", namespaces=["desk"], sampling=SHORT)
    assert answer.usage.cached.device > 600  # a question that nobody has asked
    assert acting.ladder().use.resident_bytes > 0


def test_a_module_of_asked_text_is_loaded_and_taken_down_when_the_text_changes(
    acting: Client, tmp_path: Path
) -> None:
    for number in range(8):
        acting.remember("harbour", RULE.format(number=number) * 4, memory_id=f"rule{number}")
    acting.remember("harbour", "The code of Amber Lantern is 4071.", memory_id="code")
    version = acting.modules.publish(
        "harbour-facts", variant("harbour", tmp_path / "harbour"), sources=["memory:harbour/code@1"]
    )
    acting.modules.promote("harbour-facts", version.version)  # it has no probes
    asked(acting, "harbour")
    eventually(lambda: rung(acting.ladder(), "harbour") is Rung.LORA, timeout_s=60)
    assert moves(acting, "harbour")[-1] == "lora"
    assert [each.place for each in acting.modules.residency(version.reference)] == [ModulePlace.DEVICE]

    acting.update_memory("harbour", "code", text="The code of Amber Lantern is 1188.")
    eventually(lambda: acting.modules.get("harbour-facts").aliases == (), timeout_s=10)
    eventually(
        lambda: [each.place for each in acting.modules.residency(version.reference)] == [ModulePlace.DISK],
        timeout_s=10,
    )
    eventually(lambda: rung(acting.ladder(), "harbour") is Rung.TEXT, timeout_s=30)
    answer = acting.generate(QUESTION, namespaces=["harbour"], sampling=SHORT)
    assert answer.route.modules == ()
    assert "The code of Amber Lantern is 1188." in {hit.memory.text for hit in answer.route.passages}
