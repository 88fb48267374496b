"""Every method of the client, blocking and asynchronous: the request that it sends, and the value that it
makes of the response.
"""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from memserve.client import (
    AliasChange,
    AsyncClient,
    Client,
    Sampling,
    async_wait_until_ready,
    wait_until_ready,
)
from memserve.pb.v1 import inference_pb2, module_pb2
from tests.client.case import Case
from tests.client.cases import CASES
from tests.client.examples import (
    ALIAS,
    ALIAS_PB,
    ANSWER_PB,
    EVENT,
    EVENT_PB,
    MODULE,
    MODULE_PB,
    PROGRESS_PB,
    ROUTE,
    STATUS_PB,
    VERSION,
    VERSION_PB,
)
from tests.client.stub_gateway import Call, StubGateway

PAGED = {"modules.history", "modules.audit", "modules.publish"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_call_sends_its_arguments_and_reads_its_response(case: Case, ask: Call, stub: StubGateway) -> None:
    stub.replies[case.called] = list(case.replies)
    assert ask(case.name, *case.arguments, **case.options) == case.value
    assert stub.requests[case.called] == [case.request]


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_every_method_of_the_client_is_called_in_these_tests(client: type) -> None:
    owner = client(timeout_s=1.0)
    methods = {
        prefix + name
        for prefix, calls in (
            ("", owner),
            ("modules.", owner.modules),
            ("activation.", owner.activation),
            ("lineage.", owner.lineage),
        )
        for name, _ in inspect.getmembers(calls, inspect.ismethod)
        if not name.startswith("_") and name != "close"
    }
    assert methods == {case.name for case in CASES} | PAGED


def test_modules_and_versions_come_page_by_page(ask: Call, stub: StubGateway) -> None:
    stub.pages["ListModules"] = [
        module_pb2.ListModulesResponse(modules=[MODULE_PB], next_page_token="more"),
        module_pb2.ListModulesResponse(modules=[MODULE_PB]),
    ]
    stub.pages["ListVersions"] = [
        module_pb2.ListVersionsResponse(next_page_token="more"),
        module_pb2.ListVersionsResponse(versions=[VERSION_PB]),
    ]
    assert ask("modules.all") == [MODULE, MODULE]
    assert ask("modules.versions", "tone") == [VERSION]
    for rpc in ("ListModules", "ListVersions"):
        assert [request.page_token for request in stub.requests[rpc]] == ["", "more"]


def test_a_history_and_an_audit_end_with_an_empty_page(ask: Call, stub: StubGateway) -> None:
    change = module_pb2.AliasChange(
        revision=2,
        targets=ALIAS_PB.targets,
        at_s=1.5,
        principal="me",
        action="promote",
        reason="r",
        forced=True,
    )
    stub.pages["ListAliasHistory"] = [
        module_pb2.ListAliasHistoryResponse(changes=[change]),
        module_pb2.ListAliasHistoryResponse(),
    ]
    stub.pages["ListAuditEvents"] = [
        module_pb2.ListAuditEventsResponse(events=[EVENT_PB, EVENT_PB]),
        module_pb2.ListAuditEventsResponse(),
    ]
    assert ask("modules.history", "tone") == [AliasChange(2, ALIAS.targets, 1.5, "me", "promote", "r", True)]
    assert ask("modules.audit", "0-1") == [EVENT, EVENT]
    assert [request.after_revision for request in stub.requests["ListAliasHistory"]] == [0, 2]
    assert [request.after_event_id for request in stub.requests["ListAuditEvents"]] == ["0-1", "1-1"]


def test_an_upload_goes_on_where_it_was_cut_off(ask: Call, stub: StubGateway, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    stub.replies["GetUpload"] = [module_pb2.GetUploadResponse(received_bytes=[2, 3])]
    stub.replies["PublishModule"] = [module_pb2.PublishModuleResponse(version=VERSION_PB)]
    seen: list[tuple[int, int]] = []
    version = ask(
        "modules.publish",
        "tone",
        tmp_path,
        sources="a book",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert version == VERSION
    header, chunk = stub.requests["PublishModule"][0]
    assert [(file.file_name, file.size_bytes) for file in header.header.files] == [
        ("adapter_config.json", 2),
        ("adapter_model.safetensors", 7),
    ]
    assert header.header.sources == ["a book"]
    assert (chunk.chunk.file_name, chunk.chunk.offset, chunk.chunk.content) == (
        "adapter_model.safetensors",
        3,
        b"ghts",
    )
    assert seen == [(5, 9), (9, 9)]


def test_the_steps_of_a_long_call_are_reported(ask: Call, stub: StubGateway) -> None:
    stub.replies["PromoteModule"] = [
        module_pb2.PromoteModuleResponse(progress=PROGRESS_PB),
        module_pb2.PromoteModuleResponse(alias=ALIAS_PB),
    ]
    seen: list[tuple[int, int]] = []
    ask("modules.promote", "tone", 3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2)]


def test_sampling_is_one_value_or_its_fields(ask: Call, stub: StubGateway) -> None:
    stub.replies["Generate"] = list(ANSWER_PB)
    ask("generate", "q", sampling=Sampling(7, 0.5, stop=("a", "b"), seed=3))
    ask("generate", "q", max_tokens=7, temperature=0.5, stop=["a", "b"], seed=3)
    whole, fields = stub.requests["Generate"]
    assert whole == fields


def test_the_route_of_the_worker_that_took_over_counts(ask: Call, stub: StubGateway) -> None:
    first = inference_pb2.GenerateResponse(route=inference_pb2.Route(worker_id="w9"))
    stub.replies["Generate"] = [first, *ANSWER_PB]
    assert ask("generate", "q").route == ROUTE


def test_the_key_goes_with_every_call(stub: StubGateway) -> None:
    with Client(stub.address, "secret") as client:
        client.namespaces()
    assert stub.metadata[-1]["authorization"] == "Bearer secret"


def test_waiting_ends_when_enough_workers_are_ready(stub: StubGateway) -> None:
    stub.replies["GetStatus"] = [STATUS_PB]
    assert wait_until_ready(stub.address, 10.0)
    assert wait_until_ready(stub.address, 10.0, only=["w0"])
    assert not wait_until_ready(stub.address, 0.1, workers=2)
    assert not wait_until_ready(stub.address, 0.1, only=["w0", "w1"])


def test_waiting_is_the_same_for_asyncio(stub: StubGateway) -> None:
    stub.replies["GetStatus"] = [STATUS_PB]
    assert asyncio.run(async_wait_until_ready(stub.address, 10.0))
    assert not asyncio.run(async_wait_until_ready(stub.address, 0.1, workers=2))
