"""Step 4 of a request: messages and passages become token ids that fit the model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memserve.config import Settings
from memserve.domain import GenerationRequest, Message, ScoredMemory
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN
from memserve.errors import InvalidField
from memserve.gateway.layout import PromptLayout
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import ModelFiles
from memserve.policy.recall.prompt import Arranged, without_worst
from memserve.turns import FairThreads

# A prompt of no more characters is encoded on the loop's thread: it takes less time than to wake another one.
SHORT_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits."""

    passages: tuple[ScoredMemory, ...]
    """Those that fit, in the prompt's order."""
    token_ids: list[int]
    """[prompt_tokens]"""
    max_tokens: int
    """Of the answer that may follow."""
    system_folded: bool = False
    merged_turns: int = 0
    """Both as of `Arranged`."""
    passage_tokens: int = 0
    """About, of the passages alone."""
    pinned_tokens: int = 0
    """Of those that are pinned."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a prompt must fit into."""

    context_tokens: int
    wanted_tokens: int
    """Of the answer; 0 for as many as there is room for, `default_tokens` at most."""
    default_tokens: int
    prefix_tokens: int = 0
    """Positions of a cartridge, which stand before the prompt."""

    @property
    def prompt_tokens(self) -> int:
        return self.context_tokens - self.prefix_tokens - max(self.wanted_tokens, 1)


class PromptFitting:
    """Fits long prompts on the tokenizer's threads, where tenants take turns."""

    def __init__(
        self, model: ModelFiles, layout: PromptLayout, tokenizing: FairThreads, settings: Settings
    ) -> None:
        self.context_tokens = model.max_context_tokens
        self._layout = layout
        self._tokenizing = tokenizing
        self._settings = settings

    async def __call__(
        self,
        request: GenerationRequest,
        passages: Sequence[ScoredMemory],
        tenant: str,
        prefix_tokens: int = 0,
    ) -> Prompt:
        """prefix_tokens: positions of a cartridge before the prompt. Raises as `fit_prompt`."""
        prompt = await self._fit(request, passages, tenant, prefix_tokens)
        if not prefix_tokens:
            return prompt
        return replace(prompt, token_ids=[PLACEHOLDER_TOKEN] * prefix_tokens + prompt.token_ids)

    async def _fit(
        self,
        request: GenerationRequest,
        passages: Sequence[ScoredMemory],
        tenant: str,
        prefix_tokens: int,
    ) -> Prompt:
        """Without the placeholders."""
        wanted, default = request.sampling.max_tokens, self._settings.default_max_tokens
        room = Room(self.context_tokens, wanted, default, prefix_tokens)
        fit = partial(
            fit_prompt,
            self._layout,
            request.messages,
            passages,
            room,
            raw=request.raw,
            tools=request.tools,
        )
        if not passages and sum(len(message.content) for message in request.messages) <= SHORT_CHARS:
            return fit()
        return await self._tokenizing.run(tenant, fit)

    async def encode(self, messages: Sequence[Message], tenant: str) -> list[int]:
        """[tokens] of the messages alone, however many. Raises InvalidField for the template's refusal."""
        arranged = self._layout.arrange(messages)
        return await self._tokenizing.run(tenant, partial(self._layout.encode, arranged))


def prompt_max_bytes(tokenizer: ChatTokenizer, context_tokens: int) -> int:
    """No text of more UTF-8 bytes fits into the context, so none needs to be encoded to know."""
    return context_tokens * tokenizer.token_max_bytes


def check_bytes(field: str, messages: Sequence[Message], max_bytes: int) -> None:
    """Raises InvalidField for messages that cannot fit, before anything is done with them."""
    size = sum(len(message.content.encode()) + len(message.tool_calls.encode()) for message in messages)
    if size > max_bytes:
        raise InvalidField(
            field, f"hold {size} bytes together; no more than {max_bytes} can fit into the model's context"
        )


def fit_prompt(
    layout: PromptLayout,
    messages: Sequence[Message],
    passages: Sequence[ScoredMemory],
    room: Room,
    *,
    raw: bool = False,
    tools: str = "",
) -> Prompt:
    """The prompt with as many passages as fit. The worst passages go first.

    raw: the only message is a text that the model goes on with. The passages stand before it.
    tools: as of GenerationRequest. Behind a cartridge, the prompt is as `PromptLayout.encode` has it there;
    the placeholders are not in it.

    Blocks for as long as the tokenizer works. Each passage is encoded once by itself, to know its size. The
    prompt is encoded once where all passages fit, else as a rule once more, and four times at most, however
    many passages must go.

    Raises InvalidField when it does not fit without any, or the model's template refuses the messages.
    """
    # What cannot fit by its bytes is not encoded to find out.
    most_bytes = prompt_max_bytes(layout.tokenizer, room.context_tokens)
    arrange = partial(layout.arrange, messages, raw=raw, tools=tools)
    whole = arrange(passages)
    over_bytes = sum(len(message.content.encode()) for message in whole.messages) - most_bytes
    kept = without_worst(passages, [len(hit.memory.text.encode()) for hit in passages], over_bytes)
    sizes = {hit.memory.name: size for hit, size in zip(kept, layout.passage_tokens(kept), strict=True)}
    encode = partial(layout.encode, raw=raw, behind=room.prefix_tokens > 0)
    tried = _tried(encode, arrange, kept)
    # A number that has changed may take a token more or less, and so may the place where two lines meet.
    for slack in (0, 2 * len(kept)):
        surplus = len(tried.token_ids) - room.prompt_tokens
        if surplus <= 0 or not tried.passages:
            break
        tried_sizes = [sizes[hit.memory.name] for hit in tried.passages]
        tried = _tried(encode, arrange, without_worst(tried.passages, tried_sizes, surplus + slack))
    if len(tried.token_ids) > room.prompt_tokens and tried.passages:
        tried = _tried(encode, arrange, [])
    left = _room_left(len(tried.token_ids), room)
    return Prompt(
        tuple(tried.passages),
        tried.token_ids,
        room.wanted_tokens or min(room.default_tokens, left),
        tried.arranged.system_folded,
        tried.arranged.merged_turns,
        sum(sizes[hit.memory.name] for hit in tried.passages),
        sum(sizes[hit.memory.name] for hit in tried.passages if hit.memory.pinned),
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    """A prompt that may still be too long."""

    passages: list[ScoredMemory]
    arranged: Arranged
    token_ids: list[int]


def _tried(
    encode: Callable[[Arranged], list[int]],
    arrange: Callable[[list[ScoredMemory]], Arranged],
    passages: list[ScoredMemory],
) -> _Tried:
    """The prompt with these passages, or without any where it is refused with them.

    Raises InvalidField for a prompt that is refused without passages too.
    """
    arranged = arrange(passages)
    try:
        return _Tried(passages, arranged, encode(arranged))
    except InvalidField:
        if not passages:
            raise
    return _tried(encode, arrange, [])


def _room_left(prompt_tokens: int, room: Room) -> int:
    """Tokens of an answer that fit behind the prompt. Raises InvalidField when they are too few."""
    prompt_tokens += room.prefix_tokens
    left = room.context_tokens - prompt_tokens
    if left < 1:
        rule = (
            f"make a prompt of {prompt_tokens} tokens; the model takes {room.context_tokens} with the answer"
        )
        raise InvalidField("messages", rule)
    if left < room.wanted_tokens:
        rule = (
            f"{room.wanted_tokens} after a prompt of {prompt_tokens} tokens is over the model's "
            f"{room.context_tokens}"
        )
        raise InvalidField("sampling.max_tokens", f"{rule}; at most {left} are left")
    return left
