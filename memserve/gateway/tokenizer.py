"""Messages to token ids: the model's chat template and tokenizer, without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from memserve.domain import Message
from memserve.errors import InvalidField, StartupError
from memserve.model_files import ModelFiles


class ChatTokenizer:
    """Renders and encodes as `transformers.PreTrainedTokenizerFast.apply_chat_template(add_generation_prompt=True)` does."""

    def __init__(self, model: ModelFiles) -> None:
        """Raises StartupError when the model has no chat template."""
        self._tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config_file = model.path / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        template_file = model.path / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
        if not isinstance(template, str):
            raise StartupError(f"model {model.name} has no chat template; use an instruction-tuned model")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        self._template = environment.from_string(template)
        self._special = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = tuple(sorted(token.content for token in added if token.special))
        self._special_beginning = _common_beginning(self.special_tokens)
        # In a byte-level vocabulary a letter stands for a byte.
        byte_level = '"ByteLevel"' in self._tokenizer.to_str(pretty=False).partition('"model"')[0]
        vocabulary = self._tokenizer.get_vocab()
        self.token_max_bytes = max(len(token) if byte_level else len(token.encode()) for token in vocabulary)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation, ready for the assistant's answer. Other threads run meanwhile.

        Raises InvalidField when the template refuses the conversation.
        """
        try:
            text = self._template.render(
                messages=[{"role": str(message.role), "content": message.content} for message in messages],
                add_generation_prompt=True,
                **self._special,
            )
        except TemplateError as error:
            raise InvalidField("messages", f"the model's chat template refuses them: {error}") from None
        # `Tokenizer.encode` keeps the interpreter's lock to its end; `encode_batch_fast` lets go of it, and is twice as fast.
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """[texts] tokens of each, encoded by itself."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def special_token_in(self, text: str) -> str | None:
        """The first of the model's control tokens that `text` spells out: it would be read as a command, not as text."""
        if self._special_beginning not in text:
            return None
        return next((token for token in self.special_tokens if token in text), None)


def _common_beginning(texts: Sequence[str]) -> str:
    """texts: sorted, so that what the first and the last have in common all have."""
    common = 0
    if texts:
        while texts[0][common : common + 1] and texts[0][: common + 1] == texts[-1][: common + 1]:
            common += 1
    return texts[0][:common] if texts else ""


def _raise(message: str) -> None:
    raise TemplateError(message)


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""
