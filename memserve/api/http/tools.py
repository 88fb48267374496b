"""Functions that a model may call, between bodies of OpenAI's API and domain values."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memserve.api.http.bodies import ChatBody, ChatMessage, NamedTool, Tool
from memserve.domain import Message, Role, TemplateRules
from memserve.errors import InvalidField
from memserve.policy.tool_calls import CALLS_MAX, Call, CallReader, Form, Function, schema_of

NO_PLACE = "this model's chat template has no place for tools (setting chat_template)"


@dataclass(frozen=True, slots=True)
class AskedTools:
    """What a request says of tools, for the pipeline and for reading the answer."""

    template: str = ""
    """As of GenerationRequest."""
    json_schema: str = ""
    """That the answer is held to."""
    form: Form | None = None
    """How calls stand in the answer. None: there are none."""
    name: str = ""
    """Of the function that must be called."""

    def reader(self) -> CallReader | None:
        return CallReader(self.form, self.name) if self.form else None


def asked_tools(body: ChatBody, rules: TemplateRules) -> AskedTools:
    """rules: of the model's chat template. Raises InvalidField."""
    tools, choice = body.tools or [], body.tool_choice or "auto"
    for place, message in enumerate(body.messages):
        if (message.role == "tool" or message.tool_calls) and not rules.tools:
            raise InvalidField(f"messages[{place}]", f"is of a tool's call: {NO_PLACE}")
    if not tools:
        if isinstance(choice, NamedTool) or choice == "required":
            raise InvalidField("tool_choice", "needs tools")
        return AskedTools()
    functions = [Function(tool.function.name, tool.function.parameters) for tool in tools]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise InvalidField("tools", "must have different names")
    if choice == "none":
        return AskedTools()
    if not rules.tools:
        raise InvalidField("tools", f"cannot be used: {NO_PLACE}")
    if body.logprobs:
        raise InvalidField("logprobs", "cannot be asked for with tools")
    template = _spelled([_shown(tool) for tool in tools])
    if choice == "auto":
        if not rules.marks_calls:
            rule = "auto needs a chat template with <tool_call> marks; ask for required or one function here"
            raise InvalidField("tool_choice", rule)
        return AskedTools(template, form=Form.MARKED)
    if body.response_format is not None and body.response_format.type != "text":
        raise InvalidField("response_format", "cannot be asked for where a tool must be called")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            raise InvalidField("tool_choice.function.name", "must be one of tools")
        schema = json.dumps(functions[names.index(name)].parameters)
        return AskedTools(template, schema, Form.ARGUMENTS, name)
    most = 1 if body.parallel_tool_calls is False else CALLS_MAX
    return AskedTools(template, schema_of(functions, most=most), Form.LISTED)


def turn(place: int, message: ChatMessage, role: Role) -> Message:
    """A message as a domain value. Raises InvalidField."""
    field = f"messages[{place}]"
    text = message.content
    if text is None:
        if not message.tool_calls:
            raise InvalidField(f"{field}.content", "must be there")
        text = ""
    if not isinstance(text, str):
        text = "\n".join(part.text for part in text)
    if message.tool_calls and role is not Role.ASSISTANT:
        raise InvalidField(f"{field}.tool_calls", "are for a message of the assistant's")
    if (message.tool_call_id is None) == (role is Role.TOOL):
        rule = "is needed in a message of a tool's" if role is Role.TOOL else "is for a message of a tool's"
        raise InvalidField(f"{field}.tool_call_id", rule)
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
        for number, call in enumerate(message.tool_calls or [])
        for arguments in [
            _arguments(f"{field}.tool_calls[{number}].function.arguments", call.function.arguments)
        ]
    ]
    return Message(role, text, _spelled(calls) if calls else "")


def calls_body(calls: Sequence[Call], *, streamed: bool) -> list[dict[str, Any]]:
    """streamed: with the number of each call, as chunks have them."""
    return [
        ({"index": number} if streamed else {})
        | {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
    ]


def _shown(tool: Tool) -> dict[str, Any]:
    function = tool.function
    described = {"description": function.description} if function.description else {}
    return {
        "type": "function",
        "function": {"name": function.name, **described, "parameters": function.parameters},
    }


def _spelled(value: object) -> str:
    """As JSON in the letters that the prompt will have. Escapes would hide control tokens from the checks."""
    return json.dumps(value, ensure_ascii=False)


def _arguments(field: str, text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
        # Half of a surrogate pair is no text. The call around it is as deep as this.
        _spelled([{"function": {"arguments": arguments}}]).encode()
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidField(field, "must be JSON of an object")
    return arguments
