"""Distilling: seeded, resumed to the same bytes after a kill, and refused with what is at fault."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from loadtests.harness.cartridges import Reference
from memserve.demo import MODEL_DIR
from memserve.domain import DistilProgress, ModuleKind, Recipe
from memserve.errors import InvalidField
from memserve.memory.modules.kinds.cartridge import check_cartridge
from memserve.memory.modules.kinds.files import BaseModel, KvShape
from memserve.memory.modules.kinds.lora import WEIGHTS_FILE, check_lora
from memserve.memory.modules.probes import parse_probes
from memserve.model.files import open_model
from memserve.worker.training.distil import checkpoint
from memserve.worker.training.distil import distil as distilling
from memserve.worker.training.distil.distil import _Example, _Training, check_loss, distil
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.prompts import Prompts, Row
from memserve.worker.training.distil.teacher import Teacher, Told

TEXTS = (
    "The captain of Winter Osprey is Bella Engel.",
    "For Fern Dish, the observer is Zoe Berg.",
    "Clover Ranch has the animal lynx.",
    "Note: the code of South Archive is 8351.",
    "It rains.",
)
SHORT = Recipe(steps=20, rows=6, fresh=0.2, rank=4, stop_loss=0.0)
ORDER = DistilOrder(MODEL_DIR, TEXTS, recipe=SHORT, seed=3)
CARTRIDGE_ORDER = dataclasses.replace(ORDER, kind=ModuleKind.CARTRIDGE)


def run(order: DistilOrder, folder: Path) -> tuple[list[DistilProgress], Distilled]:
    *progress, last = distil(order, folder)
    assert isinstance(last, Distilled)
    return [each for each in progress if isinstance(each, DistilProgress)], last


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[DistilProgress], Distilled]:
    return run(ORDER, tmp_path_factory.mktemp("whole"))


def test_the_result_is_a_lora_with_probes_and_a_report(
    whole: tuple[list[DistilProgress], Distilled], tmp_path: Path
) -> None:
    progress, result = whole
    for name, content in result.files.items():
        (tmp_path / name).write_bytes(content)
    model = open_model(MODEL_DIR)
    base = BaseModel(model.tensor_shapes(), model.vocab_size, max_rank=64)
    assert check_lora(tmp_path, base).rank == 4
    assert [each.name for each in parse_probes(result.files["probes.json"]).sets] == [
        "recall", "forgetting", "abstention", "override", "leak",
    ]  # fmt: skip
    assert [each.stage for each in progress][:2] == ["reading", "teaching"]
    assert [each.done for each in progress if each.stage == "training"] == list(range(1, 21))
    assert (result.report["readings"], result.report["steps"]) == (4, 20)
    assert result.report["without_question"] == [4]
    assert result.report["teacher_share"] > 0.9


def test_what_is_taught_becomes_likelier(whole: tuple[list[DistilProgress], Distilled]) -> None:
    losses = [each.median_loss for each in whole[0] if each.median_loss is not None]
    assert losses[-1] < 0.75 * losses[0]


def test_a_training_that_was_killed_goes_on_to_the_same_bytes(
    whole: tuple[list[DistilProgress], Distilled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "CHECKPOINT_CPU_S", 0.0)
    for event in distil(ORDER, tmp_path):
        if isinstance(event, DistilProgress) and event.done == 11:
            break
    (tmp_path / f"{checkpoint.FILE}.partial").write_bytes(b"killed while it wrote")
    progress, result = run(ORDER, tmp_path)
    first = next(each for each in progress if each.stage == "training")
    assert first.done in (11, 12)
    assert result.report["resumed"] == 1
    again, once = load(result.files[WEIGHTS_FILE]), load(whole[1].files[WEIGHTS_FILE])
    assert all(again[name].equal(once[name]) for name in once)


@pytest.fixture(scope="module")
def cartridge(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    return run(CARTRIDGE_ORDER, tmp_path_factory.mktemp("cartridge"))[1]


def test_a_cartridge_is_what_the_kind_publishes(cartridge: Distilled, tmp_path: Path) -> None:
    for name, content in cartridge.files.items():
        (tmp_path / name).write_bytes(content)
    model = open_model(MODEL_DIR)
    shape = KvShape(
        model.layers, model.kv_heads, model.head_size, model.max_context_tokens, 32, model.rope,
        model.model_digest(),
    )  # fmt: skip
    base = BaseModel(model.tensor_shapes(), model.vocab_size, max_rank=64, kv=shape)
    checked = check_cartridge(tmp_path, base)
    assert checked.prefix_tokens == 32  # as many whole blocks as the memories fill
    assert json.loads(cartridge.files["cartridge.json"])["documents"] == [
        hashlib.sha256(text.encode()).hexdigest() for text in TEXTS
    ]
    assert "leak" in {each.name for each in parse_probes(cartridge.files["probes.json"]).sets}


def test_the_first_position_of_a_cartridge_is_the_text_s_own(cartridge: Distilled) -> None:
    """Without a place that attention can rest on, nothing behind a cartridge is read as before."""
    kv = load(cartridge.files[WEIGHTS_FILE])["prompt_embeddings"].reshape(32, 4, 2, 2, 64)
    prompts = Prompts(MODEL_DIR)
    own = Reference(MODEL_DIR).kv(prompts.document(TEXTS)[:32])
    assert torch.allclose(kv[0], torch.from_numpy(own[0]), atol=1e-4)
    assert not torch.allclose(kv[1:], torch.from_numpy(own[1:]), atol=1e-2)


def test_a_cartridge_that_was_killed_goes_on_to_the_same_bytes(
    cartridge: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "CHECKPOINT_CPU_S", 0.0)
    for event in distil(CARTRIDGE_ORDER, tmp_path):
        if isinstance(event, DistilProgress) and event.done == 11:
            break
    result = run(CARTRIDGE_ORDER, tmp_path)[1]
    assert result.report["resumed"] == 1
    assert result.files == cartridge.files


def test_answers_behind_a_cartridge_are_those_of_transformers_with_its_kv() -> None:
    """Of several prompts at once, of different lengths."""
    prompts, reference = Prompts(MODEL_DIR), Reference(MODEL_DIR)
    kv = reference.kv(prompts.document(TEXTS)[:32])
    asked = [
        prompts.prompt(question, behind=True)
        for question in ("What is the captain of Winter Osprey?", "Hello.", "Which animal has Clover Ranch?")
    ]
    layered = torch.from_numpy(kv).permute(1, 2, 3, 0, 4)
    together = Teacher(reference.model, 0, prompts.end_ids).answers(asked, layered)
    for ids, answer in zip(asked, together, strict=True):
        alone = [token for token, _ in reference.steps(kv, ids, 24, to_the_end=True)]
        assert list(answer) == alone


def test_what_the_base_says_while_it_answers_is_what_it_says_along_its_answer() -> None:
    prompts, reference = Prompts(MODEL_DIR), Reference(MODEL_DIR)
    teacher = Teacher(reference.model, 0, prompts.end_ids)
    asked = [
        prompts.prompt(question, passages)
        for question in ("What is the captain of Winter Osprey?", "Tell me the code of South Archive.")
        for passages in ((), TEXTS[:2], TEXTS[3:4])
    ]
    said = teacher.said(asked)
    along = teacher.told([Row(prompt, answer) for prompt, (answer, _) in zip(asked, said, strict=True)])
    for (answer, first), second in zip(said, along, strict=True):
        assert second.is_right
        assert first.tokens[:, 0].tolist() == list(answer) == second.tokens[:, 0].tolist()
        assert torch.allclose(first.logprobs, second.logprobs, atol=1e-3)


@pytest.mark.parametrize("small", [True, False])
def test_a_passage_that_the_base_misreads_is_learned_by_a_large_model_and_left_out_by_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    told, learn = Teacher.told, _Training._learn
    replayed: list[_Example] = []

    def misread(teacher: Teacher, rows: Sequence[Row]) -> list[Told]:
        return [dataclasses.replace(each, is_right=False) for each in told(teacher, rows)]

    def noting(training: _Training, *arguments: Any) -> tuple[float, float]:
        replayed.extend(each for each in arguments[-1] if not each.is_fact)
        return learn(training, *arguments)

    monkeypatch.setattr(Teacher, "told", misread)
    monkeypatch.setattr(_Training, "_learn", noting)
    if not small:
        monkeypatch.setattr("memserve.policy.modules.recipes.SMALL_MODEL_PARAMETERS", 0)
    recipe = dataclasses.replace(SHORT, least_teacher=0.0)
    _, result = run(dataclasses.replace(ORDER, recipe=recipe), tmp_path)
    passages = [each for each in replayed if each.row.value]
    assert bool(passages) is not small
    assert all(each.told is None for each in passages)
    assert all(each.told is not None for each in replayed if not each.row.value)
    assert min(result.report["misread"].values()) > 0


def test_made_up_names_are_words_of_the_model_that_no_memory_has() -> None:
    lexicon = Prompts(MODEL_DIR).lexicon(TEXTS)
    assert {"Falcon", "Amber"} <= set(lexicon.names)
    assert "copper" in lexicon.nouns
    assert not {"Winter", "Osprey", "Ranch"} & set(lexicon.names)
    assert "lynx" not in lexicon.nouns


def test_the_number_of_positions_is_refused_by_its_name(tmp_path: Path) -> None:
    odd = dataclasses.replace(CARTRIDGE_ORDER, recipe=dataclasses.replace(SHORT, tokens=33))
    with pytest.raises(InvalidField, match=r"recipe.tokens.*multiple of 32"):
        run(odd, tmp_path)


def test_a_checkpoint_of_another_order_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(3, requires_grad=True)}
    optimizer = torch.optim.AdamW(weights.values())
    weights["a"].sum().backward()
    optimizer.step()
    standing = checkpoint.Standing(step=1, cpu_s=2.0, medians=[0.5])
    checkpoint.save_checkpoint(tmp_path, "mine", standing, weights, optimizer)
    fresh = {"a": torch.zeros(3, requires_grad=True)}
    other = torch.optim.AdamW(fresh.values())
    assert checkpoint.load_checkpoint(tmp_path, "another", fresh, other) is None
    assert checkpoint.load_checkpoint(tmp_path, "mine", {"a": torch.zeros(4)}, other) is None
    assert not fresh["a"].any()
    found = checkpoint.load_checkpoint(tmp_path, "mine", fresh, other)
    assert found is not None
    assert (found.step, found.resumed, found.medians) == (1, 1, [0.5])
    assert fresh["a"].equal(weights["a"])
    file = tmp_path / checkpoint.FILE
    file.write_bytes(file.read_bytes()[:-4])
    assert checkpoint.load_checkpoint(tmp_path, "mine", fresh, other) is None


def test_a_teacher_that_cannot_answer_is_refused_with_its_share(tmp_path: Path) -> None:
    strange = tuple(f"Qzx{place} vrk is led by Wpf{place} Xgh." for place in range(4))
    picky = dataclasses.replace(ORDER, texts=strange, recipe=Recipe(least_teacher=1.0))
    with pytest.raises(InvalidField, match=r"answers \d+% of the questions; 100% are needed"):
        run(picky, tmp_path)


def test_memories_without_a_statement_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="none states a fact"):
        run(dataclasses.replace(ORDER, texts=("Hello.", "It rains.", "Why?", "They left.")), tmp_path)


def test_a_budget_that_is_too_small_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=r"processor seconds are too few: 20 steps take about \d+"):
        run(dataclasses.replace(ORDER, budget_s=0.01), tmp_path)


def test_a_training_that_comes_apart_is_refused_by_its_rate() -> None:
    check_loss(3.5, 1, 0.5)
    for loss in (float("nan"), float("inf")):
        with pytest.raises(InvalidField, match=r"recipe.rate: 0.5 is too high: after 7 steps"):
            check_loss(loss, 7, 0.5)


def test_another_chat_template_is_another_order(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    order = dataclasses.replace(ORDER, chat_template=template)
    before = order.digest
    assert before not in (ORDER.digest, dataclasses.replace(order, seed=4).digest)
    template.write_text("{{ messages }}!", encoding="utf-8")
    assert order.digest != before
    assert dataclasses.replace(order, budget_s=9.0).digest == order.digest
