"""The bodies of requests, as OpenAI's API has them, and memserve's own object in them.

A field that is not here is refused by its name. What OpenAI's clients send by default and what changes
nothing (`n` of 1, penalties of 0) is taken.
Source of the names: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from memserve.api.rules import MAX_TOKENS_MAX, MESSAGES_MAX, MODULES_MAX, NAMESPACES_MAX, RECALL_MAX, STOP_MAX
from memserve.errors import InvalidField
from memserve.memory.texts.rules import LINK_DEPTH_MAX, NEIGHBOURS_MAX
from memserve.policy.recall.metadata import KEYS_MAX

INPUTS_MAX = 64
METADATA_MAX = 16
TOOLS_MAX = 64
SMALL_MAX = 512
SMALL = Annotated[str, Field(max_length=SMALL_MAX)]
MemoryKindName = Literal["fact", "episode", "reflection", "procedure", "passage"]
LinkKindName = Literal[
    "supersedes", "caused_by", "part_of", "next", "duplicates", "contradicts", "derived_from"
]
KINDS_MAX = 16
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS_MAX)]


STRUCTURE_MAX_BYTES = 128 << 10
# A string that does not end goes to the end, so that no byte is looked at twice.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
NAMED = "named"
"""The type of an error whose context has the name of the field and the rule."""


def check_structure(body: bytes) -> None:
    """Refuse millions of values: they take seconds to read, and the gateway does nothing else meanwhile.

    Raises InvalidField.
    """
    if len(body) <= STRUCTURE_MAX_BYTES:
        return
    beside_strings = STRING.sub(b"", body, count=STRUCTURE_MAX_BYTES).translate(None, b" \t\r\n")
    if len(beside_strings) > STRUCTURE_MAX_BYTES:
        raise InvalidField("body", f"at most {STRUCTURE_MAX_BYTES} bytes beside its strings and blanks")


class Body(BaseModel):
    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={"additionalProperties": False},
    )

    @model_validator(mode="after")
    def _knows_every_field(self) -> Self:
        """`extra="forbid"` makes an error of each of a million unknown fields, which takes ten seconds."""
        for name in self.model_extra or ():
            raise PydanticCustomError(NAMED, "{name} {rule}", {"name": name, "rule": "is not supported here"})
        return self


def _short_texts(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not isinstance(value, str) or max(len(name), len(value)) > SMALL_MAX:
            rule = f"must be a valid string of at most {SMALL_MAX} characters"
            raise PydanticCustomError(NAMED, "{name} {rule}", {"name": name, "rule": rule})
    return values


Metadata = Annotated[
    dict[str, Any],
    Field(max_length=METADATA_MAX),
    AfterValidator(_short_texts),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": METADATA_MAX,
            "propertyNames": {"maxLength": SMALL_MAX},
            "additionalProperties": {"type": "string", "maxLength": SMALL_MAX},
        }
    ),
]
"""Checked after it was counted: pydantic makes an error of each value before it counts them."""


class TextPart(Body):
    type: Literal["text"]
    text: str


TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=1000, fail_fast=True)]


class CalledFunction(Body):
    name: FunctionName
    arguments: str
    """JSON of an object."""


class ToolCallBody(Body):
    id: SMALL
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1000, fail_fast=True)] | None = (
        None
    )
    name: None = None
    tool_calls: Annotated[list[ToolCallBody], Field(max_length=TOOLS_MAX, fail_fast=True)] | None = None
    """Of an assistant's turn."""
    tool_call_id: SMALL | None = None
    """Of a tool's turn: which call this is the result of."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class FunctionBody(Body):
    name: FunctionName
    description: Annotated[str, Field(max_length=4096)] | None = None
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    """JSON Schema of an object."""
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionBody


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: Annotated[str, Field(max_length=64)] = ""
    description: SMALL | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """In every chunk, as vLLM's server has it."""
    include_obfuscation: Literal[False] | None = None


class SloBody(Body):
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    refuse_late: bool = False
    skip_recall: bool = False


class ModuleBody(Body):
    reference: str
    strength: float = 1.0


class RecallBody(Body):
    """How memories are found, beside where: `namespaces` says that."""

    kinds: Annotated[list[MemoryKindName], Field(max_length=KINDS_MAX, fail_fast=True)] = []
    """Only memories of these kinds. Empty: all."""
    filter: str = ""
    """An expression over the memories' fields, such as `metadata.city == "Oslo"`."""
    min_relevance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Least calibrated probability that a passage answers."""
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0: by score alone. 1: as different from each other as they can be."""
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS_MAX)] = 0
    """Of all passages' texts. 0: no bound."""
    context: Annotated[dict[str, Any], Field(max_length=KEYS_MAX)] = {}
    """What the memories' conditions are judged by: texts, numbers, truths and lists of texts."""
    neighbours: Annotated[int, Field(ge=0, le=NEIGHBOURS_MAX)] = 0
    """Memories before and after each hit in its document or session."""
    link_depth: Annotated[int, Field(ge=0, le=LINK_DEPTH_MAX)] = 0
    """Steps along links from each hit."""
    link_kinds: Annotated[list[LinkKindName], Field(max_length=KINDS_MAX, fail_fast=True)] = []
    """Only links of these kinds. Empty: all."""
    as_of_s: float | None = None
    """Judge validity at this time, in seconds since the epoch. null: now."""
    rerank: bool = False
    """Have the cross-encoder order the best hits, where the gateway has one."""
    choose_module: bool = False
    """Where the request names no module: answer with the one whose knowledge fits, if one does."""
    skip_pinned: bool = False
    """Leave out the passages that the namespaces have pinned."""


class MemserveBody(Body):
    """What only memserve has."""

    namespaces: Annotated[list[str], Field(max_length=NAMESPACES_MAX, fail_fast=True)] = []
    """To recall memories from."""
    recall_limit: Annotated[int, Field(ge=0, le=RECALL_MAX)] = 0
    recall_timeout_ms: Annotated[int, Field(ge=0)] = 0
    recall: RecallBody = RecallBody()
    module: str = ""
    """A LoRA: name, name@alias or name@number. As `model` with a colon."""
    modules: Annotated[list[ModuleBody], Field(max_length=MODULES_MAX, fail_fast=True)] = []
    """Of any kind."""
    session: str = ""
    slo: SloBody = SloBody()
    priority: Literal["high", "normal", "low"] | None = None
    do_not_queue: bool = False
    keep_prompt: bool = False
    """Keep the exact prompt and the answer's tokens for a while, for `memserve explain`."""
    worker_id: str = ""


class Answering(Body):
    """What chat and completions have in common."""

    model: SMALL
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS_MAX)] | None = None
    """As vLLM's server has it."""
    ignore_eos: bool | None = None
    """As vLLM's server has it. Needs a number of tokens."""
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Annotated[list[str], Field(max_length=STOP_MAX, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: SMALL | None = None
    """Requests of one user get the same version of a module's alias, as those of one session."""
    memserve: MemserveBody = MemserveBody()
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None


class ChatBody(Answering):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES_MAX, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None
    metadata: Metadata | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS_MAX, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Not said: auto where there are tools."""
    parallel_tool_calls: bool | None = None
    """False: at most one call."""


class CompletionBody(Answering):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1, fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    """0: of the chosen tokens."""
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


class EmbeddingBody(Body):
    model: SMALL
    input: str | Annotated[list[str], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: SMALL | None = None
