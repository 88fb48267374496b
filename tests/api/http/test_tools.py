"""Functions that a model may call, over HTTP, with a chat template that has a place for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionToolParam

from memserve.api.http.bodies import ChatBody, ChatMessage
from memserve.api.http.convert import ROLES
from memserve.api.http.tools import asked_tools, turn
from memserve.domain import TemplateRules
from memserve.errors import InvalidField
from tests.api.http.fixtures import client_of, http_of
from tests.contract.scripted_worker import Script

# In the style of Hermes' templates.
TEMPLATE = """
{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
Call a function with <tool_call>{"name": ..., "arguments": ...}</tool_call>.{% endif %}
{%- for m in messages %}[{{ m.role }}] {{ m.content }}
{%- for call in m.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{% endfor %}[assistant] """
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
QUESTION: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]


@pytest.mark.parametrize(
    ("message", "field", "rule"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id", "is needed"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "messages[0].tool_call_id", "is for"),
        ({"role": "user", "content": "x", "tool_calls": [CALLED]}, "messages[0].tool_calls", "assistant"),
        (
            {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "x", "arguments": "[1]"}}]},
            "messages[0].tool_calls[0].function.arguments",
            "JSON of an object",
        ),
    ],
)
def test_a_turn_that_breaks_a_rule_is_refused(message: dict[str, Any], field: str, rule: str) -> None:
    turned = ChatMessage.model_validate(message)
    with pytest.raises(InvalidField, match=rule) as refusal:
        turn(0, turned, ROLES[turned.role])
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\ud800"}', '{"a": "\\udc00\\ud800"}', f'{{"a": {"[" * 4000}}}']
)
def test_arguments_that_no_prompt_can_have_are_refused(arguments: str) -> None:
    called = {**CALLED, "function": {"name": "x", "arguments": arguments}}
    message = ChatMessage.model_validate({"role": "assistant", "tool_calls": [called]})
    with pytest.raises(InvalidField, match="JSON of an object"):
        turn(0, message, ROLES["assistant"])


def test_control_tokens_in_calls_and_tools_are_not_hidden_by_escapes() -> None:
    """Templates spell them out, as DeepSeek's, whose control tokens are not ASCII."""
    token = "<\uff5cUser\uff5c>"
    called = {**CALLED, "function": {"name": "x", "arguments": json.dumps({"a": token})}}
    message = {"role": "assistant", "tool_calls": [called]}
    tool = {"type": "function", "function": {"name": "x", "description": token, "parameters": {}}}
    body = ChatBody.model_validate({"model": "m", "messages": [message, *QUESTION], "tools": [tool]})
    assert token in turn(0, body.messages[0], ROLES["assistant"]).tool_calls
    rules = TemplateRules(tools=True, marks_calls=True)
    assert token in asked_tools(body, rules).template


async def asked(start_gateway: Any, tmp_path: Path, texts: tuple[str, ...], **fields: Any) -> Any:
    """The answer of a model that writes these texts, whole and from a stream; and what the worker got."""
    template = tmp_path / "tools.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    script = Script(texts=texts, stops_after=len(texts))
    gateway = await start_gateway(workers=[{"script": script}], chat_template=template)
    async with http_of(gateway) as http, client_of(http) as client:
        whole = await client.chat.completions.create(
            model=http.model, messages=fields.pop("messages", QUESTION), tools=[WEATHER], **fields
        )
        streamed = await of_stream(client, http.model, **fields)
    return whole.choices[0], streamed, gateway


async def of_stream(client: AsyncOpenAI, model: str, **fields: Any) -> tuple[str, list[Any], str]:
    stream = await client.chat.completions.create(
        model=model, messages=QUESTION, tools=[WEATHER], stream=True, **fields
    )
    text, calls, ended = "", [], ""
    async for chunk in stream:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        ended = choice.finish_reason or ended
    return text, calls, ended


async def test_a_model_may_call_a_function(start_gateway: Any, tmp_path: Path) -> None:
    texts = ("I look. ", "<tool", '_call>{"name": "weather", "arguments": {"city": "Oslo"}}', "</tool_call>")
    choice, (text, calls, ended), gateway = await asked(start_gateway, tmp_path, texts)
    [called] = choice.message.tool_calls
    assert (called.function.name, json.loads(called.function.arguments)) == ("weather", {"city": "Oslo"})
    assert choice.message.content == "I look. "
    assert choice.finish_reason == ended == "tool_calls"
    assert (text, [call.function.name for call in calls]) == ("I look. ", ["weather"])
    prompt = gateway.parts.tokenizer._tokenizer.decode(list(gateway.workers[0].requests[0].token_ids))
    assert '"description": "The weather of a city."' in prompt


async def test_a_model_that_must_call_is_held_to_the_schema(start_gateway: Any, tmp_path: Path) -> None:
    texts = ('[{"name": "weather", ', '"parameters": {"city": "Oslo"}}]')
    choice, (text, calls, ended), gateway = await asked(
        start_gateway, tmp_path, texts, tool_choice="required", parallel_tool_calls=False
    )
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"city": "Oslo"}']
    assert (text, len(calls), ended) == ("", 1, "tool_calls")
    held = json.loads(gateway.workers[0].requests[0].json_schema)
    assert held["maxItems"] == 1
    assert held["items"]["anyOf"][0]["properties"]["name"] == {"const": "weather"}


async def test_one_function_can_be_asked_for(start_gateway: Any, tmp_path: Path) -> None:
    choice, _, gateway = await asked(
        start_gateway,
        tmp_path,
        ('{"city": ', '"Oslo"}'),
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]
    held = json.loads(gateway.workers[0].requests[0].json_schema)
    assert held == WEATHER["function"]["parameters"]


async def test_without_a_call_the_answer_is_text(start_gateway: Any, tmp_path: Path) -> None:
    choice, (text, calls, ended), _ = await asked(start_gateway, tmp_path, ("It is ", "<b>fine</b>."))
    assert choice.message.content == text == "It is <b>fine</b>."
    assert choice.message.tool_calls is None
    assert (calls, choice.finish_reason, ended) == ([], "stop", "stop")


async def test_the_model_sees_what_the_function_has_returned(start_gateway: Any, tmp_path: Path) -> None:
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c1", "content": "It snows in Oslo."},
    ]
    _, _, gateway = await asked(start_gateway, tmp_path, ("Snow.",), messages=messages)
    prompt = gateway.parts.tokenizer._tokenizer.decode(list(gateway.workers[0].requests[0].token_ids))
    assert "[tool] It snows in Oslo." in prompt
    assert '{"city": "Oslo"}' in prompt


async def test_none_leaves_the_functions_out(start_gateway: Any, tmp_path: Path) -> None:
    _, _, gateway = await asked(start_gateway, tmp_path, ("Fine.",), tool_choice="none")
    prompt = gateway.parts.tokenizer._tokenizer.decode(list(gateway.workers[0].requests[0].token_ids))
    assert "weather" not in prompt.replace("How is the weather in Oslo?", "")
