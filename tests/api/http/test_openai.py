"""What OpenAI's own client gets."""

from __future__ import annotations

import base64
import struct

import pytest

from tests.api.http.fixtures import CHAT, HELLO, Http, client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_chat_in_one_and_streamed_say_the_same(http: Http) -> None:
    async with client_of(http) as client:
        whole = await client.chat.completions.create(
            model=http.model, messages=HELLO, max_tokens=5, logprobs=True, seed=1
        )
        stream = await client.chat.completions.create(
            model=http.model, messages=HELLO, max_tokens=5, stream=True, seed=1,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    choice = whole.choices[0]
    assert whole.usage is not None
    assert (choice.finish_reason, whole.usage.completion_tokens) == ("length", 5)
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 5
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content != ""
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_reply_has_the_receipt(http: Http) -> None:
    answered = await http.chat(max_tokens=3, memserve={"session": "s1", "slo": {"ttft_ms": 60_000}})
    receipt = answered.json()["memserve"]
    assert answered.headers["x-request-id"] == receipt["request_id"]
    assert answered.headers["x-memserve-worker"] == receipt["worker_id"] == "w0"
    assert receipt["candidates"][0]["worker_id"] == "w0"
    assert receipt["slo_met"] is True
    assert (receipt["system_folded"], receipt["merged_turns"]) == (False, 0)
    events = await http.events(max_tokens=3)
    assert events[-1]["memserve"]["worker_id"] == "w0"
    explained = await http.gateway.client.explain(receipt["request_id"])
    assert explained.route.worker_id == "w0", "it is the same request to every port"


async def test_a_completion_has_no_chat_template(http: Http) -> None:
    async with client_of(http) as client:
        done = await client.completions.create(model=http.model, prompt="hello", max_tokens=3, logprobs=0)
    tokenizer = http.gateway.parts.tokenizer
    assert http.gateway.workers[0].requests[-1].token_ids == tokenizer.encode_raw("hello")
    choice = done.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert len(choice.logprobs.text_offset) == 3
    assert choice.finish_reason == "length"


async def test_embeddings_are_the_embedders(http: Http) -> None:
    texts = http.gateway.parts.texts
    async with client_of(http) as client:
        by_default = await client.embeddings.create(model=texts.embedder.name, input=["one", "two words"])
        plain = await client.embeddings.create(
            model=texts.embedder.name, input="one", encoding_format="float"
        )
    assert [len(each.embedding) for each in by_default.data] == [384, 384]
    assert by_default.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert sum(value**2 for value in plain.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert plain.usage.prompt_tokens > 0
    packed = await http.client.post(
        "/v1/embeddings", json={"model": texts.embedder.name, "input": "one", "encoding_format": "base64"}
    )
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    assert struct.unpack("<384f", raw) == pytest.approx(plain.data[0].embedding, abs=1e-6)


async def test_what_asks_for_json_is_asked_of_the_engine(http: Http) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    await http.chat(
        max_tokens=2,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    worker = http.gateway.workers[0]
    assert '"required": ["name"]' in worker.requests[-1].json_schema
    await http.chat(max_tokens=2, response_format={"type": "json_object"})
    assert worker.requests[-1].json_schema == '{"type":"object"}'
    await http.chat(max_tokens=2, response_format={"type": "text"})
    assert worker.requests[-1].json_schema == ""


async def test_what_load_tools_send_is_taken(http: Http) -> None:
    events = await http.events(
        max_completion_tokens=4, ignore_eos=True, stop=None, n=1, frequency_penalty=0, presence_penalty=0.0,
        stream_options={"include_usage": True, "continuous_usage_stats": True}, user="u", metadata={"a": "b"},
        temperature=0,
    )  # fmt: skip
    sent = http.gateway.workers[0].requests[-1]
    assert (sent.max_tokens, sent.min_tokens, sent.temperature) == (4, 4, 0)
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 1, 2, 3, 4, 4, 4]


async def test_text_parts_and_developers_are_understood(http: Http) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    assert (await http.chat(messages=messages, max_tokens=1)).status_code == 200


async def test_the_metrics_are_those_of_the_gateway(http: Http) -> None:
    await http.chat(max_tokens=1)
    text = (await http.client.get("/metrics")).text
    assert 'memserve_requests_total{code="HTTP_200",rpc="Generate"}' in text


async def test_other_paths_and_methods(http: Http) -> None:
    missing = await http.client.get("/v1/assistants")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    wrong = await http.client.get(CHAT)
    assert wrong.status_code == 405
    assert wrong.json()["error"]["message"].startswith(f"GET {CHAT}")
    assert "access-control-allow-origin" not in wrong.headers
