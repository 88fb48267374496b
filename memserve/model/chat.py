"""A model's chat template and tokenizer. Templates are rendered as transformers renders them; the tokenizer
is as transformers reads it.

`tests/model/test_chat.py` compares both with transformers (5.19) on many shapes of tokenizers and templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from memserve.domain import Message, Role
from memserve.errors import StartupError
from memserve.model.by_transformers import asked
from memserve.model.files import TEMPLATES_FOLDER, ModelFiles, json_object, pointer_hint, text_of
from memserve.private_files import keep_private

TEMPLATE_FILE, DEFAULT_TEMPLATE = "chat_template.jinja", "default"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PROBE = Message(Role.USER, "Where is the north gate?")
_SYSTEM_PROBE = Message(Role.SYSTEM, "The north gate is beside the mill.")


class ChatTemplate:
    """A template that takes a question of the user.

    takes_system: whether it takes a system message too, and shows it to the model.
    """

    def __init__(self, source: str, name: str, special_tokens: Mapping[str, str]) -> None:
        """name: as a message calls it. Raises StartupError."""
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise StartupError(f"{name} is no chat template: line {error.lineno}: {error.message}") from None
        try:
            self.render([_PROBE])
        except Exception as error:
            raise StartupError(f"{name} cannot render a question of the user: {_line(error)}") from None
        try:
            self.takes_system = _SYSTEM_PROBE.content in self.render([_SYSTEM_PROBE, _PROBE])
        except Exception:
            self.takes_system = False

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text, ready for the assistant's answer. A template is a program: it may raise
        anything, TemplateError as a rule.
        """
        return self._template.render(
            messages=[{"role": str(message.role), "content": message.content} for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._special_tokens,
        )


def check_chat(path: Path) -> None:
    """A first look at the files of tokenizer and template, in milliseconds and without transformers. Raises
    StartupError.
    """
    config = json_object(path / "tokenizer_config.json", missing_ok=True)
    tokens = {**config, **json_object(path / "special_tokens_map.json", missing_ok=True)}
    try:
        Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more special
        raise StartupError(
            f"{path / 'tokenizer.json'} is no fast tokenizer: "
            f"{_line(error)}{pointer_hint(path / 'tokenizer.json')}"
        ) from None
    source, name = _template_of(path, config)
    # The texts of the tokens do not matter here; whether they are there does to some templates.
    ChatTemplate(source, name, {token: str(tokens[token]) for token in NAMED_TOKENS if tokens.get(token)})


def open_chat(model: ModelFiles, cache: Path | None = None) -> tuple[ChatTemplate, Tokenizer]:
    """The model's template, and its tokenizer. cache: a private folder that keeps what transformers found for
    the next start.

    Raises StartupError.
    """
    check_chat(model.path)
    found = _of_transformers(model, cache)
    tokenizer = Tokenizer.from_str(found["tokenizer"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = found["split_special_tokens"]
    source, name = found["template"], f"the chat template of {model.path}"
    if not source:
        source, name = _template_of(model.path, {})  # a processor's: transformers has it with the processor
    return ChatTemplate(source, name, found["special_tokens"]), tokenizer


def _of_transformers(model: ModelFiles, cache: Path | None) -> dict[str, Any]:
    digest = model.tokenizer_digest()
    kept = cache / f"tokenizer-{digest}.json" if cache is not None else None
    if kept is not None and kept.is_file():
        try:
            return dict(json.loads(kept.read_text(encoding="utf-8")))
        except ValueError:
            pass  # cut off: it is made again
    found = asked("tokenizer", model.path, digest)
    if kept is not None:
        keep_private(kept, json.dumps(found).encode())
    return found


def _template_of(path: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The template's text, and what it is called in a message. Raises StartupError."""
    found: dict[str, tuple[str, str]] = {}
    for file in [path / TEMPLATE_FILE, *sorted((path / TEMPLATES_FOLDER).glob("*.jinja"))]:
        if file.is_file():
            found[DEFAULT_TEMPLATE if file.name == TEMPLATE_FILE else file.stem] = (text_of(file), str(file))
    where, given = path / "tokenizer_config.json", config.get("chat_template")
    # An older place, of multimodal models.
    if not found and given is None and (path / "chat_template.json").is_file():
        where = path / "chat_template.json"
        given = json_object(where).get("chat_template")
    if not found and isinstance(given, str):
        return given, f"the chat_template of {where}"
    if not found and isinstance(given, list):
        for entry in given:
            if not (
                isinstance(entry, dict)
                and isinstance(entry.get("name"), str)
                and isinstance(entry.get("template"), str)
            ):
                raise StartupError(
                    f"the chat_template of {where} must be a text, or a list of objects with `name` "
                    "and `template`"
                )
            found[entry["name"]] = (entry["template"], f"the chat_template {entry['name']!r} of {where}")
    if DEFAULT_TEMPLATE in found:
        return found[DEFAULT_TEMPLATE]
    if found:
        raise StartupError(
            f"model {path.name} has chat templates {', '.join(sorted(found))}, and none named "
            f"{DEFAULT_TEMPLATE}"
        )
    raise StartupError(f"model {path.name} has no chat template; use an instruction-tuned model")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training; what is in it is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's name

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # In a scope of its own, as transformers has it: what is set within is not set behind it.
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
