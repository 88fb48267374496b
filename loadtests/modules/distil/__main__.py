"""Memories distilled into a LoRA: what it knows, what it forgets, what it leaks, and what it costs.

24 facts of invented things are distilled by one plain call, on one thread. Then base and module are asked
with transformers what the self-study did not hold: questions in held-out phrasings and in a person's own
words, passages to read, passages that contradict the module, general knowledge, and things that no memory
names.
`--quick`: the demo model alone. Without it SmolLM2-135M-Instruct too, which takes some ten minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.distil.worlds import Asked, World, demo_world, smollm2_world
from memserve.domain import Recipe
from memserve.policy.modules.gate import Match, right
from memserve.worker.training.distil.distil import distil
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.prompts import Prompts
from memserve.worker.training.distil.teacher import Teacher

# Columns whose share the base has to keep, and those where a smaller share is the better one.
READING = ("passage", "text_wins")
LEAKS = ("leak", "leak_own")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("distil", __doc__)
    options.add_argument("--seed", type=int, default=0, help="of facts, self-study and training (default: 0)")
    options.add_argument("--model", choices=["demo", "smollm2"], help="only this one")
    options.add_argument("--steps", type=int, default=0, help="of training; 0: the recipe's own")
    chosen = options.parse_args(arguments)
    worlds = [demo_world(chosen.seed)] if chosen.model != "smollm2" else []
    if chosen.model == "smollm2" or (not chosen.quick and not chosen.model):
        worlds.append(smollm2_world(chosen.seed))
    bars: list[Bar] = []
    figures: dict[str, object] = {}
    for world in worlds:
        measured = measure(world, chosen.seed, Recipe(steps=chosen.steps))
        show(world, measured)
        bars += bars_of(world, measured)
        figures[world.name] = measured
    return finish(bars, figures, chosen.json)


def measure(world: World, seed: int, recipe: Recipe) -> dict[str, Any]:
    """Distil, and ask. Shares by who answers and column, and the training's own report."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = world.model()
    order = DistilOrder(model, world.memories, recipe=recipe, seed=seed, budget_s=world.budget_s)
    with tempfile.TemporaryDirectory(prefix="memserve-distil-") as scratch:
        folder = Path(scratch)
        files: dict[str, bytes] = {}
        training: dict[str, Any] = {}
        for event in distil(order, folder):
            if isinstance(event, Distilled):
                files, training = event.files, event.report
            elif event.stage != "training" or event.done % 25 == 0:
                loss = "" if event.median_loss is None else f", median loss {event.median_loss:.3f}"
                report(f"{world.name}: {event.stage} {event.done}/{event.total}, {event.cpu_s:.0f} s{loss}")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        prompts = Prompts(model)
        shares = {"base": _shares(world, base, prompts), "with_memory": _shares(world, base, prompts, True)}
        adapted = PeftModel.from_pretrained(base, str(folder)).eval()
        shares["module"] = _shares(world, adapted.get_base_model(), prompts)
    size = sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))
    return {"shares": shares, "training": training, "bytes": size}


def _shares(world: World, model: Any, prompts: Prompts, with_memory: bool = False) -> dict[str, float]:
    teacher = Teacher(model, 0, prompts.end_ids)
    shares = {}
    for column, questions in world.columns.items():
        asked: Sequence[Asked] = [each for each in questions if each.with_memory or not with_memory]
        if not asked:
            continue
        answers = teacher.answers(
            [
                prompts.prompt(each.question, (each.with_memory,) if with_memory else each.passages)
                for each in asked
            ]
        )
        hits = [
            right(prompts.text(answer), each.right, Match.CONTAINS)
            for answer, each in zip(answers, asked, strict=True)
        ]
        shares[column] = sum(hits) / len(hits)
    return shares


def show(world: World, measured: Mapping[str, Any]) -> None:
    shares, training = measured["shares"], measured["training"]
    print(f"{world.name}: {training['readings']} facts of {len(world.memories)} memories")
    rows = [
        [who, *(f"{shares[who][column]:.2f}" if column in shares[who] else "-" for column in world.columns)]
        for who in ("base", "with_memory", "module")
    ]
    print_table(["", *world.columns], rows)
    print(
        f"{training['steps']} steps ({training['ended']}), {training['cpu_s']:.0f} CPU s, "
        f"{training['trained_tokens']} tokens trained, {measured['bytes']} bytes, teacher right "
        f"{training['teacher_share']:.2f}"
    )


def bars_of(world: World, measured: Mapping[str, Any]) -> list[Bar]:
    base, module = measured["shares"]["base"], measured["shares"]["module"]
    cpu_s = measured["training"]["cpu_s"]

    def kept(column: str) -> float:
        return float(module[column] / base[column]) if base[column] else 1.0

    name = world.name
    if name == "demo":
        return [
            Bar("demo recall", module["recall"], at_least=0.90),
            *(Bar(f"demo {column} / base", kept(column), at_least=0.95) for column in READING),
            Bar("demo distractors lost", base["distractors"] - module["distractors"], at_most=0.05),
            Bar("demo nothing lost", base["nothing"] - module["nothing"], at_most=0.05),
            Bar("demo CPU seconds", cpu_s, at_most=90),
        ]
    asked = len(world.columns["general"])
    with_memory = measured["shares"]["with_memory"]["paraphrase"]
    return [
        Bar("smollm2 recall", module["recall"], at_least=0.85),
        Bar("smollm2 paraphrases", module["paraphrase"], at_least=with_memory),
        Bar("smollm2 general answers lost", (base["general"] - module["general"]) * asked, at_most=2),
        Bar("smollm2 text wins / base", kept("text_wins"), at_least=0.9),
        Bar("smollm2 leak", module["leak"], at_most=0.3),
        Bar("smollm2 CPU seconds", cpu_s, at_most=300),
    ]


if __name__ == "__main__":
    sys.exit(main())
