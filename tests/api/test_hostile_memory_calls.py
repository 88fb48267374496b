"""MemoryService and the calls that recall: hostile values are refused by the field and the rule, and nothing
is an error of memserve's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from memserve.pb.v1 import inference_pb2, inference_pb2_grpc
from memserve.pb.v1 import memory_pb2 as pb
from memserve.pb.v1 import memory_pb2_grpc as rpc
from tests.api.refusals import refused
from tests.gateway.running import TIMEOUT_S, RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
NAN, INF = math.nan, math.inf
STREAMS = {"BatchRemember", "RememberDocument", "ImportMemories"}
INFERENCE = {"Recall", "RecordOutcome", "ExplainAnswer"}
DEEP = "(" * 400 + "true" + ")" * 400
FILTERS = [
    "version ==",
    DEEP,
    "a" * 70_000,
    'text == "\x00',
    "metadata.x == 1 and " * 300 + "true",
    "1 + 1",
    "nothing == 1",
]
NAMES = ["", "A", "../a", "a' or '1'='1", "x" * 65, "é", "a\0"]
IDS = ["", "../a", 'a"] or pk in ["', "x" * 129, " ", "é"]
NAMED = {"namespace": "hostile", "memory_id": "m"}


def text(value: str) -> pb.MetadataValue:
    return pb.MetadataValue(text=value)


def options(**fields: Any) -> pb.SearchRequest:
    return pb.SearchRequest(namespaces=["hostile"], query="a", options=pb.SearchOptions(**fields))


def new(**fields: Any) -> pb.RememberRequest:
    return pb.RememberRequest(**{"namespace": "hostile", "text": "a text", **fields})


def recall(**fields: Any) -> inference_pb2.RecallRequest:
    message = inference_pb2.Message(role=inference_pb2.ROLE_USER, content="a question")
    return inference_pb2.RecallRequest(
        messages=[message], recall=inference_pb2.Recall(**{"namespaces": ["hostile"], **fields})
    )


def content(field: str, **fields: Any) -> pb.UpdateMemoryRequest:
    return pb.UpdateMemoryRequest(**NAMED, fields=[field], content=pb.MemoryContent(**fields))


# What is refused, and the end of the field's name.
CASES: dict[str, tuple[str, Any, str]] = {
    "no kind that is known": ("Remember", new(kind=99), "kind"),
    "a value without a type": ("Remember", new(metadata={"a": pb.MetadataValue()}), "metadata"),
    "a key that is code": ("Remember", new(metadata={"a b\x1b": text("x")}), "metadata"),
    "an enormous key": ("Remember", new(metadata={"k" * 100_000: pb.MetadataValue()}), "metadata"),
    "a key that is a word": ("Remember", new(metadata={"and": text("x")}), "metadata"),
    "too many keys": ("Remember", new(metadata={f"k{n}": text("x") for n in range(33)}), "metadata"),
    "a value that is too long": ("Remember", new(metadata={"a": text("x" * 513)}), "metadata.a"),
    "no number": ("Remember", new(metadata={"a": pb.MetadataValue(number=NAN)}), "metadata.a"),
    "a list that is too long": (
        "Remember",
        new(metadata={"a": pb.MetadataValue(texts=pb.TextList(texts=["x"] * 33))}),
        "metadata.a",
    ),
    "from no time": ("Remember", new(valid_from_s=NAN), "valid_from_s"),
    "from the end of time": ("Remember", new(valid_from_s=INF), "valid_from_s"),
    "until no time": ("Remember", new(valid_until_s=NAN), "valid_until_s"),
    "until before it begins": ("Remember", new(valid_from_s=2, valid_until_s=1), "valid_until_s"),
    "no strength": ("Remember", new(strength=NAN), "strength"),
    "a negative strength": ("Remember", new(strength=-0.1), "strength"),
    "too much strength": ("Remember", new(strength=INF), "strength"),
    "a condition that does not parse": ("Remember", new(applies_when="user.role =="), "applies_when"),
    "a condition that is too deep": ("Remember", new(applies_when=DEEP), "applies_when"),
    "a link of no kind": ("Remember", new(links=[pb.MemoryLink(memory_id="a")]), "links[0].kind"),
    "a link of an unknown kind": (
        "Remember",
        new(links=[pb.MemoryLink(kind=77, memory_id="a")]),
        "links[0].kind",
    ),
    "a link to nothing": ("Remember", new(links=[pb.MemoryLink(kind=1)]), "links"),
    "a link to itself": (
        "Remember",
        new(memory_id="m9", links=[pb.MemoryLink(kind=1, memory_id="m9")]),
        "links",
    ),
    "too many links": (
        "Remember",
        new(links=[pb.MemoryLink(kind=1, memory_id=f"m{n}") for n in range(33)]),
        "links",
    ),
    "a place before the first": (
        "Remember",
        new(place=pb.MemoryPlace(within="d", position=-1)),
        "place.position",
    ),
    "a place in nothing": ("Remember", new(place=pb.MemoryPlace(position=1)), "place.within"),
    "too many headings": (
        "Remember",
        new(place=pb.MemoryPlace(within="d", headings=["h"] * 17)),
        "place.headings",
    ),
    "a control token": ("Remember", new(text="a <|end|> b"), "text"),
    "an update of nothing": ("UpdateMemory", pb.UpdateMemoryRequest(**NAMED), "fields"),
    "an update of an unknown field": ("UpdateMemory", content("version"), "fields"),
    "an update of the id": ("UpdateMemory", content("memory_id"), "fields"),
    "an update to a blank text": ("UpdateMemory", content("text", text=" \n"), "text"),
    "an update to a control token": ("UpdateMemory", content("text", text="<|end|>"), "text"),
    "an update to a huge text": ("UpdateMemory", content("text", text="a" * 8193), "text"),
    "an update to no strength": ("UpdateMemory", content("strength", strength=NAN), "strength"),
    "an update to an unknown kind": ("UpdateMemory", content("kind", kind=99), "kind"),
    "an update of a negative version": (
        "UpdateMemory",
        pb.UpdateMemoryRequest(**NAMED, fields=["text"], expected_version=-1),
        "expected_version",
    ),
    "an update through the gate": (
        "UpdateMemory",
        pb.UpdateMemoryRequest(
            **NAMED,
            fields=["text"],
            content=pb.MemoryContent(text="a"),
            policy=pb.WritePolicy(surprise_gate=True),
        ),
        "policy.surprise_gate",
    ),
    "a negative version": ("GetMemory", pb.GetMemoryRequest(**NAMED, version=-1), "version"),
    "a version of no time": ("GetMemory", pb.GetMemoryRequest(**NAMED, as_of_s=NAN), "as_of_s"),
    "a version and a time": ("GetMemory", pb.GetMemoryRequest(**NAMED, version=1, as_of_s=1), "as_of_s"),
    "a restored negative version": ("RestoreMemory", pb.RestoreMemoryRequest(**NAMED, version=-1), "version"),
    "a restored expectation": (
        "RestoreMemory",
        pb.RestoreMemoryRequest(**NAMED, expected_version=-5),
        "expected_version",
    ),
    "superseded by itself": (
        "SupersedeMemory",
        pb.SupersedeMemoryRequest(**NAMED, by_memory_id="m"),
        "memory_id",
    ),
    "superseded by no id": (
        "SupersedeMemory",
        pb.SupersedeMemoryRequest(**NAMED, by_memory_id="é"),
        "memory_id",
    ),
    "a reason that is too long": ("EraseMemory", pb.EraseMemoryRequest(**NAMED, reason="a" * 1025), "reason"),
    "a list of nothing": ("ListMemories", pb.ListMemoriesRequest(), "namespaces"),
    "a list in no order": ("ListMemories", pb.ListMemoriesRequest(namespaces=["hostile"], order=9), "order"),
    "a list of no state": (
        "ListMemories",
        pb.ListMemoriesRequest(namespaces=["hostile"], states=[9]),
        "states",
    ),
    "a list of no kind": ("ListMemories", pb.ListMemoriesRequest(namespaces=["hostile"], kinds=[9]), "kinds"),
    "a page of less than none": (
        "ListMemories",
        pb.ListMemoriesRequest(namespaces=["hostile"], page_size=-1),
        "page_size",
    ),
    "a page that was not given": (
        "ListMemories",
        pb.ListMemoriesRequest(namespaces=["hostile"], page_token="W10="),
        "page_token",
    ),
    "forgetting all": ("ForgetWhere", pb.ForgetWhereRequest(namespaces=["hostile"], filter=" "), "filter"),
    "forgetting nowhere": ("ForgetWhere", pb.ForgetWhereRequest(filter="true"), "namespaces"),
    "deleting another": (
        "DeleteNamespace",
        pb.DeleteNamespaceRequest(namespace="hostile", confirm="x"),
        "confirm",
    ),
    "deleting nothing": ("DeleteNamespace", pb.DeleteNamespaceRequest(), "namespace"),
    "a search of no kind": ("Search", options(kinds=[99]), "options.kinds"),
    "a search along no link": ("Search", options(link_kinds=[99]), "options.link_kinds"),
    "no relevance": ("Search", options(min_relevance=NAN), "options.min_relevance"),
    "too much relevance": ("Search", options(min_relevance=1.1), "options.min_relevance"),
    "no diversity": ("Search", options(diversity=NAN), "options.diversity"),
    "negative tokens": ("Search", options(max_tokens=-1), "options.max_tokens"),
    "negative neighbours": ("Search", options(neighbours=-1), "options.neighbours"),
    "too many neighbours": ("Search", options(neighbours=9), "options.neighbours"),
    "too deep": ("Search", options(link_depth=5), "options.link_depth"),
    "a search at no time": ("Search", options(as_of_s=NAN), "options.as_of_s"),
    "a context without a type": ("Search", options(context={"a": pb.MetadataValue()}), "options.context"),
    "a context that is too long": ("Search", options(context={"a": text("x" * 513)}), "context.a"),
    "a negative limit": ("Search", pb.SearchRequest(namespaces=["hostile"], query="a", limit=-1), "limit"),
    "links to no depth": ("FollowLinks", pb.FollowLinksRequest(**NAMED, depth=-1), "depth"),
    "links too deep": ("FollowLinks", pb.FollowLinksRequest(**NAMED, depth=5), "depth"),
    "links of no kind": ("FollowLinks", pb.FollowLinksRequest(**NAMED, kinds=[99]), "kinds"),
    "links into too much": (
        "FollowLinks",
        pb.FollowLinksRequest(**NAMED, namespaces=[f"n{number}" for number in range(16)]),
        "namespaces",
    ),
    "places of nothing": ("ReadPlaces", pb.ReadPlacesRequest(namespace="hostile"), "within"),
    "places before the first": (
        "ReadPlaces",
        pb.ReadPlacesRequest(namespace="hostile", within="d", first=-1),
        "first",
    ),
    "too many places": (
        "ReadPlaces",
        pb.ReadPlacesRequest(namespace="hostile", within="d", last=256),
        "last",
    ),
    "changes before the first": (
        "WatchMemories",
        pb.WatchMemoriesRequest(after_sequence=-1),
        "after_sequence",
    ),
    "recall of no kind": ("Recall", recall(options=pb.SearchOptions(kinds=[99])), "recall.options.kinds"),
    "recall with a hostile filter": (
        "Recall",
        recall(options=pb.SearchOptions(filter=DEEP)),
        "recall.options.filter",
    ),
    "recall of no relevance": (
        "Recall",
        recall(options=pb.SearchOptions(min_relevance=NAN)),
        "min_relevance",
    ),
    "recall of less than none": ("Recall", recall(limit=-1), "recall.limit"),
    "recall in less than no time": ("Recall", recall(timeout_ms=-1), "recall.timeout_ms"),
    "recall without messages": ("Recall", inference_pb2.RecallRequest(), "messages"),
    "no reward": ("RecordOutcome", inference_pb2.RecordOutcomeRequest(request_id="r", reward=NAN), "reward"),
    "too much reward": (
        "RecordOutcome",
        inference_pb2.RecordOutcomeRequest(request_id="r", reward=2),
        "reward",
    ),
    "an outcome of nothing": ("RecordOutcome", inference_pb2.RecordOutcomeRequest(), "request_id"),
    "an outcome of a long id": (
        "RecordOutcome",
        inference_pb2.RecordOutcomeRequest(request_id="r" * 65),
        "request_id",
    ),
    "a note that is too long": (
        "RecordOutcome",
        inference_pb2.RecordOutcomeRequest(request_id="r", note="é" * 2049),
        "note",
    ),
    "a reflection without a note": (
        "RecordOutcome",
        inference_pb2.RecordOutcomeRequest(request_id="r", reflect=True),
        "note",
    ),
    "an answer of no id": ("ExplainAnswer", inference_pb2.ExplainAnswerRequest(), "request_id"),
    "a batch without its header": ("BatchRemember", [pb.BatchRememberRequest(item=new())], "part"),
    "an empty batch": ("BatchRemember", [], "part"),
    "two headers": ("BatchRemember", [pb.BatchRememberRequest(header=pb.BatchRememberHeader())] * 2, "part"),
    "a document without its header": (
        "RememberDocument",
        [pb.RememberDocumentRequest(content=b"text")],
        "part",
    ),
    "a document of no value": (
        "RememberDocument",
        [
            pb.RememberDocumentRequest(
                header=pb.DocumentHeader(
                    namespace="hostile", document_id="d", metadata={"a": pb.MetadataValue()}
                )
            )
        ],
        "header.metadata",
    ),
    **{
        f"a filter of {len(each)} bytes, {each[:9]!r}, in {name}": (name, request, "filter")
        for each in FILTERS
        for name, request in (
            ("Search", options(filter=each)),
            ("ListMemories", pb.ListMemoriesRequest(namespaces=["hostile"], filter=each)),
            ("ForgetWhere", pb.ForgetWhereRequest(namespaces=["hostile"], filter=each)),
        )
    },
    **{
        f"the namespace {name!r} of {call}": (call, make(name), "")
        for name in NAMES
        for call, make in {
            "UpdateMemory": lambda name: pb.UpdateMemoryRequest(
                namespace=name, memory_id="m", fields=["text"]
            ),
            "RestoreMemory": lambda name: pb.RestoreMemoryRequest(namespace=name, memory_id="m"),
            "SupersedeMemory": lambda name: pb.SupersedeMemoryRequest(
                namespace=name, memory_id="m", by_memory_id="n"
            ),
            "EraseMemory": lambda name: pb.EraseMemoryRequest(namespace=name, memory_id="m"),
            "DeleteNamespace": lambda name: pb.DeleteNamespaceRequest(namespace=name, confirm=name),
            "FollowLinks": lambda name: pb.FollowLinksRequest(namespace=name, memory_id="m"),
            "ReadPlaces": lambda name: pb.ReadPlacesRequest(namespace=name, within="d"),
            "ExportMemories": lambda name: pb.ExportMemoriesRequest(namespaces=[name]),
            "ListMemories": lambda name: pb.ListMemoriesRequest(namespaces=[name]),
        }.items()
    },
    **{
        f"the id {name[:9]!r} of {call}": (call, make(name), "memory_id")
        for name in IDS
        for call, make in {
            "UpdateMemory": lambda name: pb.UpdateMemoryRequest(
                namespace="hostile", memory_id=name, fields=["text"], content=pb.MemoryContent(text="a")
            ),
            "RestoreMemory": lambda name: pb.RestoreMemoryRequest(namespace="hostile", memory_id=name),
            "EraseMemory": lambda name: pb.EraseMemoryRequest(namespace="hostile", memory_id=name),
            "FollowLinks": lambda name: pb.FollowLinksRequest(namespace="hostile", memory_id=name),
        }.items()
    },
}


def call(gateway: RunningGateway, name: str, request: Any) -> Any:
    stub = (
        inference_pb2_grpc.InferenceServiceStub(gateway.channel)
        if name in INFERENCE
        else rpc.MemoryServiceStub(gateway.channel)
    )
    sent = iter(request) if name in STREAMS else request
    return getattr(stub, name)(sent, timeout=TIMEOUT_S)


@pytest.mark.parametrize("case", CASES)
async def test_a_hostile_value_is_refused_by_its_field(gateway: RunningGateway, case: str) -> None:
    await gateway.client.remember("hostile", "a text", memory_id="m")
    name, request, field = CASES[case]
    before = await gateway.client.memory_usage()
    refusal = await refused(call(gateway, name, request))
    assert refusal.code is INVALID, refusal
    assert refusal.field is not None and refusal.field.endswith(field), refusal
    assert await gateway.client.memory_usage() == before


async def test_what_does_not_exist_is_not_found(gateway: RunningGateway) -> None:
    await gateway.client.remember("hostile", "a text", memory_id="m")
    nowhere, nobody = (
        {"namespace": "nowhere", "memory_id": "m"},
        {"namespace": "hostile", "memory_id": "nobody"},
    )
    for name in (nowhere, nobody):
        requests: Iterable[tuple[str, Any]] = (
            ("GetMemory", pb.GetMemoryRequest(**name, with_history=True, forgotten=True)),
            (
                "UpdateMemory",
                pb.UpdateMemoryRequest(**name, fields=["text"], content=pb.MemoryContent(text="a")),
            ),
            ("RestoreMemory", pb.RestoreMemoryRequest(**name)),
            ("SupersedeMemory", pb.SupersedeMemoryRequest(**name, by_memory_id="n", by_namespace="hostile")),
            ("EraseMemory", pb.EraseMemoryRequest(**name)),
            ("FollowLinks", pb.FollowLinksRequest(**name)),
        )
        for rpc_name, request in requests:
            assert (await refused(call(gateway, rpc_name, request))).code is NOT_FOUND, rpc_name
    for rpc_name, request in (
        ("ListMemories", pb.ListMemoriesRequest(namespaces=["nowhere"])),
        ("ForgetWhere", pb.ForgetWhereRequest(namespaces=["nowhere"], filter="true")),
        ("DeleteNamespace", pb.DeleteNamespaceRequest(namespace="nowhere", confirm="nowhere")),
        ("ExportMemories", pb.ExportMemoriesRequest(namespaces=["hostile", "nowhere"])),
        ("ReadPlaces", pb.ReadPlacesRequest(namespace="nowhere", within="d")),
        ("WatchMemories", pb.WatchMemoriesRequest(namespaces=["nowhere"])),
        ("Recall", recall(namespaces=["nowhere"])),
        ("ExplainAnswer", inference_pb2.ExplainAnswerRequest(request_id="nobody")),
        ("RecordOutcome", inference_pb2.RecordOutcomeRequest(request_id="nobody", reward=1)),
    ):
        found = await refused(call(gateway, rpc_name, request))
        assert found.code in (NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION), (rpc_name, found)
    assert "nowhere" not in await gateway.client.namespaces()


async def test_changes_of_long_ago_are_out_of_range(gateway: RunningGateway) -> None:
    """A number that no change has had yet is one of another registry's, or of a caller that is mistaken."""
    await gateway.client.remember("hostile", "a text", memory_id="m")
    future = call(gateway, "WatchMemories", pb.WatchMemoriesRequest(after_sequence=2**62))
    assert (await refused(future)).code is grpc.StatusCode.OUT_OF_RANGE
    assert await gateway.is_alive()
