"""A model's chat template and tokenizer.

Templates are rendered as transformers renders them. The tokenizer is as transformers reads it.

`tests/model/test_chat.py` compares both with transformers (5.19) on many shapes of tokenizers and templates.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from memserve.domain import Message, Role, TemplateRules
from memserve.errors import StartupError
from memserve.model.by_transformers import asked
from memserve.model.files import (
    TEMPLATES_FOLDER,
    ModelFiles,
    json_object,
    pointer_hint,
    template_text,
    text_of,
)
from memserve.private_files import keep_private

TEMPLATE_FILE, DEFAULT_TEMPLATE = "chat_template.jinja", "default"
TEMPLATE_MAX_BYTES = 1 << 20
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Stands for the token that begins a text. It is another one in every process: a caller who could spell it
# could spell that token. It is in no prompt.
_BEGINNING = f"\0{secrets.token_hex(16)}\0"
_PROBE = Message(Role.USER, "Where is the north gate?")
_SECOND_PROBE = Message(Role.USER, "And who has its key?")
_CALLING = Message(
    Role.ASSISTANT,
    "",
    '[{"type": "function", "function": {"name": "north_gate", "arguments": {"side": "left"}}}]',
)
_RETURNED = Message(Role.TOOL, "It is open until noon.")
_TOOLS = (
    '[{"type": "function", "function": {"name": "north_gate", "description": "Asks the gate.", '
    '"parameters": {"type": "object", "properties": {"side": {"type": "string"}}}}}]'
)
_SYSTEM_PROBE = Message(Role.SYSTEM, "The north gate is beside the mill.")


class ChatTemplate:
    """A template that takes a question of the user."""

    rules: TemplateRules
    """What else the template takes and shows to the model."""

    def __init__(self, source: str, name: str, special_tokens: Mapping[str, str]) -> None:
        """Raises StartupError.

        name: as an error message calls the template.
        """
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise StartupError(f"{name} is no chat template: line {error.lineno}: {error.message}") from None
        try:
            self.render([_PROBE])
        except Exception as error:
            raise StartupError(f"{name} cannot render a question of the user: {_line(error)}") from None
        self.rules = TemplateRules(
            system=self._shows([_SYSTEM_PROBE, _PROBE]),
            repeats=self._shows([_PROBE, _SECOND_PROBE]),
            tools=self._shows([_PROBE, _CALLING, _RETURNED], _TOOLS),
            marks_calls="<tool_call>" in source,
        )

    def render(self, messages: Sequence[Message], tools: str = "") -> str:
        """The prompt's text, ready for the assistant's answer. tools: as of GenerationRequest.

        A template is a program and may raise anything. As a rule it raises TemplateError.
        """
        return self._rendered(messages, tools, self._special_tokens)

    def render_behind(self, messages: Sequence[Message], tools: str = "") -> str:
        """The text of a conversation that goes on behind KV that has begun it.

        It has no mark of a text's beginning, and no system turn that the template adds by itself: the KV has
        had its own. tools: as of GenerationRequest. May raise anything, as `render`.
        """
        # The template means by bos_token what begins a text; other turns may begin with the same token.
        bos = self._special_tokens.get("bos_token", "")
        marked = {**self._special_tokens, "bos_token": _BEGINNING if bos else ""}
        if not tools and messages[0].role is not Role.SYSTEM and self.rules.system:
            with contextlib.suppress(Exception):
                # Behind a system turn the template adds none of its own.
                opening = self._rendered([_SYSTEM_PROBE], "", marked, answer=False)
                text = self._rendered([_SYSTEM_PROBE, *messages], "", marked)
                if text.startswith(opening):
                    return text.removeprefix(opening).replace(_BEGINNING, bos)
        text = self._rendered(messages, tools, marked).removeprefix(_BEGINNING)
        return text.replace(_BEGINNING, bos)

    def _rendered(
        self, messages: Sequence[Message], tools: str, special: Mapping[str, str], *, answer: bool = True
    ) -> str:
        """special: the texts of control tokens by their names."""
        return self._template.render(
            messages=[_turn(message) for message in messages],
            tools=json.loads(tools) if tools else None,
            documents=None,
            add_generation_prompt=answer,
            **special,
        )

    def _shows(self, messages: Sequence[Message], tools: str = "") -> bool:
        """Whether the template takes this conversation, and all of it reaches the model."""
        try:
            text = self.render(messages, tools)
        except Exception:
            return False
        names = [function["function"]["name"] for function in json.loads(tools or "[]")]
        return all(part in text for part in (*names, *(message.content for message in messages)))


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": str(message.role), "content": message.content}
    return turn | ({"tool_calls": json.loads(message.tool_calls)} if message.tool_calls else {})


def check_chat(path: Path, chosen: Path | None = None) -> ChatTemplate:
    """Look at the files of tokenizer and template. Takes milliseconds, and does not need transformers.

    chosen: the file of the setting `chat_template`. None: the model's own template.
    Returns the template, which does not know the texts of all control tokens. Raises StartupError.
    """
    config = json_object(path / "tokenizer_config.json", missing_ok=True)
    tokens = {**config, **json_object(path / "special_tokens_map.json", missing_ok=True)}
    try:
        Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise StartupError(
            f"{path / 'tokenizer.json'} is no fast tokenizer: "
            f"{_line(error)}{pointer_hint(path / 'tokenizer.json')}"
        ) from None
    source, name = _chosen_template(chosen) if chosen else _template_of(path, config)
    # The tokens' texts do not matter here. Some templates ask whether a token exists.
    return ChatTemplate(
        source, name, {token: str(tokens[token]) for token in NAMED_TOKENS if tokens.get(token)}
    )


def open_chat(
    model: ModelFiles, cache: Path | None = None, chosen: Path | None = None
) -> tuple[ChatTemplate, Tokenizer]:
    """The model's template, and its tokenizer. Raises StartupError.

    cache: a private folder that keeps transformers' answer for the next start.
    chosen: as of `check_chat`.
    """
    check_chat(model.path, chosen)
    answer = _of_transformers(model, cache)
    tokenizer = Tokenizer.from_str(answer["tokenizer"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = answer["split_special_tokens"]
    source, name = answer["template"], f"the chat template of {model.path}"
    if chosen:
        source, name = _chosen_template(chosen)
    elif not source:
        # The template of a processor. transformers keeps it with the processor.
        source, name = _template_of(model.path, {})
    return ChatTemplate(source, name, answer["special_tokens"]), tokenizer


def _of_transformers(model: ModelFiles, cache: Path | None) -> dict[str, Any]:
    digest = model.tokenizer_digest()
    kept = cache / f"tokenizer-{digest}.json" if cache is not None else None
    if kept is not None and kept.is_file():
        try:
            return dict(json.loads(kept.read_text(encoding="utf-8")))
        except ValueError:
            pass  # cut off; transformers is asked again
    answer = asked("tokenizer", model.path, digest)
    if kept is not None:
        keep_private(kept, json.dumps(answer).encode())
    return answer


def _chosen_template(file: Path) -> tuple[str, str]:
    """The text of the setting's file, and its name in an error message. Raises StartupError."""
    name = f"setting chat_template: {file}"
    return template_text(file, name, TEMPLATE_MAX_BYTES), name


