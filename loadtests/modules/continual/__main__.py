"""Documents A, B and C are distilled one after the other: what is left of the earlier ones, by each way.

- a module each, and the right one is asked
- one LoRA that is trained on, with the earlier memories asked again (`modules distil --from`), and without
- the modules merged, by each method of `modules compose`

Held-out questions of each document are asked, what must be read or admitted, and passages that contradict.
Each version that is trained on faces the gate's rules. On the demo model, by transformers, on one thread.
`--quick`: two small documents and fewer merges.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.continual.documents import Document, documents
from loadtests.modules.distil.worlds import Asked
from memserve.demo import MODEL_DIR
from memserve.domain import GateFigure, Recipe
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.probes import Probes, parse_probes
from memserve.policy.modules.gate import Answer, Match, confidence, failing, judge, right
from memserve.policy.modules.kept_knowledge import what_it_knew
from memserve.worker.training.compose import Composed, compose
from memserve.worker.training.distil.distil import distil
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.prompts import Prompts, Row
from memserve.worker.training.distil.teacher import Teacher
from memserve.worker.training.parent import Parent

MERGES = ("linear", "svd", "cat", "ties", "dare", "core")
QUICK_MERGES = ("svd", "core")
MAX_RANK = 48
KEPT = 0.95
"""Of what was recalled when it was learned."""
ABSTAINING = ("distractors", "nothing")


@dataclass(slots=True)
class Version:
    """A LoRA in a folder."""

    folder: Path
    cpu_s: float
    probes: Probes
    figures: tuple[GateFigure, ...] = ()
    documents: tuple[Document, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return all(figure.holds for figure in self.figures)

    @property
    def kept(self) -> tuple[GateFigure, ...]:
        """What the gate says of earlier documents."""
        return tuple(figure for figure in self.figures if figure.name.startswith("kept."))


class Continual:
    """Trains, merges and asks."""

    def __init__(self, scratch: Path, seed: int, recipe: Recipe, budget_s: float) -> None:
        self._scratch = scratch
        self._seed = seed
        self._recipe = recipe
        self._budget_s = budget_s
        self._prompts = Prompts(MODEL_DIR)
        self._base = self._model(None)

    def learned(
        self, name: str, new: Document, before: Version | None = None, *, replay: bool = True
    ) -> Version:
        """Distil a document, into a new LoRA or into one that goes on."""
        old = tuple(text for each in before.documents for text in each.memories) if before and replay else ()
        recipe = self._recipe if replay else replace(self._recipe, old_share=0.0)
        parent = Parent("0" * 64, before.folder) if before else None
        order = DistilOrder(
            MODEL_DIR, new.memories, recipe=recipe, seed=self._seed, budget_s=self._budget_s,
            parent=parent, old_texts=old,
        )  # fmt: skip
        folder = self._scratch / name
        folder.mkdir()
        made: Distilled | None = None
        for event in distil(order, folder):
            if isinstance(event, Distilled):
                made = event
            elif event.done % 50 == 0:
                report(f"{name}: {event.stage} {event.done}/{event.total}, {event.cpu_s:.0f} s")
        assert made is not None
        for file, content in made.files.items():
            (folder / file).write_bytes(content)
        probes = parse_probes(made.files[PROBES_FILE])
        if before:
            measured = {figure.name: figure.module for figure in before.figures}
            kept = what_it_knew("before", len(before.documents), before.probes.sets, measured)
            probes = Probes((*probes.sets, *kept), probes.thresholds)
        documents = (*(before.documents if before else ()), new)
        version = Version(folder, made.report["cpu_s"], probes, documents=documents)
        version.figures = self._judged(probes, folder)
        report(
            f"{name}: the gate {'passes it' if version.passed else 'refuses it: ' + failing(version.figures)}"
        )
        return version

    def merged(self, method: str, parents: Sequence[Version]) -> Path:
        """The folder of the composition, with equal weights of 1."""
        folder = self._scratch / f"merged-{method}"
        folder.mkdir()
        given = [Parent(f"{place}" * 64, each.folder) for place, each in enumerate(parents)]
        for event in compose(given, method, seed=self._seed, max_rank=MAX_RANK):
            if isinstance(event, Composed):
                for name, content in event.files.items():
                    (folder / name).write_bytes(content)
        return folder

    def shares(self, folder: Path | None, asked: Mapping[str, Sequence[Asked]]) -> dict[str, float]:
        """The shares of right answers, by column. folder: None for the base."""
        model = self._base if folder is None else self._model(folder)
        teacher = Teacher(model, 0, self._prompts.end_ids)
        shares = {}
        for column, questions in asked.items():
            answers = teacher.answers(
                [self._prompts.prompt(each.question, each.passages) for each in questions]
            )
            hits = [
                right(self._prompts.text(answer), each.right, Match.CONTAINS)
                for answer, each in zip(answers, questions, strict=True)
            ]
            shares[column] = sum(hits) / len(hits)
        return shares

    def _judged(self, probes: Probes, folder: Path) -> tuple[GateFigure, ...]:
        base, module = self._answers(probes, self._base), self._answers(probes, self._model(folder))
        return judge(probes.sets, probes.thresholds, base, module)

    def _answers(self, probes: Probes, model: Any) -> list[Answer]:
        teacher = Teacher(model, 0, self._prompts.end_ids)
        asked = [probe for each in probes.sets for probe in each.probes]
        prompts = [self._prompts.prompt(probe.question, probe.passages) for probe in asked]
        answers = teacher.answers(prompts)
        told = teacher.told([Row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
        return [
            Answer(self._prompts.text(answer), confidence(each.logprobs[:, 0].tolist()))
            for answer, each in zip(answers, told, strict=True)
        ]

    def _model(self, folder: Path | None) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype="auto").eval()
        return (
            base if folder is None else PeftModel.from_pretrained(base, str(folder)).eval().get_base_model()
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("continual", __doc__)
    options.add_argument("--seed", type=int, default=0, help="of facts, self-study and training (default: 0)")
    options.add_argument("--steps", type=int, default=0, help="of each training; 0: the recipe's own")
    options.add_argument("--facts", type=int, default=0, help="of each document; 0: 16, of --quick 6")
    options.add_argument("--budget-s", type=float, default=0, help="processor seconds of each training")
    chosen = options.parse_args(arguments)
    count = 2 if chosen.quick else 3
    facts_each = chosen.facts or (6 if chosen.quick else 16)
    recipe = (
        Recipe(steps=chosen.steps or 110, rows=16, fresh=0.2, fact_share=0.6)
        if chosen.quick
        else Recipe(steps=chosen.steps or 350)
    )
    asked, reading = documents(chosen.seed, count, facts_each)
    columns = {each.name: each.recall for each in asked} | reading.columns
    with tempfile.TemporaryDirectory(prefix="memserve-continual-") as scratch:
        continual = Continual(
            Path(scratch), chosen.seed, recipe, chosen.budget_s or (40.0 if chosen.quick else 90.0)
        )
        ways, versions = measure(continual, asked, columns, QUICK_MERGES if chosen.quick else MERGES)
    show(ways, versions, asked)
    return finish(bars_of(ways, versions, asked), {"ways": ways, "gate": verdicts(versions)}, chosen.json)


def measure(
    continual: Continual,
    asked: Sequence[Document],
    columns: Mapping[str, Sequence[Asked]],
    merges: Sequence[str],
) -> tuple[dict[str, dict[str, float]], dict[str, Version]]:
    """Shares by way and column, and the versions that were trained."""
    first = continual.learned("A", asked[0])
    own = [first, *(continual.learned(each.name, each) for each in asked[1:])]
    replayed = first
    chain: dict[str, Version] = {each.documents[0].name: each for each in own}
    for document in asked[1:]:
        replayed = continual.learned(f"{document.name}-replay", document, replayed)
        chain[f"{document.name}-replay"] = replayed
    # One document more is enough to show what is forgotten.
    forgetting = continual.learned(f"{asked[1].name}-no-replay", asked[1], first, replay=False)
    chain[f"{asked[1].name}-no-replay"] = forgetting
    ways = {"base": continual.shares(None, columns)}
    each_own = [continual.shares(version.folder, columns) for version in own]
    names = [document.name for document in asked]
    ways["a module each"] = {
        column: each_own[names.index(column)][column] if column in names else min(s[column] for s in each_own)
        for column in columns
    }
    ways["one LoRA, replay"] = continual.shares(replayed.folder, columns)
    ways[f"A, then {asked[1].name}, no replay"] = continual.shares(forgetting.folder, columns)
    for method in merges:
        ways[f"merged, {method}"] = continual.shares(continual.merged(method, own), columns)
    return ways, chain


def verdicts(versions: Mapping[str, Version]) -> dict[str, object]:
    return {
        name: {
            "passed": each.passed,
            "failing": failing(each.figures),
            "kept": {figure.name: figure.module for figure in each.kept},
            "cpu_s": each.cpu_s,
        }
        for name, each in versions.items()
    }


def show(
    ways: Mapping[str, Mapping[str, float]], versions: Mapping[str, Version], asked: Sequence[Document]
) -> None:
    columns = list(ways["base"])
    rows = [
        [way, *(f"{shares[column]:.2f}" for column in columns), f"{kept_share(ways, way, asked):.2f}"]
        for way, shares in ways.items()
    ]
    print_table(["", *columns, "earlier kept"], rows)
    for name, version in versions.items():
        verdict = "passed" if version.passed else f"refused: {failing(version.figures)}"
        print(f"{name}: {version.cpu_s:.0f} CPU s; the gate: {verdict}")


def kept_share(ways: Mapping[str, Mapping[str, float]], way: str, asked: Sequence[Document]) -> float:
    """The worst of the earlier documents: recall by this way, of the recall when it was learned."""
    learned = ways["a module each"]
    return min(ways[way][each.name] / (learned[each.name] or 1.0) for each in asked[:-1])


def bars_of(
    ways: Mapping[str, Mapping[str, float]], versions: Mapping[str, Version], asked: Sequence[Document]
) -> list[Bar]:
    trained = [name for name in versions if name.endswith("-replay") and not name.endswith("-no-replay")]
    without = [name for name in versions if name.endswith("-no-replay")]
    one = ("one LoRA, replay", *(way for way in ways if way.startswith("merged")))
    last = ways["one LoRA, replay"][asked[-1].name] / (ways["a module each"][asked[-1].name] or 1.0)
    refused = [any(not figure.holds for figure in versions[name].kept) for name in without]
    held = [figure.holds for name in trained for figure in versions[name].kept]
    best = max(kept_share(ways, way, asked) for way in one)
    return [
        Bar("earlier recall kept, by one module", best, at_least=KEPT),
        Bar("newest recall, trained on with replay / by itself", last, at_least=KEPT),
        Bar(
            "refused for what they forgot, of those without replay", sum(refused) / len(refused), at_least=1.0
        ),
        Bar("kept sets that hold, with replay", sum(held) / len(held), at_least=1.0),
    ]


if __name__ == "__main__":
    sys.exit(main())
