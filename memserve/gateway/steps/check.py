"""Step 2 of a request, first half: is it one that the served model can be asked?"""

from __future__ import annotations

from collections.abc import Sequence

from memserve.domain import Message
from memserve.errors import InvalidField, ModelNotFound
from memserve.gateway.steps.prompt import check_bytes, prompt_max_bytes
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import ModelFiles


class RequestCheck:
    """Against the model and its tokenizer. Cheap: nothing is encoded."""

    def __init__(self, model: ModelFiles, tokenizer: ChatTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_bytes = prompt_max_bytes(tokenizer, model.max_context_tokens)

    def __call__(
        self, model: str, messages: Sequence[Message], *, field: str = "messages", tools: str = ""
    ) -> None:
        """Raises ModelNotFound, and InvalidField for messages that cannot fit or that spell a control token:
        the model would take it for a command.

        field: the request's name for the messages. tools: as of GenerationRequest.
        """
        if model not in ("", self._model.name):
            raise ModelNotFound(model, self._model.name)
        check_bytes(field, messages, self._max_bytes)
        for number, message in enumerate(messages):
            self._check_text(f"{field}[{number}].content", message.content)
            self._check_text(f"{field}[{number}].tool_calls", message.tool_calls)
        if len(tools.encode()) > self._max_bytes:
            raise InvalidField(
                "tools", f"no more than {self._max_bytes} bytes can fit into the model's context"
            )
        self._check_text("tools", tools)

    def _check_text(self, field: str, text: str) -> None:
        if token := self._tokenizer.special_token_in(text):
            raise InvalidField(field, f"must not contain the model's control token {token!r}")
