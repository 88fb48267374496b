"""The bodies of replies, for the OpenAPI document.

`convert.py` and `stream.py` write replies without these models, which would take time for every token. Tests
hold replies to them in both directions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from memserve.domain import CachedTokens, Route, RungCost, UsedModule, Via


class ReplyBody(BaseModel):
    """A newer memserve may send more fields."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")


class Passage(ReplyBody):
    """A recalled memory that was put into the prompt."""

    memory_id: str
    namespace: str
    text: str
    source: str
    version: int
    score: float
    """Fused from both halves of the search and weighted by strength."""
    relevance: float
    """The calibrated probability that it answers the question."""
    strength: float
    """By its writer, age, use and outcomes."""
    dense_score: float | None
    bm25_score: float | None
    rerank_score: float | None
    via: Via | None
    """How it was found where not by its content: from which hit, by which link, in how many steps."""


class ReceiptEnd(ReplyBody):
    """Where the answer came from, and with which memories."""

    cached_tokens: CachedTokens
    """Prompt tokens that were not computed again, by the memory that had them."""
    ttft_ms: float
    """From the request to the first token."""
    tpot_ms: float | None
    """The mean of the tokens after the first. null for an answer of one token."""
    slo_met: bool
    stored_tokens: int
    """Prompt tokens whose KV the worker has computed and keeps from now on: full blocks."""
    rungs: tuple[RungCost, ...]
    """What took part in the answer."""


def _fields_of(values: type[Any], **instead: Any) -> dict[str, Any]:
    """A model's fields, as a domain value has them. instead: other types, by field."""
    kinds = get_type_hints(values)
    names = [field.name for field in dataclasses.fields(values)]
    return {name: (instead.get(name, kinds[name]), Field()) for name in names}


Module = create_model("Module", __base__=ReplyBody, **_fields_of(UsedModule, kind=str))
Receipt = create_model(
    "Receipt",
    __base__=ReceiptEnd,
    **_fields_of(Route, passages=tuple[Passage, ...], modules=tuple[Module, ...]),  # type: ignore[valid-type]
)


class PromptTokenDetails(ReplyBody):
    cached_tokens: int


class UsageBody(ReplyBody):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokenDetails | None = None
    """In the usage of a whole answer."""


class TokenLogprob(ReplyBody):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class ChatLogprobs(ReplyBody):
    content: list[TokenLogprob]
    refusal: None = None


class ReplyFunction(ReplyBody):
    name: str
    arguments: str


class ReplyToolCall(ReplyBody):
    id: str
    type: Literal["function"]
    function: ReplyFunction


class ChunkToolCall(ReplyToolCall):
    index: int


class ReplyMessage(ReplyBody):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[ReplyToolCall] | None = None


class ChatChoice(ReplyBody):
    index: int
    message: ReplyMessage
    finish_reason: str
    logprobs: ChatLogprobs | None


class ChatReply(ReplyBody):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    memserve: Receipt  # type: ignore[valid-type]


class Delta(ReplyBody):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChatChunkChoice(ReplyBody):
    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: ChatLogprobs | None


class ChatChunk(ReplyBody):
    """The data of one server-sent event. `[DONE]` ends the stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None
    memserve: Receipt | None = None  # type: ignore[valid-type]
    """In the chunk that has finish_reason."""


class TextLogprobs(ReplyBody):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class TextChoice(ReplyBody):
    index: int
    text: str
    finish_reason: str | None
    logprobs: TextLogprobs | None


class CompletionReply(ReplyBody):
    """An answer, or a part of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody | None = None
    memserve: Receipt | None = None  # type: ignore[valid-type]


class Embedding(ReplyBody):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """A string: 32-bit floats, little endian, in base64."""


class EmbeddingUsage(ReplyBody):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(ReplyBody):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Model(ReplyBody):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = None
    """Of a module: the base model."""


class ModelsReply(ReplyBody):
    object: Literal["list"]
    data: list[Model]


class HealthReply(ReplyBody):
    status: Literal["alive", "starting", "draining"]


class ReadyReply(ReplyBody):
    ready_workers: int


class VersionReply(ReplyBody):
    version: str


class ErrorDetail(ReplyBody):
    message: str
    """The rule, for a person."""
    type: str
    param: str | None
    """The field that breaks a rule, as the body names it."""
    code: str | None
    """For a program: why it is refused now, or which name is not known."""


class ErrorReply(ReplyBody):
    error: ErrorDetail
