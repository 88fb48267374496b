"""Packed rows compute what each row computes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memserve.demo import MODEL_DIR
from memserve.worker.training.distil.packing import packed
from memserve.worker.training.distil.prompts import Prompts, Row
from memserve.worker.training.distil.teacher import Teacher, answer_logits

PASSAGE = "The code of Amber Lantern is 4821."


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, attn_implementation="sdpa").eval()


def rows(prompts: Prompts) -> list[Row]:
    asked = ("What is the code of Amber Lantern?", "Hello.", "Tell me the code of Amber Lantern.")
    return [
        prompts.row(question, passages, PASSAGE, "4821")
        for passages in ((), (PASSAGE,), ("The library closes on Monday.", PASSAGE))
        for question in asked
    ]


@pytest.mark.parametrize("width", [40, 100, 1000])
def test_each_row_has_the_logits_that_it_has_alone(prompts: Prompts, model: Any, width: int) -> None:
    many = rows(prompts)
    batch = packed(many, 0, [width])
    with torch.no_grad():
        together = answer_logits(model, batch)
        for row, start, end in zip(many, batch.starts, batch.starts[1:], strict=False):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            alone = model(ids).logits[0, len(row.prompt) - 1 : -1]
            assert torch.allclose(together[start:end], alone, atol=1e-3)
            assert batch.wanted[start:end].tolist() == list(row.answer)


def test_a_common_beginning_is_computed_once(prompts: Prompts) -> None:
    many = rows(prompts)
    alone = sum(len(row.prompt) + len(row.answer) for row in many)
    assert packed(many, 0, [1000]).tokens < 0.75 * alone


def test_a_row_without_an_answer_is_refused() -> None:
    for wrong in ([], [Row((1,), ())], [Row((), (1,))]):
        with pytest.raises(ValueError, match="needs a prompt and an answer"):
            packed(wrong, 0)


def test_the_value_is_found_among_the_answers_tokens(prompts: Prompts) -> None:
    row = prompts.row("What is the code of Amber Lantern?", (), PASSAGE, "4821")
    assert "".join(prompts.text([row.answer[place]]) for place in sorted(row.value)) == "4821"
    assert row.answer[-1] in prompts.end_ids
    assert prompts.text(row.answer) == PASSAGE


def test_the_teacher_is_right_with_the_memory_and_admits_that_it_is_not_without(
    prompts: Prompts, model: Any
) -> None:
    teacher = Teacher(model, 0, prompts.end_ids)
    asked = "What is the code of Amber Lantern?"
    known, unknown = teacher.told(
        [prompts.row(asked, passages, PASSAGE, "4821") for passages in ((PASSAGE,), ())]
    )
    assert (known.is_right, unknown.is_right) == (True, False)
    answers = teacher.answers([prompts.prompt(asked, (PASSAGE,)), prompts.prompt(asked)])
    assert [prompts.text(answer) for answer in answers] == [PASSAGE, "I do not know."]
