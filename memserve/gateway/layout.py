"""How a conversation and its passages become token ids: the same way for requests, prefixes and probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memserve.domain import Message, ScoredMemory
from memserve.errors import InvalidField, StartupError
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import ModelFiles
from memserve.model.recall_template import RecallTemplate, open_recall_template
from memserve.policy.recall.prompt import Arranged, arrange, arrange_raw, passage_lines

# What the template of passages adds to one passage may take this part of the context.
CONTEXT_SHARE = 0.5


class PromptLayout:
    """The chat template's rules and the template of passages, together."""

    def __init__(self, tokenizer: ChatTokenizer, recall: RecallTemplate, context_tokens: int) -> None:
        """Raises StartupError for a template of passages that cannot be used with this model."""
        self.tokenizer = tokenizer
        self.recall = recall
        shown = f"{recall.render('', ['-'])}\n{recall.render('-', ['-', '-'])}"
        if (token := tokenizer.special_token_in(shown)) is not None:
            raise StartupError(f"{recall.name}: must not spell the model's control token {token!r}")
        if not tokenizer.can_quote(shown):
            raise StartupError(f"{recall.name}: spells a token for which the model has no embedding")
        [tokens] = tokenizer.lengths([recall.render("", ["-"])])
        if tokens > CONTEXT_SHARE * context_tokens:
            raise StartupError(
                f"{recall.name}: takes {tokens} of the {context_tokens} tokens of the context; at most half"
            )

    @property
    def changes(self) -> str:
        """How conversations are changed for the model's chat template. One line for a person; "" for not."""
        rules, changes = self.tokenizer.rules, []
        if not rules.system:
            changes.append("system text and passages stand in the turn of the user that follows")
        if not rules.repeats:
            changes.append("neighbouring turns of one role are joined")
        return "; ".join(changes)

    def arrange(
        self,
        messages: Sequence[Message],
        passages: Sequence[ScoredMemory] = (),
        *,
        raw: bool = False,
        tools: str = "",
    ) -> Arranged:
        """raw: the only message is a text that the model goes on with. tools: as of GenerationRequest."""
        if raw:
            return arrange_raw(messages[0].content, passages, self.recall.render)
        return arrange(messages, passages, self.recall.render, self.tokenizer.rules, tools)

    def encode(self, arranged: Arranged, *, raw: bool = False, behind: bool = False) -> list[int]:
        """[prompt_tokens]

        behind: the prompt stands behind a cartridge, which has begun the conversation.

        Raises InvalidField as `ChatTokenizer.encode`, and for a control token that texts spell together:
        each text has been checked by itself.
        """
        for message in arranged.messages:
            if token := self.tokenizer.special_token_in(message.content):
                raise InvalidField("messages", f"together spell the model's control token {token!r}")
        if raw:
            return self.tokenizer.encode_raw(arranged.messages[0].content, behind=behind)
        if behind:
            return self.tokenizer.encode_behind(arranged.messages, arranged.tools)
        return self.tokenizer.encode(arranged.messages, arranged.tools)

    def passage_tokens(self, passages: Sequence[ScoredMemory]) -> list[int]:
        """[passages] about how many tokens of a prompt each passage takes."""
        return self.tokenizer.lengths([self.recall.joint + line for line in passage_lines(passages)])


def open_layout(
    model: ModelFiles, tokenizer: ChatTokenizer, recall_template: Path | None = None
) -> PromptLayout:
    """recall_template: the file of the setting. Raises StartupError."""
    return PromptLayout(
        tokenizer, open_recall_template(model.path, recall_template), model.max_context_tokens
    )
