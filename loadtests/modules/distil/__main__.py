"""Memories distilled into a LoRA and a cartridge: what each knows, forgets, leaks and costs.

24 facts of invented things are distilled by one plain call, on one thread. Then base and module are asked
with transformers what the self-study did not hold: questions in held-out phrasings and in a person's own
words, passages to read, passages that contradict the module, general knowledge, and things that no memory
names.
`--quick`: the demo model alone. Without it SmolLM2-135M-Instruct too, some twenty minutes on an idle core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.distil.worlds import Asked, World, demo_world, file_world, smollm2_world
from memserve.domain import DEFAULT_RECIPE, ModuleKind, Recipe
from memserve.memory.modules.kinds.cartridge import WEIGHTS_FILE
from memserve.policy.modules.gate import Match, right
from memserve.policy.modules.recipes import MAX_PHRASINGS
from memserve.worker.kv.cartridges import read_cartridge
from memserve.worker.training.distil.distil import distil
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.prompts import Prompts
from memserve.worker.training.distil.students import STUDENTS
from memserve.worker.training.distil.teacher import Teacher

# Columns whose share the base has to keep.
READING = ("passage", "text_wins")
CURVE = (1, 3, 6, MAX_PHRASINGS)
"""Of phrasings in which a fact is asked."""
REPORT_FILE = "training.json"
"""What the training has said, beside the files of --output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("distil", __doc__)
    options.add_argument("--seed", type=int, default=0, help="of facts, self-study and training (default: 0)")
    options.add_argument("--model", choices=["demo", "smollm2"], help="only this one")
    options.add_argument("--kind", choices=list(STUDENTS), help="only this one")
    options.add_argument("--steps", type=int, default=0, help="of training; 0: the recipe's own")
    options.add_argument("--phrasings", type=int, default=0, help="of a fact; 0: the recipe's own")
    options.add_argument("--curve", action="store_true", help="over the number of phrasings; without bars")
    options.add_argument("--budget-s", type=float, default=0, help="processor seconds; 0: the bar's")
    options.add_argument("--rank", type=int, default=DEFAULT_RECIPE.rank, help="of a LoRA")
    options.add_argument("--memories", type=Path, help="a file of memories, one a line, for SmolLM2")
    options.add_argument("--questions", type=Path, help="JSON: objects of a question and its value")
    options.add_argument("--output", type=Path, help="gets the files of each kind in a folder")
    options.add_argument("--ask-only", action="store_true", help="ask the modules that are in --output")
    chosen = options.parse_args(arguments)
    worlds = _worlds(chosen)
    bars: list[Bar] = []
    figures: dict[str, object] = {}
    for world in worlds:
        base = Base(world)
        for kind in [ModuleKind(chosen.kind)] if chosen.kind else list(STUDENTS):
            for phrasings in CURVE if chosen.curve else [chosen.phrasings]:
                name = f"{world.name} {kind}" + (f", {phrasings} phrasings" if phrasings else "")
                made = _made(base, _order(base, kind, phrasings, chosen), chosen.output, chosen.ask_only)
                figures[name] = measured = measure(base, kind, made)
                show(world, name, measured)
                if not chosen.curve:
                    bars += bars_of(world, kind, measured)
    return finish(bars, figures, chosen.json)


def _order(base: Base, kind: ModuleKind, phrasings: int, chosen: argparse.Namespace) -> DistilOrder:
    recipe = Recipe(steps=chosen.steps, phrasings=phrasings, rank=chosen.rank)
    budget_s = chosen.budget_s or base.world.budget_s[kind]
    return DistilOrder(base.folder, base.world.memories, kind, recipe, chosen.seed, budget_s)


def _worlds(chosen: argparse.Namespace) -> list[World]:
    if chosen.memories:
        return [file_world(chosen.memories, chosen.questions)]
    worlds = [demo_world(chosen.seed)] if chosen.model != "smollm2" else []
    if chosen.model == "smollm2" or (not chosen.quick and not chosen.model):
        worlds.append(smollm2_world(chosen.seed))
    return worlds


def measure(base: Base, kind: ModuleKind, made: Distilled) -> dict[str, Any]:
    """Shares by who answers and column, and the training's own report."""
    with tempfile.TemporaryDirectory(prefix="memserve-distil-") as scratch:
        _write(Path(scratch), made)
        shares = base.shares | {"module": _with_module(base, kind, Path(scratch))}
    size = sum(len(content) for name, content in made.files.items() if name.endswith(".safetensors"))
    return {"shares": shares, "training": made.report, "bytes": size}


