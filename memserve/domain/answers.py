"""A request for an answer, and what comes back: text, receipt and usage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memserve.domain.memories import RecallOutcome, ScoredMemory
from memserve.domain.modules import ModuleUse, UsedModule
from memserve.domain.open_enum import OpenEnum
from memserve.domain.prefixes import CachedTokens


class Role(StrEnum):
    """Who speaks in a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(OpenEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    """Whether the log-probability of each chosen token is wanted."""
    min_tokens: int = 0
    """Before this many tokens the answer does not end by itself."""


@dataclass(frozen=True, slots=True)
class Slo:
    """How fast the caller wants the answer. None: no wish."""

    ttft_ms: float | None = None
    """Time to the first token."""
    tpot_ms: float | None = None
    """Time for each further token."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked request for one answer."""

    messages: tuple[Message, ...]
    sampling: Sampling
    model: str = ""
    """Empty: the served model."""
    modules: tuple[ModuleUse, ...] = ()
    """What to answer with, on top of the base model."""
    namespaces: tuple[str, ...] = ()
    recall_limit: int = 0
    recall_timeout_s: float = 0.0
    slo: Slo = Slo()
    worker_id: str = ""
    """The worker that has to answer. Empty: any."""
    session: str = ""
    """The same session gets the same version of an alias. Empty: none."""


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
    lost_memories: int = 0
    """Memories of the recalled namespaces that were acknowledged and that the vector store has lost."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """One for each token when the request wants them, else empty."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    output_tokens: int
    cached: CachedTokens
    ttft_ms: float
    tpot_ms: float | None
    """The mean over the tokens after the first. None for an answer of one token."""
    slo_met: bool
    finish_reason: FinishReason
