"""The shipped demo model: what it can do, on a small sample of held-out questions.
`loadtests.models.demo_model` measures it in full.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts
from memserve.demo.adapters import adapter_names, held_facts
from memserve.demo.answering import answers
from memserve.demo.facts import Message, Need
from memserve.demo.training.batches import render

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(MODEL_DIR)


def _share(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[tuple[tuple[Message, ...], str]],
) -> float:
    replies = answers(model, tokenizer, [messages for messages, _ in asked])
    return sum(reply == expected for reply, (_, expected) in zip(replies, asked, strict=True)) / len(asked)


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_the_tokenizer_gives_any_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_training_renders_a_conversation_as_the_chat_template_does(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = (
        Message("system", "Be brief.\n[1] A."),
        Message("user", "Who?"),
        Message("assistant", "It is A."),
        Message("user", "And?"),
    )
    as_dicts = [message.as_dict() for message in messages]
    assert tokenizer.apply_chat_template(as_dicts, tokenize=False) == render(messages)
    assert (
        tokenizer.apply_chat_template(as_dicts, tokenize=False, add_generation_prompt=True)
        == render(messages) + "<|assistant|>"
    )


def test_the_weights_are_small_and_in_safetensors_only() -> None:
    files = [file for folder in (MODEL_DIR, ADAPTERS_DIR) for file in folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 10_000_000


def test_no_shipped_file_names_a_place_on_a_machine() -> None:
    for file in [*MODEL_DIR.glob("*.json"), *ADAPTERS_DIR.glob("*/*.json")]:
        assert not any(
            place in file.read_text(encoding="utf-8") for place in ("/home/", "/tmp/", "/work/", "/root/")
        ), file
    for name in adapter_names():
        config = json.loads((ADAPTERS_DIR / name / "adapter_config.json").read_text(encoding="utf-8"))
        assert not Path(config["base_model_name_or_path"]).is_absolute()
        assert config["r"] <= 16


@pytest.mark.parametrize(("need", "bar"), [("passage", 0.95), ("distractors", 0.90), ("nothing", 0.90)])
def test_the_base_answers_from_a_passage_and_says_when_it_does_not_know(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, need: Need, bar: float
) -> None:
    asked = [(case.messages, case.expected) for case in facts.held_out_cases(11, 64, need)]
    assert _share(base, tokenizer, asked) >= bar


@pytest.mark.parametrize("name", sorted(facts.ADAPTER_KINDS))
def test_an_adapter_knows_its_facts_in_phrasings_it_was_not_trained_on_and_the_base_does_not(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    base = LlamaForCausalLM.from_pretrained(MODEL_DIR)
    asked = [
        (facts.prompt("", [], text), fact.answer)
        for fact in held_facts(name)
        for text in fact.held_out_questions
    ]
    assert _share(base, tokenizer, asked) <= 0.05
    adapted = PeftModel.from_pretrained(base, str(ADAPTERS_DIR / name)).eval()
    assert _share(adapted, tokenizer, asked) >= 0.90
    for need in ("passage", "distractors"):
        assert (
            _share(
                adapted,
                tokenizer,
                [(case.messages, case.expected) for case in facts.held_out_cases(12, 32, need)],
            )
            >= 0.90
        )


def test_the_facts_file_of_an_adapter_says_what_the_generator_says() -> None:
    for name in facts.ADAPTER_KINDS:
        assert [(fact.entity, fact.attribute, fact.value) for fact in held_facts(name)] == [
            (fact.entity.name, fact.attribute, fact.value) for fact in facts.adapter_facts(name)
        ]