def _made(base: Base, order: DistilOrder, output: Path | None, ask_only: bool) -> Distilled:
    """output: keeps the module, and the checkpoint of a training that was killed."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="memserve-distil-") as scratch:
            return _distilled(base, order, Path(scratch))
    folder = output / order.kind
    if ask_only:
        return _read(folder)
    checkpoint = output / f"{order.kind}-training"
    made = _distilled(base, order, checkpoint)
    _write(folder, made)
    shutil.rmtree(checkpoint)
    return made


def _distilled(base: Base, order: DistilOrder, checkpoint: Path) -> Distilled:
    """Distil, and tell how far it is."""
    for event in distil(order, checkpoint):
        if isinstance(event, Distilled):
            return event
        if event.stage != "training" or event.done % 10 == 0:
            loss = "" if event.median_loss is None else f", median loss {event.median_loss:.3f}"
            done = f"{event.stage} {event.done}/{event.total}"
            report(f"{base.world.name} {order.kind}: {done}, {event.cpu_s:.0f} s{loss}")
    raise AssertionError("a distillation ends with its result")


def _write(folder: Path, made: Distilled) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    (folder / REPORT_FILE).write_text(json.dumps(made.report, indent=1), encoding="utf-8")


def _read(folder: Path) -> Distilled:
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != REPORT_FILE}
    return Distilled(files, json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))


class Base:
    """The model of a world, and what it answers alone."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.folder = world.model()
        self.prompts = Prompts(self.folder)

    @cached_property
    def shares(self) -> dict[str, dict[str, float]]:
        """Without and with the memory that answers."""
        report(f"{self.world.name}: asking the base")
        model = self.open()
        return {
            "base": _shares(self, model),
            "with_memory": _shares(self, model, with_memory=True),
            "with_document": _shares(self, model, with_document=True),
        }

    def open(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto").eval()


def _with_module(base: Base, kind: ModuleKind, folder: Path) -> dict[str, float]:
    from peft import PeftModel

    model = base.open()
    if kind == ModuleKind.LORA:
        return _shares(base, PeftModel.from_pretrained(model, str(folder)).eval().get_base_model())
    config = model.config
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, config.head_dim)
    # [layers, 2, tokens, KV heads, head size]
    kv = read_cartridge(folder / WEIGHTS_FILE, shape, model.dtype)
    return _shares(base, model, kv.transpose(2, 3))


def _shares(
    base: Base,
    model: Any,
    kv: Tensor | None = None,
    *,
    with_memory: bool = False,
    with_document: bool = False,
) -> dict[str, float]:
    """kv: a cartridge's. with_memory, with_document: what stands before the questions for what was taught."""
    world, prompts = base.world, base.prompts
    teacher = Teacher(model, 0, prompts.end_ids)
    shares = {}
    for column, questions in world.columns.items():
        asked: Sequence[Asked] = [
            each for each in questions if each.with_memory or not (with_memory or with_document)
        ]
        if not asked:
            continue
        answers = teacher.answers(
            [
                prompts.prompt(
                    each.question,
                    (each.with_memory,)
                    if with_memory
                    else world.memories
                    if with_document
                    else each.passages,
                    behind=kv is not None,
                )
                for each in asked
            ],
            kv,
        )
        hits = [
            right(prompts.text(answer), each.right, Match.CONTAINS)
            for answer, each in zip(answers, asked, strict=True)
        ]
        shares[column] = sum(hits) / len(hits)
    return shares


def show(world: World, name: str, measured: Mapping[str, Any]) -> None:
    shares, training = measured["shares"], measured["training"]
    print(f"{name}: {training['readings']} facts of {len(world.memories)} memories")
    rows = [
        [who, *(f"{shares[who][column]:.2f}" if column in shares[who] else "-" for column in world.columns)]
        for who in ("base", "with_memory", "with_document", "module")
    ]
    print_table(["", *world.columns], rows)
    print(
        f"{training['steps']} steps ({training['ended']}), {training['cpu_s']:.0f} CPU s, "
        f"{training['trained_tokens']} tokens trained, {measured['bytes']} bytes, teacher right "
        f"{training['teacher_share']:.2f}"
    )


def bars_of(world: World, kind: ModuleKind, measured: Mapping[str, Any]) -> list[Bar]:
    base, module = measured["shares"]["base"], measured["shares"]["module"]
    cpu_s = measured["training"]["cpu_s"]

    def kept(column: str) -> float:
        return float(module[column] / base[column]) if base[column] else 1.0

    name = f"{world.name} {kind}"
    if world.name == "demo":
        return [
            Bar(f"{name} recall", module["recall"], at_least=0.90),
            *(Bar(f"{name} {column} / base", kept(column), at_least=0.95) for column in READING),
            Bar(f"{name} distractors lost", base["distractors"] - module["distractors"], at_most=0.05),
            Bar(f"{name} nothing lost", base["nothing"] - module["nothing"], at_most=0.05),
            Bar(f"{name} CPU seconds", cpu_s, at_most=90),
        ]
    asked = len(world.columns["general"])
    is_lora = kind == ModuleKind.LORA
    bars = [
        Bar(f"{name} recall", module["recall"], at_least=0.85 if is_lora else 0.8),
        Bar(f"{name} general answers lost", (base["general"] - module["general"]) * asked, at_most=2),
        Bar(f"{name} text wins / base", kept("text_wins"), at_least=0.9),
        Bar(f"{name} leak", module["leak"], at_most=0.3 if is_lora else 0.2),
        Bar(f"{name} CPU seconds", cpu_s, at_most=300 if is_lora else 480),
    ]
    if is_lora and "paraphrase" in module:
        with_document = measured["shares"]["with_document"]["paraphrase"]
        bars.append(Bar(f"{name} paraphrases", module["paraphrase"], at_least=with_document))
    return bars


if __name__ == "__main__":
    sys.exit(main())
