"""The client and the gateway mean the same by a message."""

from __future__ import annotations

import pytest

from memserve.api.grpc.convert.inference import generate_response, generation_request
from memserve.client import (
    CachedTokens,
    Event,
    Expert,
    FinishReason,
    Memory,
    Message,
    ModuleKind,
    ModuleUse,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    ScoredMemory,
    Slo,
    TextDelta,
    Usage,
    UsedModule,
    collect,
)
from memserve.client.wire.inference import event_of, generate_request

PASSAGES = (
    ScoredMemory(Memory("m", "n", "t", "s", ("k",), 1.0), 0.5, 0.25, None),
    ScoredMemory(Memory("o", "n", "t", "", (), 2.0), 0.5, None, 8.0),
)
USED = (
    UsedModule("tone", 3, "d", ModuleKind.LORA, "live at revision 2"),
    UsedModule("facts", 1, "e", ModuleKind.LOGIT_EXPERT, "asked for by number", 0.5),
)
ROUTE = Route("r", "tiny", "w0", "why", 1.5, 10, 4, USED, RecallOutcome.FOUND, PASSAGES)
USAGE = Usage(10, 2, CachedTokens(1, 2, 3), 4.0, 5.0, True, FinishReason.STOP)


@pytest.mark.parametrize(
    "event",
    [
        ROUTE,
        TextDelta("a", (1, 2), (-0.5, -1.0)),
        TextDelta("", (3,)),
        USAGE,
        Usage(1, 1, CachedTokens(), 1.0, None, False, FinishReason.LENGTH),
    ],
)
def test_what_the_gateway_says_is_what_the_client_reads(event: Event) -> None:
    assert event_of(generate_response(event)) == event


def test_what_the_client_asks_is_what_the_gateway_reads() -> None:
    talk = [Message(Role.SYSTEM, "a"), Message(Role.USER, "b")]
    sampling = Sampling(7, 0.5, 0.25, 0, ("stop",), True)
    asked = generation_request(
        generate_request(
            talk, module="tone", namespaces=["b", "a", "b"], recall_limit=3, recall_timeout_ms=250,
            sampling=sampling,
            slo=Slo(1.0, 2.0, True), model="tiny", worker_id="w0", expert=Expert("facts@2", 0.0), session="s",
            modules=["third", ModuleUse("fourth@live", -0.5)],
        )
    )  # fmt: skip
    assert (asked.messages, asked.sampling, asked.model) == (tuple(talk), sampling, "tiny")
    assert asked.modules == (
        ModuleUse("tone", 1.0, ModuleKind.LORA, "module"),
        ModuleUse("facts@2", 0.0, ModuleKind.LOGIT_EXPERT, "experts[0].reference"),
        ModuleUse("third", 1.0, None, "modules[0].reference"),
        ModuleUse("fourth@live", -0.5, None, "modules[1].reference"),
    )
    assert (asked.namespaces, asked.recall_limit, asked.recall_timeout_s) == (("b", "a"), 3, 0.25)
    assert (asked.slo, asked.worker_id, asked.session) == (Slo(1.0, 2.0, True), "w0", "s")
    plain = generation_request(generate_request("b"))
    assert (plain.sampling, plain.slo, plain.namespaces, plain.modules) == (
        Sampling(max_tokens=0),
        Slo(),
        (),
        (),
    )


def test_the_route_of_the_worker_that_took_over_counts() -> None:
    second = Route("r2", "tiny", "w1", "why", 1.5, 10, 4, (), RecallOutcome.NOT_ASKED, ())
    answer = collect([ROUTE, second, TextDelta("a", (1,)), TextDelta("b", (2,)), USAGE])
    assert (answer.route, answer.text, answer.token_ids, answer.usage) == (second, "ab", (1, 2), USAGE)
