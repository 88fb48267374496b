"""Bodies that break a rule: OpenAI's shape of an error, the field, the rule, and no worker hears of it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from memserve.api.http.bodies import ChatBody
from tests.api.http.fixtures import CHAT, Http
from tests.metrics.series import series

pytestmark = pytest.mark.asyncio(loop_scope="module")
USER = {"role": "user", "content": "hello"}
NESTED: Any = {"type": "object"}
for _ in range(40):
    NESTED = {"type": "object", "properties": {"x": NESTED}}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


@pytest.mark.parametrize(
    ("fields", "param", "rule"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "valid array"),
        ({"messages": "hello"}, "messages", "valid array"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be there"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [{**USER, "tool_calls": [call("x", "{}")]}]}, "messages[0]", "no place for tools"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": "AA=="}]}]},
            "messages[0].content",
            "",
        ),
        ({"prompt_embeds": "AA=="}, "prompt_embeds", "not supported"),
        ({"memserve": {"prompt_embeds": "AA=="}}, "memserve.prompt_embeds", "not supported"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role", "user's"),
        ({"messages": [USER] * 1001}, "messages", "1000"),
        ({"model": 3}, "model", "string"),
        ({"model": None}, "model", "string"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "integer"),
        ({"max_tokens": 5.5}, "max_tokens", "integer"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"max_tokens": 10**30}, "max_tokens", ""),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "either"),
        ({"max_tokens": 100_000}, "max_tokens", "model's"),
        ({"temperature": -1}, "temperature", "from 0"),
        ({"temperature": 2.1}, "temperature", "to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"stop": [""]}, "stop", "1 to 64 bytes"),
        ({"stop": ["x"] * 9}, "stop", ""),
        ({"seed": -1}, "seed", "from 0"),
        ({"n": 2}, "n", "1"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "0"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "at most 0"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [tool("a b")]}, "tools[0].function.name", ""),
        ({"tools": [tool("x")] * 65}, "tools", "at most 64"),
        ({"tools": [tool("x"), tool("x")]}, "tools", "different"),
        ({"tools": [tool("x")]}, "tools", "chat template"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "any"}, "tool_choice", ""),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "no place for tools"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "must be there"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [call("x", "[1]")]}]},
            "messages[0]",
            "no place for tools",
        ),
        ({"top_logprobs": 3}, "top_logprobs", "0"),
        ({"ignore_eos": True}, "ignore_eos", "max_tokens"),
        ({"audio": {}}, "audio", "not supported"),
        ({"a[0].b": 1}, "a[0].b", "not supported"),
        ({"memserve": {"x": 1}}, "memserve.x", "not supported"),
        ({"memserve": {"namespaces": ["../x"]}}, "memserve.namespaces", ""),
        ({"memserve": {"slo": {"refuse_late": True}}}, "memserve.slo.refuse_late", "ttft_ms"),
        ({"memserve": {"slo": {"ttft_ms": -1}}}, "memserve.slo.ttft_ms", "above 0"),
        ({"memserve": {"priority": "urgent"}}, "memserve.priority", "'high'"),
        ({"memserve": {"session": "x" * 300}}, "memserve.session", "256"),
        ({"memserve": {"module": "../x"}}, "memserve.module", "module's name"),
        ({"memserve": {"modules": [{"reference": "x@y@z"}]}}, "memserve.modules[0].reference", "must be"),
        (schema([]), "response_format.json_schema.schema", "an object"),
        (schema({"type": "string", "pattern": "(a|aa)+$"}), "response_format.pattern", "not supported"),
        (schema({"type": "array", "maxItems": 10**9}), "response_format.maxItems", "256"),
        (schema({"$ref": "http://example.com/x"}), "response_format.$ref", "#/$defs/"),
        (schema(NESTED), "response_format", "16 levels"),
        (schema({"type": "object", "minProperties": 9}), "response_format.minProperties", "not supported"),
        (schema({"allOf": [{}]}), "response_format.allOf", "not supported"),
        (schema({"$ref": "#/$defs/x"}), "response_format", "does not define"),
        (schema({"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}), "response_format", "itself"),
        (
            schema(
                {"$defs": {"x": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}}, "$ref": "#/$defs/x"}
            ),
            "response_format",
            "itself",
        ),
        ({"min_tokens": 3, "max_tokens": 5, "response_format": {"type": "json_object"}}, "min_tokens", "end"),
        ({"response_format": {"type": "xml"}}, "response_format", ""),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ],
)
async def test_a_field_that_breaks_a_rule(http: Http, fields: dict[str, Any], param: str, rule: str) -> None:
    before = len(http.gateway.workers[0].requests)
    answered = await http.client.post(CHAT, json=http.body(**fields))
    error = answered.json()["error"]
    assert (answered.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert rule in error["message"]
    assert error["message"].startswith(param)
    assert len(http.gateway.workers[0].requests) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"a":' * 10_000,
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "model": "MODEL"}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "MODEL", "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "MODEL", "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "MODEL", "top_p": Infinity}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "MODEL", "\\ud800": 1}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\u0000"}',
    ],
)
async def test_a_body_that_is_not_even_that(http: Http, content: bytes) -> None:
    content = content.replace(b"MODEL", http.model.encode())
    answered = await http.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answered.status_code in (400, 404), answered.text
    assert answered.json()["error"]["message"]
    assert (await http.chat(max_tokens=1)).status_code == 200


async def test_a_body_of_another_kind(http: Http) -> None:
    answered = await http.client.post(CHAT, content=b"<x/>", headers={"content-type": "application/xml"})
    assert answered.json()["error"]["param"] == "content-type"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "prompt_embeds": "AA=="}, "prompt_embeds"),
        ("/v1/completions", {"prompt": "a", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": "a", "logprobs": 5}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "messages": []}, "messages"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": ["a", " "]}, "input[1]"),
        ("/v1/embeddings", {"input": ["a"] * 65}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 7}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_other_bodies_that_break_a_rule(http: Http, path: str, body: Any, param: str) -> None:
    model = http.gateway.parts.texts.embedder.name if "embed" in path else http.model
    answered = await http.client.post(path, json={"model": model, **body})
    assert (answered.status_code, answered.json()["error"]["param"]) == (400, param)


NAMES = ["x" * 300, 'a"b', "a\nb", "../x", "\u202e", "tenant-{}", "name-{}@live", "{}:{}"]
MIB = 1 << 20
HUGE = {
    "unknown fields": b'{"model":"MODEL",' + b",".join(b'"%x":0' % n for n in range(300_000)) + b"}",
    "messages": b'{"model":"MODEL","messages":[' + b"0," * MIB + b"0]}",
    "parts": b'{"model":"MODEL","messages":['
    + b",".join([b'{"role":"user","content":[' + b"{}," * 999 + b"{}]}"] * 500)
    + b"]}",
    "metadata": b'{"model":"MODEL","messages":[],"metadata":{'
    + b",".join(b'"%x":0' % n for n in range(300_000))
    + b"}}",
    "strings": b'{"model":"MODEL","stop":["' + b'","' * MIB + b'"]}',
    "a string without an end": b'{"model":"MODEL","user":"' + b'\\"' * (MIB + MIB // 2),
    "a number": b'{"model":"MODEL","seed":' + b"9" * 3 * MIB + b"}",
    "10 MB": b'{"model":"MODEL","user":"' + b"x" * 10 * MIB + b'"}',
    "blanks": b" " * 3 * MIB,
    "a text": b'{"model":"MODEL","messages":[{"role":"user","content":"' + b"x, [{: " * 400_000 + b'"}]}',
    "escapes": b'{"model":"MODEL","messages":[{"role":"user","content":"' + rb"\u00e9" * 600_000 + b'"}]}',
}


@pytest.mark.parametrize("content", HUGE.values(), ids=HUGE)
async def test_a_huge_body_holds_nobody_up(http: Http, content: bytes) -> None:
    content = content.replace(b"MODEL", http.model.encode(), 1)
    loop, late_s = asyncio.get_running_loop(), [0.0]

    async def watch() -> None:
        while True:
            begun_s = loop.time()
            await asyncio.sleep(0.001)
            late_s.append(loop.time() - begun_s)

    # Sent by a thread: the client's own work is not the gateway's.
    watching = asyncio.create_task(watch())
    status, answered = await asyncio.to_thread(post, http, content)
    watching.cancel()
    assert (status, answered["error"]["type"]) == (400, "invalid_request_error")
    assert answered["error"]["param"] in ("body", "messages", "messages[0].content", "seed", "stop")
    assert max(late_s) < 1, "seconds in which the gateway did nothing else"
    assert (await http.chat(max_tokens=1)).status_code == 200


def post(http: Http, content: bytes) -> tuple[int, Any]:
    answered = httpx.post(
        http.url + CHAT, content=content, headers={"content-type": "application/json"}, timeout=60
    )
    return answered.status_code, answered.json()


async def test_a_few_wrong_fields_are_counted_before_they_are_read(http: Http) -> None:
    """Of each of many wrong values pydantic would make an error, which takes longer than to read them."""
    body = {"metadata": {f"{number}": number for number in range(17)}}
    refused = (await http.client.post(CHAT, json=http.body(**body))).json()["error"]
    assert (refused["param"], "at most 16" in refused["message"]) == ("metadata", True)
    parts = [{"role": "user", "content": [{}] * 3}] * 3
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate_json(json.dumps({"model": "m", "messages": parts, "x": 1, "y": 2}))
    assert caught.value.error_count() <= 3


async def test_of_two_fields_of_one_name_the_last_counts(http: Http) -> None:
    content = json.dumps(http.body(max_tokens=2)).replace("{", '{"max_tokens": -1, ', 1)
    answered = await http.client.post(
        CHAT, content=content.encode(), headers={"content-type": "application/json"}
    )
    assert answered.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "value", ["", "0", "-1", "nan", "inf", "1_0", "1e9", "0x10", "soon", "1,5", "9" * 400]
)
async def test_a_deadline_that_is_none(http: Http, value: str) -> None:
    answered = await http.client.post(CHAT, json=http.body(), headers={"x-request-timeout-s": value})
    error = answered.json()["error"]
    assert (answered.status_code, error["param"]) == (400, "x-request-timeout-s")


async def test_what_callers_send_makes_no_series(http: Http) -> None:
    parts = http.gateway.parts

    async def send(number: int) -> None:
        for text in NAMES:
            name = re.sub(r"\{\}", str(number), text)
            bodies = [
                {"model": f"{http.model}:{name}"},
                {"model": name},
                {"memserve": {"namespaces": [name], "session": name}},
                {"memserve": {"module": name}},
                {"user": name, "metadata": {name: name}, "max_tokens": 1},
            ]
            for body in bodies:
                await http.client.post(CHAT, json=http.body(**body))
        headers = {"authorization": f"Bearer {number}", "x-request-id": str(number)}
        odd: httpx.Response = await http.client.get(f"/v1/{number}", headers=headers)
        assert odd.status_code == 404

    await send(0)
    before = series(parts.metrics.registry)
    for number in range(1, 4):
        await send(number)
    assert series(parts.metrics.registry) == before
    answered = parts.metrics.registry.get_sample_value(
        "gen_ai_server_request_duration_seconds_count",
        {
            "gen_ai_operation_name": "chat",
            "gen_ai_provider_name": "memserve",
            "gen_ai_request_model": http.model,
            "error_type": "ModuleNotFound",
        },
    )
    assert answered
