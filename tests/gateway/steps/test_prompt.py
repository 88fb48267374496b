"""A prompt that cannot fit is refused by its bytes, and one that may is encoded a few times at most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from memserve.domain import Memory, Message, Role, ScoredMemory
from memserve.errors import InvalidField
from memserve.gateway.layout import PromptLayout, open_layout
from memserve.gateway.steps.prompt import Room, check_bytes, fit_prompt, prompt_max_bytes
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import open_model

QUESTION = [Message(Role.USER, "What is the code of Alder?")]


class CountingTokenizer(ChatTokenizer):
    encoded: int = 0
    encoded_bytes: int = 0

    def encode(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        self.encoded += 1
        self.encoded_bytes += sum(len(message.content.encode()) for message in messages)
        return super().encode(messages, tools)


@pytest.fixture
def tokenizer(model_dir: Path) -> CountingTokenizer:
    return CountingTokenizer(open_model(model_dir))


@pytest.fixture
def layout(model_dir: Path, tokenizer: CountingTokenizer) -> PromptLayout:
    return open_layout(open_model(model_dir), tokenizer)


def passage(number: int, words: int = 20, score: float = 1.0) -> ScoredMemory:
    text = " ".join(f"The code of tower {number} at gate {word} is {word * 7}." for word in range(words))
    return ScoredMemory(Memory(f"m{number:02}", "notes", text, "", (), float(number)), score, None, None)


def room(context_tokens: int, wanted_tokens: int = 16) -> Room:
    return Room(context_tokens, wanted_tokens, 128)


def test_what_fits_is_encoded_once(layout: PromptLayout, tokenizer: CountingTokenizer) -> None:
    prompt = fit_prompt(layout, QUESTION, [passage(1), passage(2)], room(8192))
    assert (len(prompt.passages), tokenizer.encoded, prompt.max_tokens) == (2, 1, 16)


@pytest.mark.parametrize("count", [2, 8, 64])
@pytest.mark.parametrize("context_tokens", [64, 512, 1500, 4096])
def test_however_many_passages_are_dropped_the_prompt_is_encoded_four_times_at_most(
    layout: PromptLayout, tokenizer: CountingTokenizer, count: int, context_tokens: int
) -> None:
    passages = [
        passage(number, words=1 + number % 30, score=1 / (1 + number * 7 % 11)) for number in range(count)
    ]
    prompt = fit_prompt(layout, QUESTION, passages, room(context_tokens))
    assert tokenizer.encoded <= 4
    assert len(prompt.token_ids) + 16 <= context_tokens
    assert prompt.token_ids == layout.encode(layout.arrange(QUESTION, prompt.passages)), (
        "as the template makes them"
    )


@pytest.mark.parametrize("context_tokens", range(300, 1500, 97))
def test_the_best_passages_stay_and_one_more_would_be_too_long(
    layout: PromptLayout, context_tokens: int
) -> None:
    passages = [
        passage(number, words=3 + number % 4, score=(number * 7 % 10 + 1) / 10) for number in range(10)
    ]
    kept = fit_prompt(layout, QUESTION, passages, room(context_tokens)).passages
    dropped = [hit for hit in passages if hit not in kept]
    assert not kept or not dropped or max(hit.score for hit in dropped) < min(hit.score for hit in kept)
    assert list(kept) == [hit for hit in passages if hit in kept], "the order stays"
    if dropped:
        best = max(dropped, key=lambda hit: hit.score)
        more = [hit for hit in passages if hit in kept or hit is best]
        assert len(layout.encode(layout.arrange(QUESTION, more))) + 16 > context_tokens - 2 * len(more)


def test_passages_that_cannot_fit_by_their_bytes_are_never_encoded(
    layout: PromptLayout, tokenizer: CountingTokenizer
) -> None:
    passages = [passage(number, words=200, score=number) for number in range(64)]
    assert fit_prompt(layout, QUESTION, passages, room(128)).passages == ()
    assert tokenizer.encoded_bytes <= 4 * prompt_max_bytes(tokenizer, 128)


def test_without_any_passage_too_long_is_refused_by_its_tokens(
    layout: PromptLayout, tokenizer: CountingTokenizer
) -> None:
    long = [Message(Role.USER, "a b c " * 40)]
    with pytest.raises(InvalidField, match=r"messages: make a prompt of .* tokens; the model takes 64"):
        fit_prompt(layout, long, [passage(1)], room(64, 0))
    with pytest.raises(
        InvalidField, match=r"sampling.max_tokens: 60 after a prompt of .* is over the model's 64"
    ):
        fit_prompt(layout, QUESTION, [passage(1)], room(64, 60))
    assert tokenizer.encoded <= 4


def test_no_text_of_more_bytes_than_the_bound_fits(tokenizer: CountingTokenizer) -> None:
    longest = max(
        (token for token in tokenizer._tokenizer.get_vocab() if not token.startswith("<|")), key=len
    )
    word = tokenizer._tokenizer.decode([tokenizer._tokenizer.token_to_id(longest)])
    text = word * (prompt_max_bytes(tokenizer, 256) // len(word.encode()) + 1)
    assert len(tokenizer.encode([Message(Role.USER, text)])) > 256
    with pytest.raises(InvalidField, match=r"^messages: hold \d+ bytes together; no more than \d+ can fit"):
        check_bytes("messages", [Message(Role.USER, text)], prompt_max_bytes(tokenizer, 256))


def test_encoding_lets_other_threads_run(tokenizer: CountingTokenizer) -> None:
    """`Tokenizer.encode` of the library does not, and would stop the event loop."""
    called: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> object:
            called.append(name)
            return getattr(real, name)

    real, tokenizer._tokenizer = tokenizer._tokenizer, Spy()  # type: ignore[assignment]
    tokenizer.encode(QUESTION)
    assert called == ["encode_batch_fast"]
