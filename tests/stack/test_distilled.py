"""A page of text becomes a candidate version on the whole memserve, although its training is killed."""

from __future__ import annotations

import json

import grpc
import psutil
import pytest

from memserve.client import CallFailed, Client
from memserve.config.reading import STACK_MARK
from memserve.domain import DistilChoice, DistilPlan, DistilProgress, ModuleKind, NewDocument, Recipe
from memserve.embedded import Stack
from memserve.processes.marks import processes_with
from tests.stack.fixtures import eventually

pytestmark = pytest.mark.stack
PAGE = b"""The call of Royal Dolphin is 2644.
The crop of Misty Brewery is corn.
The phone of Aspen Mill is 5954.
The owner of Crystal Ranch is Maria Adler.
"""
SHORT = Recipe(steps=100, rows=4, stop_loss=0.0)


def trainers(stack: Stack) -> list[psutil.Process]:
    """The stack's processes that train."""
    marks = {STACK_MARK: str(stack.settings.data)}
    return [process for process in processes_with(marks) if process.cmdline()[:1] == ["ray::distil"]]


@pytest.mark.timeout(120, func_only=True)
def test_a_page_is_distilled_and_goes_on_when_the_training_is_killed(stack: Stack) -> None:
    killed: list[psutil.Process] = []
    steps: list[int] = []
    plans: list[DistilPlan] = []

    def watch(event: DistilPlan | DistilProgress) -> None:
        if isinstance(event, DistilPlan):
            plans.append(event)
        elif event.stage == "training":
            steps.append(event.done)
            if not killed:
                killed.extend(trainers(stack))
                for process in killed:
                    process.kill()

    with Client(stack.address, timeout_s=110) as client:
        [*_, report] = client.remember_document(NewDocument("pages", "page", file_name="page.txt"), PAGE)
        assert report.passages == 1
        version = client.modules.distil(
            "page", DistilChoice(("pages",)), recipe=SHORT, progress=watch, kind=ModuleKind.LORA
        )
        assert killed
        assert plans[-1].facts == 4
        assert steps
        assert version is not None
        assert version.gate is not None
        assert version.sources == ("memory:pages/page:0@1",)
        assert json.loads(version.recipe)["measured"]["steps"] == SHORT.steps
        assert client.modules.get("page").aliases == ()
        answer = client.generate("What is the phone of Aspen Mill?", module=version.reference)
        assert [module.digest for module in answer.route.modules] == [version.digest]

        def deleted() -> bool:
            try:
                client.modules.delete("page", 1)
            except CallFailed as error:
                if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                return False  # the worker tells a moment later that the answer has ended
            return True

        eventually(deleted, timeout_s=10)