def _template_of(path: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The template's text, and its name in an error message. Raises StartupError."""
    templates: dict[str, tuple[str, str]] = {}
    for file in [path / TEMPLATE_FILE, *sorted((path / TEMPLATES_FOLDER).glob("*.jinja"))]:
        if file.is_file():
            templates[DEFAULT_TEMPLATE if file.name == TEMPLATE_FILE else file.stem] = (
                text_of(file),
                str(file),
            )
    where, value = path / "tokenizer_config.json", config.get("chat_template")
    # Older multimodal models have it in a file of its own.
    if not templates and value is None and (path / "chat_template.json").is_file():
        where = path / "chat_template.json"
        value = json_object(where).get("chat_template")
    if not templates and isinstance(value, str):
        return value, f"the chat_template of {where}"
    if not templates and isinstance(value, list):
        for entry in value:
            if not (
                isinstance(entry, dict)
                and isinstance(entry.get("name"), str)
                and isinstance(entry.get("template"), str)
            ):
                raise StartupError(
                    f"the chat_template of {where} must be a text, or a list of objects with `name` and "
                    "`template`"
                )
            templates[entry["name"]] = (entry["template"], f"the chat_template {entry['name']!r} of {where}")
    if DEFAULT_TEMPLATE in templates:
        return templates[DEFAULT_TEMPLATE]
    if templates:
        raise StartupError(
            f"model {path.name} has chat templates {', '.join(sorted(templates))}, and none named "
            f"{DEFAULT_TEMPLATE}"
        )
    raise StartupError(
        f"model {path.name} has no chat template; use an instruction-tuned model, or name a template's file "
        "with the setting chat_template"
    )


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training. Its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's name

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # The content has a scope of its own, as in transformers: a variable that is set inside is not set
        # behind it.
        return nodes.CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line)

    def _rendered(self, caller: Any) -> str:
        return str(caller())


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
