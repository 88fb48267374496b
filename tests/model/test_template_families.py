"""Conversations and passages reach the model through the chat templates of popular families."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.demo import MODEL_DIR
from memserve.domain import Memory, Message, Role, ScoredMemory, TemplateRules
from memserve.model.chat import ChatTemplate
from memserve.model.recall_template import open_recall_template
from memserve.policy.recall.prompt import arrange
from tests.model.chat_templates import CHATML, GEMMA, LLAMA2, LLAMA3, MISTRAL, NO_SYSTEM, QWEN

NATIVE = TemplateRules()
FAMILIES = {
    "SmolLM": (CHATML, NATIVE),
    "Qwen": (QWEN, NATIVE),
    "Llama 3": (LLAMA3, NATIVE),
    "Llama 2": (LLAMA2, TemplateRules(system=True, repeats=False)),
    "Mistral": (MISTRAL, TemplateRules(system=False, repeats=False)),
    "Gemma": (GEMMA, TemplateRules(system=False, repeats=False)),
    "Gemma without its check of turns": (NO_SYSTEM, TemplateRules(system=False, repeats=True)),
}
TEMPLATES = {
    name: ChatTemplate(source, name, {"bos_token": "<s>", "eos_token": "</s>"})
    for name, (source, _) in FAMILIES.items()
}
DEFAULT = open_recall_template(Path("a model without a template"), None)
NOTES = DEFAULT.render("", ["The code is 4071."])
SYSTEM, QUESTION = Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "What is the code?")
ANSWER = Message(Role.ASSISTANT, "It is 4071.")
HIT = ScoredMemory(Memory("m", "notes", "The code is 4071.", "", (), 0.0), 1.0, None, None)

words = st.text("abcdef", min_size=1, max_size=8)
# What tools return is for templates that have a place for it.
TALKING = [role for role in Role if role is not Role.TOOL]
talks = st.lists(st.builds(Message, st.sampled_from(TALKING), words), max_size=6).map(
    lambda talk: [*talk, QUESTION]
)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_takes_is_known_at_start(family: str) -> None:
    assert TEMPLATES[family].rules == FAMILIES[family][1]


def rendered(family: str, *talk: Message, recalled: bool = False) -> str:
    template = TEMPLATES[family]
    arranged = arrange(talk, [HIT] if recalled else [], DEFAULT.render, template.rules)
    return template.render(arranged.messages)


@pytest.mark.parametrize(
    ("family", "prompt"),
    {
        "SmolLM": "<|im_start|>system\nBe brief.\n\n{notes}<|im_end|>\n"
        "<|im_start|>user\nWhat is the code?<|im_end|>\n<|im_start|>assistant\n",
        "Llama 3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.\n\n{notes}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is the code?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Llama 2": "<s>[INST] <<SYS>>\nBe brief.\n\n{notes}\n<</SYS>>\n\nWhat is the code? [/INST]",
        "Mistral": "<s>[INST] Be brief.\n\n{notes}\n\nWhat is the code? [/INST]",
        "Gemma": "<s><start_of_turn>user\nBe brief.\n\n{notes}\n\nWhat is the code?<end_of_turn>\n"
        "<start_of_turn>model\n",
    }.items(),
)
def test_passages_stand_where_the_family_takes_them(family: str, prompt: str) -> None:
    assert rendered(family, SYSTEM, QUESTION, recalled=True) == prompt.format(notes=NOTES)


def test_the_families_own_system_text_gives_way_to_the_passages() -> None:
    assert "You are a helpful assistant." in rendered("Qwen", QUESTION)
    assert "You are a helpful assistant." not in rendered("Qwen", QUESTION, recalled=True)


@pytest.mark.parametrize("family", ["Mistral", "Gemma", "Llama 2"])
@pytest.mark.parametrize("recalled", [False, True])
def test_turns_that_a_strict_family_refuses_are_joined_for_it(family: str, recalled: bool) -> None:
    talk = [SYSTEM, QUESTION, QUESTION, ANSWER, ANSWER, SYSTEM, QUESTION]
    with pytest.raises(Exception, match=r"must alternate|not supported|are supported"):
        TEMPLATES[family].render(talk)
    text = rendered(family, *talk, recalled=recalled)
    assert text.count(QUESTION.content) == 3
    assert text.count(ANSWER.content) == 2
    assert text.count(SYSTEM.content) == 2


@given(st.sampled_from(list(FAMILIES)), talks, st.booleans())
def test_a_family_refuses_only_a_conversation_that_the_assistant_begins(
    family: str, talk: list[Message], recalled: bool
) -> None:
    template = TEMPLATES[family]
    arranged = arrange(talk, [HIT] if recalled else [], DEFAULT.render, template.rules)
    first = next(message.role for message in arranged.messages if message.role is not Role.SYSTEM)
    if first is Role.ASSISTANT and not template.rules.repeats:
        with pytest.raises(Exception, match="must alternate"):
            template.render(arranged.messages)
        return
    text = template.render(arranged.messages)
    place = 0
    for message in talk:
        place = text.index(message.content, place) + len(message.content)
    assert (NOTES in text) == recalled


@given(st.sampled_from(list(FAMILIES)), talks, talks)
def test_a_longer_conversation_begins_with_the_shorter_ones_tokens(
    family: str, talk: list[Message], later: list[Message]
) -> None:
    """So that its KV is found, up to where the shorter one asks for an answer."""
    template = TEMPLATES[family]
    shown = []
    for each in ([QUESTION, *talk], [QUESTION, *talk, ANSWER, *later]):
        arranged = arrange(each, [HIT], DEFAULT.render, template.rules)
        shown.append(template.render(arranged.messages))
    common = next(
        (place for place, (one, two) in enumerate(zip(*shown, strict=False)) if one != two), len(shown[0])
    )
    assert common >= shown[0].rindex(QUESTION.content) + len(QUESTION.content)


def test_the_demo_model_brings_the_template_that_its_answers_were_measured_with() -> None:
    from memserve.demo.tokenizer import RECALL_TEMPLATE

    own = open_recall_template(MODEL_DIR, None)
    assert (own.origin, (MODEL_DIR / "recall_template.jinja").read_text(encoding="utf-8")) == (
        "model",
        RECALL_TEMPLATE,
    )
    line = "Answer the question with the help of the numbered passages."
    assert own.render("", ["one", "two"]) == f"{line}\n[1] one\n[2] two"
    assert own.render("Be brief.", ["one"]) == f"Be brief.\n{line}\n[1] one"


def test_roles_alternate_in_what_a_strict_family_gets() -> None:
    rules = TEMPLATES["Gemma"].rules
    arranged = arrange([SYSTEM, QUESTION, QUESTION], [HIT], DEFAULT.render, rules)
    assert (arranged.system_folded, arranged.merged_turns) == (True, 1)
    assert all(before.role is not after.role for before, after in pairwise(arranged.messages))
