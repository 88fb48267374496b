"""Messages to token ids: the model's chat template and tokenizer, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memserve.domain import Message
from memserve.errors import InvalidField
from memserve.model.chat import open_chat
from memserve.model.files import ModelFiles


class ChatTokenizer:
    """Renders and encodes as
    `transformers.PreTrainedTokenizerFast.apply_chat_template(add_generation_prompt=True)` does.

    takes_system: whether the template takes a system message and shows it to the model.
    """

    def __init__(self, model: ModelFiles, cache: Path | None = None) -> None:
        """cache: as of `open_chat`. Raises StartupError when tokenizer or template are missing or cannot be
        used.
        """
        self._template, self._tokenizer = open_chat(model, cache)
        self.takes_system = self._template.takes_system
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = tuple(sorted(token.content for token in added if token.special))
        self._special_beginning = _common_beginning(self.special_tokens)
        # In a byte-level vocabulary a letter stands for a byte.
        byte_level = '"ByteLevel"' in self._tokenizer.to_str(pretty=False).partition('"model"')[0]
        vocabulary = self._tokenizer.get_vocab()
        # Tokens for which the model has no embedding: one of them in a prompt would end the engine.
        self._without_row = {
            number: token for token, number in vocabulary.items() if number >= model.vocab_size
        }
        self.token_max_bytes = max(len(token) if byte_level else len(token.encode()) for token in vocabulary)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation, ready for the assistant's answer. Other threads run
        meanwhile.

        Raises InvalidField when the template refuses the conversation, or it holds a token that the model
        does not know.
        """
        try:
            text = self._template.render(messages)
        # A template is a program. It may raise anything for roles or an order that it does not expect.
        except Exception as error:
            raise InvalidField("messages", f"the model's chat template refuses them: {error}") from None
        token_ids = self._ids(text)
        if self._without_row and not self._without_row.keys().isdisjoint(token_ids):
            token = next(
                self._without_row[token_id] for token_id in token_ids if token_id in self._without_row
            )
            raise InvalidField(
                "messages", f"must not spell {token!r}, a token for which the model has no embedding"
            )
        return token_ids

    def can_quote(self, text: str) -> bool:
        """Whether a prompt may hold this text, which the caller did not write: no control token in it, none
        without an embedding.
        """
        if self.special_token_in(text) is not None:
            return False
        return not self._without_row or self._without_row.keys().isdisjoint(self._ids(text))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """[texts] tokens of each, encoded by itself."""
        return [
            len(encoding)
            for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def special_token_in(self, text: str) -> str | None:
        """The first of the model's control tokens that `text` spells out: it would be read as a command, not
        as text.
        """
        if self._special_beginning not in text:
            return None
        return next((token for token in self.special_tokens if token in text), None)

    def _ids(self, text: str) -> list[int]:
        # `Tokenizer.encode` keeps the interpreter's lock to its end; `encode_batch_fast` lets go of it, and
        # is twice as fast.
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _common_beginning(texts: Sequence[str]) -> str:
    """texts: sorted, so that what the first and the last have in common all have."""
    common = 0
    if texts:
        while texts[0][common : common + 1] and texts[0][: common + 1] == texts[-1][: common + 1]:
            common += 1
    return texts[0][:common] if texts else ""
