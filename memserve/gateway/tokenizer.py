"""Turns messages into token ids with the model's chat template and tokenizer, without transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.domain import Message
from memserve.errors import InvalidField
from memserve.model.chat import open_chat
from memserve.model.files import ModelFiles


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token, and the characters of a text that it stands for."""

    token_id: int
    start: int
    end: int
    """The first one after it. Tokens that are parts of one character have the same place."""


class ChatTokenizer:
    """Renders and encodes as
    `transformers.PreTrainedTokenizerFast.apply_chat_template(add_generation_prompt=True)` does.
    """

    def __init__(
        self, model: ModelFiles, cache: Path | None = None, chat_template: Path | None = None
    ) -> None:
        """cache, chat_template: as of `open_chat`.

        Raises StartupError when the tokenizer or the template is missing or cannot be used.
        """
        self._template, self._tokenizer = open_chat(model, cache, chat_template)
        self.rules = self._template.rules
        """What the template takes of a conversation."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = tuple(sorted(token.content for token in added if token.special))
        """The texts of the model's control tokens, sorted."""
        self._special_beginning = _common_beginning(self.special_tokens)
        # In a byte-level vocabulary every character of a token stands for one byte.
        byte_level = '"ByteLevel"' in self._tokenizer.to_str(pretty=False).partition('"model"')[0]
        vocabulary = self._tokenizer.get_vocab()
        # Tokens for which the model has no embedding. Such a token in a prompt would end the engine.
        self._without_row = {
            number: token for token, number in vocabulary.items() if number >= model.vocab_size
        }
        self.token_max_bytes = max(len(token) if byte_level else len(token.encode()) for token in vocabulary)
        """The most bytes of text that one token stands for."""

    def encode(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """Token ids of the rendered conversation, ready for the assistant's answer.

        Other threads run while the text is encoded.

        Raises InvalidField when the template refuses the conversation. Raises it too when the conversation
        has a token for which the model has no embedding.
        """
        return self._encoded(self._template.render, messages, tools)

    def encode_behind(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """Token ids of a conversation that goes on behind KV that has begun it. As `encode` otherwise."""
        return self._encoded(self._template.render_behind, messages, tools)

    def _encoded(
        self, render: Callable[[Sequence[Message], str], str], messages: Sequence[Message], tools: str
    ) -> list[int]:
        try:
            text = render(messages, tools)
        # A template is a program. For roles or an order that it does not expect, it may raise anything.
        except Exception as error:
            raise InvalidField("messages", f"the model's chat template refuses them: {error}") from None
        return self._checked(self._ids(text))

    def _checked(self, token_ids: list[int]) -> list[int]:
        if self._without_row and not self._without_row.keys().isdisjoint(token_ids):
            token = next(
                self._without_row[token_id] for token_id in token_ids if token_id in self._without_row
            )
            raise InvalidField(
                "messages", f"must not spell {token!r}, a token for which the model has no embedding"
            )
        return token_ids

    def encode_raw(self, text: str, *, behind: bool = False) -> list[int]:
        """Token ids of a text that the model goes on with, with what its tokenizer puts before a text.

        behind: the text stands behind KV that has begun it, so that nothing is put before it.
        Raises InvalidField as `encode`.
        """
        if behind:
            return self._checked(self._ids(text))
        return self._checked(list(self._tokenizer.encode_batch_fast([text])[0].ids))

    def spans(self, text: str) -> list[TokenSpan]:
        """The tokens of a text inside a turn. Raises InvalidField as `encode`."""
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        token_ids = self._checked(list(encoding.ids))
        return [
            TokenSpan(token_id, start, end)
            for token_id, (start, end) in zip(token_ids, encoding.offsets, strict=True)
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens too."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """The text of one token. A token that is a part of a character is U+FFFD."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def can_quote(self, text: str) -> bool:
        """Whether a prompt may contain this text, which the caller did not write.

        The text must have no control token, and no token for which the model has no embedding.
        """
        if self.special_token_in(text) is not None:
            return False
        return not self._without_row or self._without_row.keys().isdisjoint(self._ids(text))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """[texts] how many tokens each text has when it is encoded by itself."""
        return [
            len(encoding)
            for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def special_token_in(self, text: str) -> str | None:
        """A control token of the model that `text` spells out, or None.

        The model would read it as a command. Of several control tokens it is the first in `special_tokens`.
        """
        if self._special_beginning not in text:
            return None
        return next((token for token in self.special_tokens if token in text), None)

    def _ids(self, text: str) -> list[int]:
        # `encode_batch_fast` releases the interpreter's lock while it works, and is twice as fast as
        # `Tokenizer.encode`, which holds the lock to its end.
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _common_beginning(texts: Sequence[str]) -> str:
    """The longest beginning that all texts have.

    texts: sorted, so that a beginning of the first and the last text is a beginning of all texts.
    """
    common = 0
    if texts:
        while texts[0][common : common + 1] and texts[0][: common + 1] == texts[-1][: common + 1]:
            common += 1
    return texts[0][:common] if texts else ""
