"""A request for an answer, and what comes back: text, receipt and usage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memserve.domain.memories import RecallOutcome, ScoredMemory
from memserve.domain.modules import ModuleUse, UsedModule
from memserve.domain.prefixes import CachedTokens


class Role(StrEnum):
    """Who speaks in a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `logprobs` asks for each chosen token's
    log-probability.

    Before `min_tokens` the answer does not end by itself.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """What the caller wants: time to first token and time per further token, milliseconds. None: no wish."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked request for one answer. Empty `model`, `worker_id` and `session` mean: the served one, any,
    none.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    model: str = ""
    modules: tuple[ModuleUse, ...] = ()
    namespaces: tuple[str, ...] = ()
    recall_limit: int = 0
    recall_timeout_s: float = 0.0
    slo: Slo = Slo()
    worker_id: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """The head of an answer's receipt: where the request went, why, and with which memories."""

    request_id: str
    model: str
    worker_id: str
    reason: str
    predicted_ttft_ms: float
    prompt_tokens: int
    expected_cached_tokens: int
    modules: tuple[UsedModule, ...]
    recall_outcome: RecallOutcome
    passages: tuple[ScoredMemory, ...]
    # Memories of the recalled namespaces that were acknowledged and that the vector store has lost.
    lost_memories: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer. `logprobs` has one entry a token when asked for, else none."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took. `tpot_ms`: the mean over the tokens after the first, None for an answer of one
    token.
    """

    prompt_tokens: int
    output_tokens: int
    cached: CachedTokens
    ttft_ms: float
    tpot_ms: float | None
    slo_met: bool
    finish_reason: FinishReason
