"""A client keeps working with a gateway that says more than the client knows."""

from __future__ import annotations

import pytest

from memserve.client import (
    Client,
    FinishReason,
    ModuleKind,
    ModulePlace,
    RecallOutcome,
    UsageError,
)
from memserve.domain.kinds import KINDS
from memserve.pb.v1 import inference_pb2, module_pb2, status_pb2
from tests.client.examples import ALIAS, ALIAS_PB, ANSWER_PB, ROUTE_PB, USAGE_PB
from tests.client.stub_gateway import Call, StubGateway

# Enumerations of proto3 are open: a message may hold a number that its enumeration has no name for.
NUMBER = 99
# Field 99, an empty message: an event that `memserve.pb` does not know.
NEW_EVENT = bytes([99 << 3 & 0x7F | 2 | 0x80, 99 >> 4, 0])


@pytest.mark.parametrize("number", [0, NUMBER])
def test_a_kind_of_module_is_unknown(number: int, ask: Call, stub: StubGateway) -> None:
    module = module_pb2.Module(name="tone", kind=number)  # type: ignore[arg-type]
    version = module_pb2.ModuleVersion(module="tone", kind=number)  # type: ignore[arg-type]
    stub.replies["GetModule"] = [module_pb2.GetModuleResponse(module=module)]
    stub.replies["ListModules"] = [module_pb2.ListModulesResponse(modules=[module])]
    stub.replies["GetVersion"] = [module_pb2.GetVersionResponse(version=version)]
    assert ask("modules.get", "tone").kind is ModuleKind.UNKNOWN
    assert [listed.kind for listed in ask("modules.all")] == [ModuleKind.UNKNOWN]
    assert ask("modules.version", "tone@1").kind is ModuleKind.UNKNOWN


def test_a_kind_of_module_in_a_receipt_is_unknown(ask: Call, stub: StubGateway) -> None:
    route = inference_pb2.Route(modules=[inference_pb2.UsedModule(name="tone", kind="riddle")])
    stub.replies["Generate"] = [inference_pb2.GenerateResponse(route=route), USAGE_PB]
    (used,) = ask("generate", "q").route.modules
    assert (used.name, used.kind) == ("tone", ModuleKind.UNKNOWN)


@pytest.mark.parametrize("number", [0, NUMBER])
def test_a_finish_reason_and_an_outcome_are_unknown(number: int, ask: Call, stub: StubGateway) -> None:
    route = inference_pb2.Route(recall_outcome=number)  # type: ignore[arg-type]
    usage = inference_pb2.Usage(finish_reason=number)  # type: ignore[arg-type]
    stub.replies["Generate"] = [
        inference_pb2.GenerateResponse(route=route),
        inference_pb2.GenerateResponse(usage=usage),
    ]
    answer = ask("generate", "q")
    assert answer.route.recall_outcome is RecallOutcome.UNKNOWN
    assert answer.usage.finish_reason is FinishReason.UNKNOWN


@pytest.mark.parametrize("number", [0, NUMBER])
def test_a_place_is_unknown(number: int, ask: Call, stub: StubGateway) -> None:
    residency = module_pb2.WorkerResidency(worker_id="w0", place=number)  # type: ignore[arg-type]
    held = status_pb2.WorkerModule(digest="d", place=number)  # type: ignore[arg-type]
    stub.replies["GetResidency"] = [module_pb2.GetResidencyResponse(workers=[residency])]
    stub.replies["GetStatus"] = [
        status_pb2.GetStatusResponse(workers=[status_pb2.WorkerStatus(modules=[held])])
    ]
    assert [worker.place for worker in ask("modules.residency", "tone")] == [ModulePlace.UNKNOWN]
    assert ask("status").workers[0].modules == {"d": ModulePlace.UNKNOWN}


def test_an_event_in_an_answer_is_left_out(ask: Call, stub: StubGateway) -> None:
    stub.replies["Generate"] = [ROUTE_PB, NEW_EVENT, *ANSWER_PB[1:]]
    assert len(ask("stream", "q")) == len(ANSWER_PB)
    assert ask("generate", "q").text == " a b"


def test_an_event_of_a_long_call_is_left_out(ask: Call, stub: StubGateway) -> None:
    stub.replies["PromoteModule"] = [NEW_EVENT, module_pb2.PromoteModuleResponse(alias=ALIAS_PB)]
    seen: list[tuple[int, int]] = []
    assert ask("modules.promote", "tone", 3, progress=lambda *step: seen.append(step)) == ALIAS
    assert seen == []


def test_an_unknown_kind_cannot_be_asked_for(stub: StubGateway) -> None:
    with Client(stub.address) as client, pytest.raises(UsageError) as refused:
        client.modules.all(kind=ModuleKind.UNKNOWN)
    assert (refused.value.field, refused.value.rule) == (
        "kind",
        "must be one of lora, logit_expert, cartridge, soft_prompt, not unknown",
    )


def test_what_is_known_is_all_but_unknown() -> None:
    for kinds in (FinishReason, RecallOutcome, ModulePlace):
        assert set(kinds) - set(kinds.known()) == {kinds.UNKNOWN}
    assert ModuleKind.UNKNOWN not in KINDS
