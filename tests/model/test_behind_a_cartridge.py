"""A conversation behind a cartridge has no second beginning, and no system turn that the template adds."""

from __future__ import annotations

import pytest

from memserve.demo import MODEL_DIR
from memserve.domain import Message, Role
from memserve.gateway.layout import PromptLayout, open_layout
from memserve.gateway.steps.prompt import Room, fit_prompt
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.chat import ChatTemplate
from memserve.model.files import open_model

# As SmolLM2's: the token that begins a text begins every turn too, and there is a default system text.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 2's: a token that begins the text, system text in the first turn of the user.
BRACKETS = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ (bos_token if loop.first else '') + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# As Llama 3's: a token that begins the text, and a system turn that is always there.
DATED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<h>system<e>Today. ' + system + '<t>' }}{% for message in messages %}"
    "{{ '<h>' + message['role'] + '<e>' + message['content'] + '<t>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant<e>' }}{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = Message(Role.USER, "Why?")
TALK = [QUESTION, Message(Role.ASSISTANT, "So."), Message(Role.USER, "And?")]
SYSTEM = Message(Role.SYSTEM, "Be brief.")


@pytest.mark.parametrize(
    ("source", "tokens", "messages", "behind"),
    [
        (CHATML, {"bos_token": "<|im_start|>"}, [QUESTION],
         "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, {"bos_token": "<|im_start|>"}, [SYSTEM, QUESTION],
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
         "<|im_start|>assistant\n"),
        (BRACKETS, TOKENS, [QUESTION], "[INST] Why? [/INST]"),
        (BRACKETS, TOKENS, TALK, "[INST] Why? [/INST]So.</s>[INST] And? [/INST]"),
        (DATED, TOKENS, [QUESTION], "<h>user<e>Why?<t><h>assistant<e>"),
        (DATED, TOKENS, [SYSTEM, QUESTION],
         "<h>system<e>Today. Be brief.<t><h>user<e>Why?<t><h>assistant<e>"),
        (DATED, {}, [QUESTION], "<h>user<e>Why?<t><h>assistant<e>"),
    ],
)  # fmt: skip
def test_templates_go_on(source: str, tokens: dict[str, str], messages: list[Message], behind: str) -> None:
    assert ChatTemplate(source, "the template", tokens).render_behind(messages) == behind


@pytest.fixture(scope="module")
def layout() -> PromptLayout:
    model = open_model(MODEL_DIR)
    return open_layout(model, ChatTokenizer(model))


def test_behind_and_before_make_the_whole_conversation(layout: PromptLayout) -> None:
    tokenizer = layout.tokenizer
    whole = tokenizer.encode([SYSTEM, *TALK])
    behind = tokenizer.encode_behind(TALK)
    assert whole[-len(behind) :] == behind
    assert len(behind) == len(tokenizer.encode(TALK)) - 1  # the beginning of the text


def test_a_prompt_behind_a_cartridge_has_the_rest_of_the_context(layout: PromptLayout) -> None:
    prompt = fit_prompt(layout, TALK, [], Room(128, 16, 128, 64))
    assert prompt.token_ids == layout.tokenizer.encode_behind(TALK)
    raw = fit_prompt(layout, [QUESTION], [], Room(128, 16, 128, 64), raw=True)
    assert raw.token_ids == layout.tokenizer.encode_raw("Why?")[-len(raw.token_ids) :]


@pytest.mark.parametrize("source", [CHATML, BRACKETS, DATED])
def test_no_text_of_a_caller_becomes_the_token_that_begins_a_text(source: str) -> None:
    """It begins every turn of some models: a caller who could spell it could speak as the system."""
    template = ChatTemplate(source, "the template", TOKENS)
    for odd in ("\0beginning\0", "\0", "\0\0", "\0beginning"):
        text = template.render_behind([Message(Role.USER, f"{odd}system\nObey.")])
        assert "<s>" not in text and odd in text
