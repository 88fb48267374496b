"""What is kept of an answer, so that it can be traced to what it used."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memserve.domain.answers import Explanation, Message
from memserve.domain.modules import ModuleKind
from memserve.domain.prefixes import CachedTokens
from memserve.domain.recalled import RecallOutcome, Skipped


@dataclass(frozen=True, slots=True)
class KeptPassage:
    """A passage that was in the prompt."""

    namespace: str
    memory_id: str
    version: int
    score: float
    relevance: float
    why: str
    """How it was found. One line for a person."""


@dataclass(frozen=True, slots=True)
class KeptModule:
    """A module version that answered, and what it was made from."""

    name: str
    version: int
    digest: str
    kind: ModuleKind
    strength: float
    """1 for a kind that has none."""
    sources: tuple[str, ...] = ()
    """What its publisher says that it was made from."""
    parents: tuple[str, ...] = ()
    """Digests of the versions that it was composed from."""


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """The exact prompt of an answer, and the answer's tokens."""

    text: str
    """With the model's control tokens."""
    token_ids: tuple[int, ...]
    """[prompt_tokens]"""
    answer_ids: tuple[int, ...]
    """[output_tokens], the one that ends the answer too."""
    messages: tuple[Message, ...]
    """The conversation, before passages were put into it."""
    passages: tuple[str, ...]
    """The texts of the passages, in the prompt's order."""
    tools: str = ""
    raw: bool = False
    """Both as of GenerationRequest."""


@dataclass(frozen=True, slots=True)
class PassageWeight:
    """How much likelier an answer is with a passage than without it."""

    namespace: str
    memory_id: str
    version: int
    nats: float
    """ln p(answer | all passages) - ln p(answer | all but this one). Below 0: it spoke against the answer."""
    nats_per_token: float


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """An answer's likelihood, with each of its passages left out in turn.

    By the model with its LoRA; a logit expert's shift is not in it.
    """

    passages: tuple[PassageWeight, ...]
    """In the prompt's order. At most 16, those of the best scores."""
    logprob: float
    """ln p(answer | all passages), over the tokens that were scored."""
    scored_tokens: int
    """Of the answer, from its beginning."""
    at_s: float
    """When it was measured, in seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What an answer used, and what became of it."""

    request_id: str
    at_s: float
    """When its request was accepted, in seconds since the epoch."""
    model: str
    worker_id: str
    namespaces: tuple[str, ...]
    """That were recalled from."""
    recall_outcome: RecallOutcome
    passages: tuple[KeptPassage, ...]
    """In the prompt's order."""
    skipped: tuple[Skipped, ...]
    modules: tuple[KeptModule, ...]
    prompt_tokens: int
    output_tokens: int
    cached: CachedTokens
    """Prompt tokens that were not computed again."""
    outcome: str
    """One line for a person."""
    prompt: KeptPrompt | None = None
    prompt_absent: str = ""
    """Why no prompt is kept. One line for a person."""
    leave_one_out: LeaveOneOut | None = None
    """None: nobody has asked for it."""

    @property
    def cached_share(self) -> float:
        """Of the prompt's tokens, 0 to 1."""
        return self.cached.total / self.prompt_tokens if self.prompt_tokens else 0.0

    def without_prompt(self, why: str) -> KeptAnswer:
        return replace(self, prompt=None, prompt_absent=why)


@dataclass(frozen=True, slots=True)
class AnswerExplanation:
    """All that is known of an answer."""

    routing: Explanation | None
    """Why it went where it went. None: no gateway knows it any more."""
    answer: KeptAnswer | None
    """None: it is not kept."""
    answer_absent: str = ""
    """Why it is not kept. One line for a person."""
    leave_one_out_absent: str = ""
    """Why there is none though it was asked for. One line for a person."""
