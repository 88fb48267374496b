"""Step 4 of a request: messages and passages become token ids that fit the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from memserve.config import Settings
from memserve.domain import GenerationRequest, Message, ScoredMemory
from memserve.errors import InvalidField
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import ModelFiles
from memserve.policy.recall.prompt import assemble_messages, passage_line, without_worst
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


@dataclass(frozen=True, slots=True)
class Room:
    """What a prompt must fit into."""

    context_tokens: int
    wanted_tokens: int
    """Of the answer; 0 for as many as there is room for, `default_tokens` at most."""
    default_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return self.context_tokens - max(self.wanted_tokens, 1)


class PromptFitting:
    """Fits long prompts on the tokenizer's threads, where tenants take turns."""

    def __init__(
        self, model: ModelFiles, tokenizer: ChatTokenizer, tokenizing: FairThreads, settings: Settings
    ) -> None:
        self.context_tokens = model.max_context_tokens
        self._tokenizer = tokenizer
        self._tokenizing = tokenizing
        self._settings = settings

    async def __call__(
        self, request: GenerationRequest, passages: Sequence[ScoredMemory], tenant: str
    ) -> Prompt:
        """Raises as `fit_prompt`."""
        room = Room(self.context_tokens, request.sampling.max_tokens, self._settings.default_max_tokens)
        instruction = self._settings.recall_instruction
        fit = partial(fit_prompt, self._tokenizer, request.messages, passages, room, instruction)
        if not passages and sum(len(message.content) for message in request.messages) <= SHORT_CHARS:
            return fit(raw=request.raw)
        return await self._tokenizing.run(tenant, partial(fit, raw=request.raw))

    async def encode(self, messages: Sequence[Message], tenant: str) -> list[int]:
        """[tokens] of the messages alone, however many. Raises InvalidField for the template's refusal."""
        return await self._tokenizing.run(
            tenant, partial(self._tokenizer.encode, assemble_messages(messages, []))
        )


def prompt_max_bytes(tokenizer: ChatTokenizer, context_tokens: int) -> int:
    """No text of more UTF-8 bytes fits into the context, so none needs to be encoded to know."""
    return context_tokens * tokenizer.token_max_bytes


def check_bytes(field: str, messages: Sequence[Message], max_bytes: int) -> None:
    """Raises InvalidField for messages that cannot fit, before anything is done with them."""
    size = sum(len(message.content.encode()) for message in messages)
    if size > max_bytes:
        raise InvalidField(
            field, f"hold {size} bytes together; no more than {max_bytes} can fit into the model's context"
        )


def fit_prompt(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    passages: Sequence[ScoredMemory],
    room: Room,
    instruction: str = "",
    *,
    raw: bool = False,
) -> Prompt:
    """The prompt with as many passages as fit, behind the instruction. The worst passages go first.

    raw: the only message is a text that the model goes on with. The passages stand before it.

    Blocks for as long as the tokenizer works. The prompt is encoded once where all passages fit, else as a
    rule once more, and four times at most, however many passages must go.

    Raises InvalidField when it does not fit without any, or the model's template refuses the messages.
    """
    takes_system = tokenizer.takes_system and not raw
    assembled = partial(assemble_messages, messages, takes_system=takes_system, instruction=instruction)

    def encode(passages: Sequence[ScoredMemory]) -> list[int]:
        asked = assembled(passages)
        return tokenizer.encode_raw(asked[0].content) if raw else tokenizer.encode(asked)

    # What cannot fit by its bytes is not encoded to find out.
    most_bytes = prompt_max_bytes(tokenizer, room.context_tokens)
    over_bytes = sum(len(message.content.encode()) for message in assembled(passages)) - most_bytes
    kept = without_worst(passages, [len(hit.memory.text.encode()) for hit in passages], over_bytes)
    token_ids = encode(kept)
    # A number that has changed may take a token more or less, and so may the place where two lines meet.
    for slack in (0, 2 * len(kept)):
        surplus = len(token_ids) - room.prompt_tokens
        if surplus <= 0 or not kept:
            break
        sizes = tokenizer.lengths(
            [passage_line(number, hit) + "\n" for number, hit in enumerate(kept, start=1)]
        )
        kept = without_worst(kept, sizes, surplus + slack)
        token_ids = encode(kept)
    if len(token_ids) > room.prompt_tokens and kept:
        kept = []
        token_ids = encode(kept)
    left = room.context_tokens - len(token_ids)
    if left < 1:
        rule = (
            f"make a prompt of {len(token_ids)} tokens; the model takes {room.context_tokens} with the answer"
        )
        raise InvalidField("messages", rule)
    if left < room.wanted_tokens:
        rule = (
            f"{room.wanted_tokens} after a prompt of {len(token_ids)} tokens is over the model's "
            f"{room.context_tokens}"
        )
        raise InvalidField("sampling.max_tokens", f"{rule}; at most {left} are left")
    return Prompt(tuple(kept), token_ids, room.wanted_tokens or min(room.default_tokens, left))
