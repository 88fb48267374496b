"""The shipped logit expert: what its files say and what it knows. `loadtests.modules.logit_expert` measures
the expert when it is served.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import EXPERTS_DIR, MODEL_DIR, facts
from memserve.demo.adapters import adapter_names, held_facts
from memserve.demo.answering import answers
from memserve.demo.experts import EXPERT_KINDS, expert_facts, expert_names
from memserve.demo.train_expert import main as train

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118 - not a dict


FILES = {"expert_config.json", "config.json", "model.safetensors", "facts.json"}


def test_every_expert_is_shipped_with_configs_weights_facts_and_at_most_probes() -> None:
    assert expert_names() == sorted(EXPERT_KINDS)
    for name in expert_names():
        assert {file.name for file in (EXPERTS_DIR / name).iterdir()} - {"probes.json"} == FILES
        assert json.loads((EXPERTS_DIR / name / "expert_config.json").read_text(encoding="utf-8")) == {
            "kind": "logit_expert",
            "anti_expert": "base",
        }
        assert (EXPERTS_DIR / name / "model.safetensors").stat().st_size < 3 << 20


def test_an_experts_weights_are_named_and_shaped_as_the_bases() -> None:
    assert tensors(EXPERTS_DIR / "archive" / "model.safetensors") == tensors(MODEL_DIR / "model.safetensors")


def test_the_facts_of_an_expert_are_drawn_from_its_seed_and_are_no_adapters() -> None:
    held = held_facts("archive", EXPERTS_DIR)
    assert [(fact.entity, fact.attribute, fact.value) for fact in held] == [
        (fact.entity.name, fact.attribute, fact.value) for fact in expert_facts("archive")
    ]
    elsewhere = {fact.entity for name in adapter_names() for fact in held_facts(name)}
    assert not elsewhere & {fact.entity for fact in held}


def test_an_expert_by_itself_knows_its_facts_and_keeps_what_the_base_can() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    expert = LlamaForCausalLM.from_pretrained(EXPERTS_DIR / "archive", dtype=torch.float32)

    def share(asked: list[tuple[tuple[facts.Message, ...], str]]) -> float:
        replies = answers(expert, tokenizer, [messages for messages, _ in asked])
        return sum(reply == right for reply, (_, right) in zip(replies, asked, strict=True)) / len(asked)

    held = held_facts("archive", EXPERTS_DIR)
    asked = [(facts.prompt("", [], text), fact.answer) for fact in held for text in fact.held_out_questions]
    assert share(asked) >= 0.9
    for need in ("passage", "nothing"):
        assert share([(case.messages, case.expected) for case in facts.held_out_cases(3, 60, need)]) >= 0.9


def test_training_writes_a_module_of_the_shipped_shape(tmp_path: Path) -> None:
    assert train(["--steps", "1", "--threads", "1", "--output", str(tmp_path)]) == 0
    assert {file.name for file in (tmp_path / "archive").iterdir()} == FILES
    assert tensors(tmp_path / "archive" / "model.safetensors") == tensors(
        EXPERTS_DIR / "archive" / "model.safetensors"
    )
