"""Questions and answers as token ids, laid out as the gateway lays out requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.domain import Memory, Message, Role, ScoredMemory
from memserve.model.chat import open_chat
from memserve.model.files import json_object, open_model
from memserve.model.recall_template import RecallTemplate, open_recall_template
from memserve.policy.modules.self_study.inventing import Lexicon
from memserve.policy.recall.prompt import arrange

_WORD = re.compile(r"[A-Za-z]+")
_MARKED = re.compile(r"[\u0120\u2581 ]([A-Za-z][a-z]{2,15})")
"""A token that begins a word: tokenizers of bytes and of SentencePiece mark the space before it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with its answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """With the token that ends it, where it has ended."""
    value: frozenset[int] = frozenset()
    """Which tokens of the answer say the value, by their places in it. Empty: not known."""


class Prompts:
    """Makes prompts of one model."""

    def __init__(self, model: Path, chat_template: Path | None = None, recall_template: str = "") -> None:
        """recall_template: the source of another one than the model's.

        Raises StartupError for files that memserve cannot use."""
        files = open_model(model)
        self._template, self._tokenizer = open_chat(files, None, chat_template)
        self._recall = (
            RecallTemplate(recall_template, "the deployment's template of passages", "setting")
            if recall_template
            else open_recall_template(model, None)
        )
        self.end_ids = _end_ids(model, files.config)

    def prompt(self, question: str, passages: Sequence[str] = (), *, behind: bool = False) -> tuple[int, ...]:
        """A first question of the user, with passages before it.

        behind: the prompt goes on behind a cartridge.
        """
        hits = [_recalled(passage) for passage in passages]
        asked = [Message(Role.USER, question)]
        arranged = arrange(asked, hits, self._recall.render, self._template.rules)
        render = self._template.render_behind if behind else self._template.render
        return tuple(self._ids(render(arranged.messages)))

    def document(self, texts: Sequence[str]) -> tuple[int, ...]:
        """All texts as the beginning of a prompt."""
        role = Role.SYSTEM if self._template.rules.system else Role.USER
        shown = [Message(role, "\n".join(texts))]
        return tuple(self._ids(self._template.render(shown)))

    def lexicon(self, texts: Sequence[str]) -> Lexicon:
        """The words that are one token each and stand in no text."""
        stated = {word.casefold() for text in texts for word in _WORD.findall(text)}
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        marked = (_MARKED.fullmatch(token) for token in sorted(vocabulary))
        words = [found[1] for found in marked if found and found[1].casefold() not in stated]
        return Lexicon(
            tuple(word for word in words if word[0].isupper() and word[1:].islower()),
            tuple(word for word in words if word.islower()),
        )

    def row(
        self, question: str, passages: Sequence[str], answer: str, value: str, *, behind: bool = False
    ) -> Row:
        """With a known answer. value: a part of the answer's text. behind: as of `prompt`."""
        encoding = self._tokenizer.encode(answer, add_special_tokens=False)
        start = answer.rfind(value) if value else -1
        places = (
            frozenset(
                place
                for place, (first, end) in enumerate(encoding.offsets)
                if first < start + len(value) and end > start
            )
            if start >= 0
            else frozenset()
        )
        ids = (*encoding.ids, self.end_ids[0]) if self.end_ids else tuple(encoding.ids)
        return Row(self.prompt(question, passages, behind=behind), tuple(ids), places)

    def text(self, token_ids: Sequence[int]) -> str:
        """An answer's text."""
        return str(self._tokenizer.decode([each for each in token_ids if each not in self.end_ids])).strip()

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _end_ids(model: Path, config: dict[str, object]) -> tuple[int, ...]:
    """The tokens that end an answer, as the engine takes them from the files."""
    for source in (json_object(model / "generation_config.json", missing_ok=True), config):
        ends = source.get("eos_token_id")
        if isinstance(ends, int):
            return (ends,)
        if isinstance(ends, list) and ends:
            return tuple(int(end) for end in ends)
    return ()


def _recalled(text: str) -> ScoredMemory:
    return ScoredMemory(Memory("-", "-", text, "", (), 0.0), 1.0, 0.0, 0.0)
