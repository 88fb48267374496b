"""Recall over HTTP: the wishes in the object `memserve` of a body, and what the reply's says of it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from memserve.api.http.bodies import LinkKindName, MemoryKindName, RecallBody
from memserve.api.http.replies import ChatReply
from memserve.domain import LinkKind, MemoryKind
from tests.api.http.fixtures import Http
from tests.api.http.test_document import unknown
from tests.gateway.running import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = [{"role": "user", "content": "Where is the key of the archive?"}]


async def remember(http: Http, namespace: str) -> None:
    client = http.gateway.client
    await client.remember(namespace, "The key of the archive is red.", memory_id="old", valid_until_s=50.0)
    await client.remember(
        namespace, "The key of the archive is with the nurse.", memory_id="nurse",
        applies_when='user.role == "nurse"',
    )  # fmt: skip
    await client.remember(
        namespace, "The key of the archive hangs on the wall.", memory_id="wall", metadata={"floor": 2}
    )


async def receipt_of(http: Http, namespace: str, **recall: Any) -> dict[str, Any]:
    asked = {"namespaces": [namespace], "recall_timeout_ms": 10_000, "recall": recall}
    answered = await http.client.post(
        "/v1/chat/completions", json=http.body(messages=QUESTION, max_tokens=1, memserve=asked)
    )
    assert answered.status_code == 200, answered.text
    assert unknown(ChatReply.model_validate(answered.json())) == []
    receipt: dict[str, Any] = answered.json()["memserve"]
    return receipt


def ids(receipt: dict[str, Any]) -> set[str]:
    return {passage["memory_id"] for passage in receipt["passages"]}


async def test_a_reply_says_what_was_used_and_what_was_not(http: Http) -> None:
    await remember(http, "keys")
    receipt = await receipt_of(http, "keys", context={"user.role": "cook"})
    (passage,) = receipt["passages"]
    assert (passage["memory_id"], passage["version"], passage["via"]) == ("wall", 1, None)
    assert 0 < passage["relevance"] <= 1 and passage["strength"] > 0 and passage["dense_score"] > 0
    assert {(entry["memory_id"], entry["reason"]) for entry in receipt["skipped"]} == {
        ("old", "expired"),
        ("nurse", "condition"),
    }
    assert [part["source"] for part in receipt["recall"]] == ["texts", "prefix"]
    texts = receipt["recall"][0]
    assert (texts["outcome"], texts["given"]) == ("found", 1)
    assert texts["took_ms"] > 0 and texts["prompt_tokens"] > 0
    assert receipt["module_fits"] == []


async def test_each_wish_has_its_effect(http: Http) -> None:
    await remember(http, "wishes")
    assert ids(await receipt_of(http, "wishes", context={"user.role": "nurse"})) == {"nurse", "wall"}
    assert ids(await receipt_of(http, "wishes", filter="metadata.floor == 2")) == {"wall"}
    assert ids(await receipt_of(http, "wishes", kinds=["episode"])) == set()
    assert "old" in ids(await receipt_of(http, "wishes", as_of_s=10))
    assert ids(await receipt_of(http, "wishes", min_relevance=1.0)) == set()
    assert ids(await receipt_of(http, "wishes", max_tokens=1)) == set()
    await http.gateway.client.remember("wishes", "Knock twice.", memory_id="pin", pinned=True)

    async def is_pinned() -> bool:
        return "pin" in ids(await receipt_of(http, "wishes", min_relevance=1.0))

    await eventually(is_pinned)
    assert "pin" not in ids(await receipt_of(http, "wishes", min_relevance=1.0, skip_pinned=True))
    chosen = await receipt_of(http, "wishes", choose_module=True)
    assert "modules" in [part["source"] for part in chosen["recall"]]


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"kinds": ["dream"]}, "memserve.recall.kinds[0]"),
        ({"kinds": ["fact"] * 17}, "memserve.recall.kinds"),
        ({"filter": "version =="}, "memserve.recall.filter"),
        ({"filter": "(" * 400 + "true" + ")" * 400}, "memserve.recall.filter"),
        ({"min_relevance": 1.5}, "memserve.recall.min_relevance"),
        ({"diversity": -0.1}, "memserve.recall.diversity"),
        ({"max_tokens": -1}, "memserve.recall.max_tokens"),
        ({"context": {"a": {"b": 1}}}, "memserve.recall.context.a"),
        ({"context": {"a b": 1}}, "memserve.recall.context"),
        ({"context": {"a": None}}, "memserve.recall.context.a"),
        ({"context": {f"k{number}": 1 for number in range(33)}}, "memserve.recall.context"),
        ({"neighbours": 9}, "memserve.recall.neighbours"),
        ({"link_depth": 5}, "memserve.recall.link_depth"),
        ({"link_kinds": ["friend"]}, "memserve.recall.link_kinds[0]"),
        ({"as_of_s": "now"}, "memserve.recall.as_of_s"),
        ({"as_of_s": 1e300}, "memserve.recall.as_of_s"),
        ({"rerank": 1}, "memserve.recall.rerank"),
        ({"limit": 3}, "memserve.recall.limit"),
    ],
)
async def test_a_wish_that_breaks_a_rule_is_refused_by_its_name(
    http: Http, wishes: dict[str, Any], param: str
) -> None:
    await http.gateway.client.remember("refused", "A text.", memory_id="m")
    refused = await http.chat(memserve={"namespaces": ["refused"], "recall": wishes})
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["param"] == param and len(error["message"]) < 1000


async def test_no_number_is_no_wish(http: Http) -> None:
    for field in ("min_relevance", "as_of_s", "diversity"):
        body = json.dumps(http.body(memserve={"namespaces": ["refused"], "recall": {field: float("nan")}}))
        refused = await http.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert refused.status_code == 400
        assert field in refused.json()["error"]["message"] or "JSON" in refused.json()["error"]["message"]


async def test_the_document_has_the_wishes(http: Http) -> None:
    document = (await http.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["RecallBody"]["properties"].keys() == RecallBody.model_fields.keys()
    assert {"skipped", "recall", "module_fits"} <= schemas["Receipt"]["properties"].keys()
    assert set(get_args(MemoryKindName)) == set(MemoryKind.known())
    assert set(get_args(LinkKindName)) == set(LinkKind.known())
