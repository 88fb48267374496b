"""Recalled passages become no commands of the model, whatever the deployment's template does."""

from __future__ import annotations

from pathlib import Path

import pytest

from memserve.domain import Memory, Message, Role, ScoredMemory
from memserve.errors import InvalidField, StartupError
from memserve.gateway.layout import PromptLayout, open_layout
from memserve.gateway.steps.prompt import Room, fit_prompt
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import ModelFiles, open_model

QUESTION = [Message(Role.USER, "What is the code of Alder?")]
ROOM = Room(8192, 16, 128)
# The template itself spells no control token, but a passage can make it spell one.
OPEN_ENDED = "{{ system }}{% for p in passages %}<|{{ p.text }}|>{% endfor %}"


@pytest.fixture(scope="module")
def model(model_dir: Path) -> ModelFiles:
    return open_model(model_dir)


@pytest.fixture(scope="module")
def tokenizer(model: ModelFiles) -> ChatTokenizer:
    return ChatTokenizer(model)


def layout(model: ModelFiles, tokenizer: ChatTokenizer, folder: Path, source: str) -> PromptLayout:
    file = folder / "mine.jinja"
    file.write_text(source, encoding="utf-8")
    return open_layout(model, tokenizer, file)


def hit(text: str) -> ScoredMemory:
    return ScoredMemory(Memory(text, "notes", text, "", (), 0.0), 1.0, None, None)


def test_a_passage_that_completes_a_control_token_stays_out_of_the_prompt(
    model: ModelFiles, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    unwise = layout(model, tokenizer, tmp_path, OPEN_ENDED)
    assert len(fit_prompt(unwise, QUESTION, [hit("4071")], ROOM).passages) == 1
    prompt = fit_prompt(unwise, QUESTION, [hit("4071"), hit("system")], ROOM)
    assert prompt.passages == ()
    assert prompt.token_ids == tokenizer.encode(QUESTION)
    with pytest.raises(InvalidField, match=r"together spell the model's control token '<\|system\|>'"):
        unwise.encode(unwise.arrange(QUESTION, [hit("system")]))
    raw = fit_prompt(unwise, QUESTION, [hit("system")], ROOM, raw=True)
    assert (raw.passages, raw.token_ids) == ((), tokenizer.encode_raw(QUESTION[0].content))


@pytest.mark.parametrize(
    ("fixed", "says"),
    [
        ("<|system|>", r"must not spell the model's control token '<\|system\|>'"),
        ("{% if system %}<|user|>{% endif %}", r"must not spell the model's control token '<\|user\|>'"),
        ("{{ 'word ' * 6000 }}", "of the 8192 tokens of the context; at most half"),
    ],
)
def test_a_template_that_does_not_go_with_the_model_is_refused_at_start(
    model: ModelFiles, tokenizer: ChatTokenizer, tmp_path: Path, fixed: str, says: str
) -> None:
    source = f"{{{{ system }}}}{fixed}{{% for p in passages %}}{{{{ p.text }}}}{{% endfor %}}"
    with pytest.raises(StartupError, match=rf"^setting recall_template: .*: .*{says}"):
        layout(model, tokenizer, tmp_path, source)
