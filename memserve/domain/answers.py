"""A request for an answer, and what comes back: text, receipt and usage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memserve.domain.modules import ModuleUse, UsedModule
from memserve.domain.open_enum import OpenEnum
from memserve.domain.prefixes import CachedTokens
from memserve.domain.recalled import (
    ModuleFit,
    OutdatedFact,
    RecallOutcome,
    RecallPart,
    RungCost,
    ScoredMemory,
    SearchQuery,
    Skipped,
)
from memserve.domain.tenants import Priority


class Role(StrEnum):
    """Who speaks in a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """What a function that the assistant called has returned."""


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
    tool_calls: str = ""
    """JSON of the calls that the assistant has made in this turn, as chat templates take them. "": none."""


@dataclass(frozen=True, slots=True)
class TemplateRules:
    """What a model's chat template takes of a conversation."""

    system: bool = True
    """Whether a system message reaches the model."""
    repeats: bool = True
    """Whether two turns of one role may follow each other."""
    tools: bool = False
    """Whether it shows functions that the model may call, and what they returned."""
    marks_calls: bool = False
    """Whether the model writes a call between <tool_call> and </tool_call>."""


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
    json_schema: str = ""
    """The answer is JSON of this schema, which is JSON itself. Empty: any text."""


class RefusalReason(OpenEnum):
    """Why a request is refused now, and may be sent again later."""

    LATE = "late"
    """It would have its first token after the time that it asks for."""
    GAVE_WAY = "gave_way"
    """It waited, and something else would have been late by it."""
    QUEUE_FULL = "queue_full"
    """Too much waits, of all tenants or of this one."""
    WOULD_WAIT = "would_wait"
    """It was not to wait."""
    LEAVING = "leaving"
    """The worker ends."""
    QUOTA = "quota"
    """A limit of the tenant's is reached."""
    DISK_FULL = "disk_full"
    NO_WORKER = "no_worker"
    STARTING = "starting"
    NO_TOKEN_KEYS = "no_token_keys"
    """The keys that tokens are checked with could not be read."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Slo:
    """How fast the caller wants the answer. None: no wish."""

    ttft_ms: float | None = None
    """Time to the first token."""
    tpot_ms: float | None = None
    """Time for each further token."""
    refuse_late: bool = False
    """Refuse the request, at once if it can be known, where `ttft_ms` cannot be met. Else it is answered
    late."""
    skip_recall: bool = False
    """Rather answer without recalled passages than refuse the request."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked request for one answer."""

    messages: tuple[Message, ...]
    sampling: Sampling
    model: str = ""
    """Empty: the served model."""
    tools: str = ""
    """JSON of the functions that the model may call, as chat templates take them; "" for none."""
    modules: tuple[ModuleUse, ...] = ()
    """What to answer with, on top of the base model."""
    namespaces: tuple[str, ...] = ()
    recall_limit: int = 0
    recall_timeout_s: float = 0.0
    search: SearchQuery | None = None
    """How to search the namespaces. Its own namespaces, text and limit say nothing. None: no wishes."""
    choose_module: bool = False
    """Where the request names no module, answer with the one whose knowledge fits, if one does."""
    skip_pinned: bool = False
    """Leave out the passages that the namespaces have pinned."""
    slo: Slo = Slo()
    worker_id: str = ""
    """The worker that has to answer. Empty: any."""
    session: str = ""
    """The same session gets the same version of an alias. Empty: none."""
    priority: Priority = Priority.NORMAL
    do_not_queue: bool = False
    """Refuse the request at once where no engine can begin with it now."""
    keep_prompt: bool = False
    """Keep the prompt and the answer's tokens for a while, for `ExplainAnswer`."""
    raw: bool = False
    """The only message is a text that the model goes on with, without its chat template."""


@dataclass(frozen=True, slots=True)
class RouteCandidate:
    """A worker that could answer, and its predicted time to first token, term by term.

    ttft = max(queue + slot + memory, fetch) + prefill + load + learned.
    """

    worker_id: str
    ttft_ms: float
    queue_ms: float
    """Prompts that go before this one."""
    slot_ms: float
    """For a slot of an adapter."""
    memory_ms: float
    """For room in the KV memory."""
    fetch_ms: float
    """Until what comes from Redis is there."""
    prefill_ms: float
    """The prompt itself."""
    load_ms: float
    """Of the request's modules."""
    learned_ms: float
    """What predictions for this worker were wrong by lately."""
    cached_tokens: int
    """Prompt tokens that are not computed there."""
    queued_tokens: int
    """Tokens of other prompts that it has to compute."""
    running: int
    """Requests under way there."""


@dataclass(frozen=True, slots=True)
class ExcludedWorker:
    """A worker that could not answer, and why."""

    worker_id: str
    reason: str
    """One line for a person."""


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
    candidates: tuple[RouteCandidate, ...] = ()
    """The workers that were looked at, the chosen one too."""
    excluded: tuple[ExcludedWorker, ...] = ()
    predicted_within_ms: float = 0.0
    """Nine of ten first tokens came within so much of their prediction lately."""
    system_folded: bool = False
    """Whether system text, or the passages, stand in a turn of the user: the model's chat template does not
    take them as a system message."""
    merged_turns: int = 0
    """Turns that were joined to the one before, of the same role: the template wants roles to alternate."""
    skipped: tuple[Skipped, ...] = ()
    """Memories that were found and are not used."""
    recall: tuple[RecallPart, ...] = ()
    """What each memory gave, at what cost."""
    module_fits: tuple[ModuleFit, ...] = ()
    """Modules that were looked at for the question."""
    outdated: tuple[OutdatedFact, ...] = ()
    """Facts of the modules that a passage in the prompt corrects."""


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
    stored_tokens: int = 0
    """Prompt tokens whose KV the worker has computed and keeps from now on: full blocks."""
    rungs: tuple[RungCost, ...] = ()
    """What took part in the answer."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request went where it went, and what became of it."""

    route: Route
    """Without its passages."""
    outcome: str
    """One line for a person: answered, under way, or how it failed."""
    usage: Usage | None
    """None until the answer has ended well."""
