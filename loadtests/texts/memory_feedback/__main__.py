"""Whether answers get better by outcomes that are told, through the public API.

A real memserve with one worker. Case memory: families of tasks where the past case that is most like the task
has the wrong action; after every answer the outcome is recorded, or it is not. Reflections: a task fails, its
lesson is recorded, and the task comes again, or nothing is recorded. The demo model answers from what is
recalled; `--model smollm2` has SmolLM2-135M-Instruct try the tasks with reflections.

An answer is right when it contains the action or value as whole words.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, report
from loadtests.harness.real_models import smollm2
from loadtests.texts.memory_feedback.cases import Similarity, answer_cases, case_figures, families
from loadtests.texts.memory_feedback.reflections import (
    FEEDBACK_OFF,
    FEEDBACK_ON,
    MISLED,
    NOTHING_KNOWN,
    demo_tasks,
    plain_tasks,
    reflection_figures,
    retry_all,
    row_name,
)
from loadtests.texts.memory_recall.measuring import Figures, print_figures
from loadtests.texts.memory_recall.serving import serving
from memserve.memory.texts.embedding import BertEmbedder

SEED = 19
DEMO, PLAIN = "demo", "smollm2"
TENANT = "learner"
MISLEADING, PLAIN_FAMILIES = 60, 20
QUICK_MISLEADING, QUICK_PLAIN_FAMILIES = 24, 6
ROUNDS, QUICK_ROUNDS = 8, 6
TASKS, QUICK_TASKS, PLAIN_TASKS = 24, 4, 6
CASE_GAIN_LEAST, CASE_LOSS_MOST = 0.3, 0.05
AGAIN_GAIN_LEAST, PLAIN_AGAIN_GAIN_LEAST, REFLECTION_FIRST_LEAST = 0.7, 0.4, 0.95


def similarity() -> Similarity:
    """By the bundled embedder, as memserve has it by default."""
    embedder = BertEmbedder()

    def of(cases: Sequence[str], tasks: Sequence[str]) -> list[float]:
        cosines = embedder.embed(cases) @ embedder.embed(tasks, query=True).T
        return [float(row.mean()) for row in cosines]

    return of


def case_bars(misled: Figures, plain: Figures) -> list[Bar]:
    first, *_, last = misled.values()
    plain_first, *_, plain_last = plain.values()
    return [
        Bar(
            "misleading cases, last round: right with feedback − without",
            last["right_on"] - last["right_off"],
            at_least=CASE_GAIN_LEAST,
        ),
        Bar(
            "misleading cases, with feedback: right in the last round − in the first",
            last["right_on"] - first["right_on"],
            at_least=CASE_GAIN_LEAST,
        ),
        Bar(
            "other cases, with feedback: right in the first round − in the last",
            plain_first["right_on"] - plain_last["right_on"],
            at_most=CASE_LOSS_MOST,
        ),
    ]


def reflection_bars(name: str, figures: Figures, gain_least: float) -> list[Bar]:
    bars = []
    for kind in (NOTHING_KNOWN, MISLED):
        on, off = (figures[row_name(kind, 1, feedback)] for feedback in (FEEDBACK_ON, FEEDBACK_OFF))
        bars += [
            Bar(
                f"{name}, {kind}: right when tried again, with feedback − without",
                on["right_again"] - off["right_again"],
                at_least=gain_least,
            ),
            Bar(
                f"{name}, {kind}: the reflection is recalled first",
                on["reflection_first"],
                at_least=REFLECTION_FIRST_LEAST,
            ),
        ]
    return bars


def run_demo(quick: bool) -> tuple[list[Bar], dict[str, object]]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    counts = (QUICK_MISLEADING, QUICK_PLAIN_FAMILIES) if quick else (MISLEADING, PLAIN_FAMILIES)
    with serving([TENANT]) as clients:
        tries = answer_cases(clients[TENANT], families(SEED, *counts, rounds, similarity()), rounds)
        report("reflections")
        retried = retry_all(clients[TENANT], *demo_tasks(SEED, QUICK_TASKS if quick else TASKS))
    misled, plain = case_figures(tries, misleading=True), case_figures(tries, misleading=False)
    reflected = reflection_figures(retried)
    print_figures(f"round, {counts[0]} misleading families", misled)
    print_figures(f"round, {counts[1]} other families", plain)
    print_figures("demo model, tasks tried again", reflected)
    bars = [*case_bars(misled, plain), *reflection_bars("demo model", reflected, AGAIN_GAIN_LEAST)]
    return bars, {"misleading": misled, "other": plain, "reflections": reflected}


def run_plain() -> tuple[list[Bar], dict[str, object]]:
    with serving([TENANT], model=str(smollm2())) as clients:
        retried = retry_all(clients[TENANT], *plain_tasks(SEED, PLAIN_TASKS))
    reflected = reflection_figures(retried)
    print_figures("SmolLM2-135M-Instruct, tasks tried again", reflected)
    return reflection_bars("SmolLM2-135M-Instruct", reflected, PLAIN_AGAIN_GAIN_LEAST), {
        "smollm2_reflections": reflected
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser(Path(__file__).parent.name, __doc__)
    options.add_argument("--model", choices=(DEMO, PLAIN), default=DEMO, help="which model answers")
    chosen = options.parse_args(arguments)
    bars, figures = run_plain() if chosen.model == PLAIN else run_demo(chosen.quick)
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
