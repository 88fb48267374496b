"""A model's prompts are transformers' prompts, token for token, or the model is refused at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from memserve.domain import Message, Role, TemplateRules
from memserve.errors import InvalidField, StartupError
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model import chat as model_chat
from memserve.model.by_transformers import tokenizer as tokenizer_by_transformers
from memserve.model.chat import TEMPLATE_MAX_BYTES, check_chat, open_chat
from memserve.model.files import ModelFiles
from tests.model.chat_conversations import conversations
from tests.model.chat_shapes import IM, SHAPES, Shape
from tests.model.chat_templates import ALTERNATES, BODY, CHATML, NO_SYSTEM


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled in a process of its own, without four seconds for each."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(model_chat, "asked", lambda what, path, digest: tokenizer_by_transformers(path))


def model(folder: Path) -> ModelFiles:
    return ModelFiles(folder, 1024, {"vocab_size": 10_000})


def by_transformers(tokenizer: Any, messages: list[Message]) -> list[int] | None:
    """None: the template refuses the conversation."""
    try:
        encoded = tokenizer.apply_chat_template(
            [{"role": str(message.role), "content": message.content} for message in messages],
            add_generation_prompt=True,
            tokenize=True,
        )
    except Exception:
        return None
    return list(encoded["input_ids"] if not isinstance(encoded, list) else encoded)


def by_memserve(tokenizer: ChatTokenizer, messages: list[Message]) -> list[int] | None:
    try:
        return tokenizer.encode(messages)
    except InvalidField:
        return None


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_conversation_becomes_transformers_tokens(
    shape: Shape, tmp_path: Path, in_this_process: None
) -> None:
    from transformers import AutoTokenizer

    folder = shape.write(tmp_path / "model")
    theirs, ours = AutoTokenizer.from_pretrained(folder), ChatTokenizer(model(folder))
    wrong = [
        (messages, want, got)
        for messages in conversations()
        if (want := by_transformers(theirs, messages)) != (got := by_memserve(ours, messages))
    ]
    assert not wrong, f"{len(wrong)} of {len(conversations())}, the first: {wrong[0]}"


def test_there_are_as_many_as_are_promised() -> None:
    assert len(SHAPES) >= 25
    assert len(conversations()) >= 40


@pytest.mark.parametrize(
    ("template", "rules"),
    [
        (CHATML, TemplateRules()),
        (NO_SYSTEM, TemplateRules(system=False)),
        (ALTERNATES, TemplateRules(system=False, repeats=False)),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            TemplateRules(system=False),
        ),
        ("{{ messages[0].content }}{{ messages[-1].content }}", TemplateRules()),
        ("{{ messages[-1].content }}", TemplateRules(system=False, repeats=False)),
    ],
)
def test_what_of_a_conversation_reaches_the_model_is_known_at_start(
    template: str, rules: TemplateRules, tmp_path: Path, in_this_process: None
) -> None:
    assert ChatTokenizer(model(Shape("", template).write(tmp_path))).rules == rules


def test_a_file_of_the_users_goes_over_the_models_template(tmp_path: Path, in_this_process: None) -> None:
    for name, template in (("has its own", BODY), ("has none", None)):
        folder = Shape("", template, tokens=IM).write(tmp_path / name)
        file = tmp_path / "chosen.jinja"
        file.write_text(CHATML, encoding="utf-8")
        chosen = ChatTokenizer(model(folder), chat_template=file)
        own = ChatTokenizer(model(Shape("", CHATML, tokens=IM).write(tmp_path / f"{name} too")))
        assert chosen.encode([Message(Role.USER, "Hi")]) == own.encode([Message(Role.USER, "Hi")])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"caf\xe9", "is not UTF-8"),
        (b"{% for %}", "is no chat template: line 1"),
        (b"{{ nothing() }}", "cannot render a question of the user"),
        (b" " * (TEMPLATE_MAX_BYTES + 1), f"has more than {TEMPLATE_MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_chat_template_is_refused_by_the_setting(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartupError) as refused:
        check_chat(Shape("", BODY).write(tmp_path / "model"), file)
    assert str(refused.value).startswith(f"setting chat_template: {file}")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (Shape("", None), "has no chat template"),
        (Shape("", None), "with the setting chat_template"),
        (
            Shape("", "{% for m in messages %}{{ m.content }}"),
            "tokenizer_config.json is no chat template: line 1",
        ),
        (
            Shape("", "{{ raise_exception('nobody may ask') }}"),
            "cannot render a question of the user: TemplateError: nobody may ask",
        ),
        (Shape("", "{{ messages[7].content.strip() }}"), "cannot render a question of the user"),
        (Shape("", "{{ nothing() }}"), "cannot render a question of the user"),
        (Shape("", [{"name": "rag", "template": "x"}]), "has chat templates rag, and none named default"),
        (Shape("", [{"name": "default"}]), "must be a text, or a list of objects"),
        (Shape("", 7), "has no chat template"),
        (
            Shape("", None, files={"chat_template.jinja": "{% if %}"}),
            "chat_template.jinja is no chat template",
        ),
        (
            Shape("", BODY, files={"tokenizer_config.json": "[]"}),
            "tokenizer_config.json must hold an object, not list",
        ),
        (Shape("", BODY, files={"tokenizer_config.json": "{"}), "tokenizer_config.json is not JSON"),
        (
            Shape("", BODY, files={"special_tokens_map.json": "7"}),
            "special_tokens_map.json must hold an object, not int",
        ),
        (Shape("", BODY, files={"tokenizer.json": "{}"}), "tokenizer.json is no fast tokenizer"),
        (
            Shape("", BODY, files={"tokenizer.json": "version https://git-lfs.github.com/spec/v1\n"}),
            "tokenizer.json is no fast tokenizer",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(shape: Shape, says: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError) as refused:
        check_chat(shape.write(tmp_path))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_not_utf8_are_refused_by_the_name_of_their_file(tmp_path: Path) -> None:
    folder = Shape("", None).write(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(StartupError, match=r"chat_template\.jinja is not UTF-8"):
        check_chat(folder)


def test_a_processors_template_serves_where_there_is_no_other(tmp_path: Path, in_this_process: None) -> None:
    folder = Shape("", None, files={"chat_template.json": json.dumps({"chat_template": CHATML})}).write(
        tmp_path
    )
    template, _ = open_chat(model(folder))
    assert (
        template.render([Message(Role.USER, "Hi")])
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_transformers_found_is_kept_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(Shape("", CHATML, tokens=("<|im_start|>",)).write(tmp_path / "model"))
    (tmp_path / "run").mkdir()
    question = [Message(Role.USER, "Hi")]
    first = ChatTokenizer(folder, tmp_path / "run")  # in a process of its own
    assert "transformers" not in first.encode.__globals__

    def never(*arguments: object) -> None:
        pytest.fail("it was compiled again")

    monkeypatch.setattr(model_chat, "asked", never)
    assert ChatTokenizer(folder, tmp_path / "run").encode(question) == first.encode(question)
    [kept] = (tmp_path / "run").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text("{", encoding="utf-8")  # cut off
    with pytest.raises(BaseException, match="compiled again"):
        ChatTokenizer(folder, tmp_path / "run")


def test_a_tokenizer_that_transformers_cannot_read_is_refused_in_its_words(tmp_path: Path) -> None:
    folder = Shape("", CHATML, config={"bos_token": 7}).write(tmp_path)
    with pytest.raises(StartupError, match=r"transformers cannot read the tokenizer of .*: [A-Za-z]+Error: "):
        ChatTokenizer(model(folder))


def test_a_token_without_an_embedding_is_refused_by_request(tmp_path: Path, in_this_process: None) -> None:
    folder = Shape("", CHATML, tokens=("<tool1>", "<tool2>", "<tool3>")).write(tmp_path)
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() - 2
    tokenizer = ChatTokenizer(ModelFiles(folder, 1024, {"vocab_size": rows}))
    assert tokenizer.encode([Message(Role.USER, "Use <tool1>.")])
    for text in ("Use <tool2>.", "Use <tool3> now.", "<tool3>"):
        with pytest.raises(InvalidField, match=r"<tool[23]>', a token for which the model has no embedding"):
            tokenizer.encode([Message(Role.USER, text)])
