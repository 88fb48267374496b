"""The ladder's policy in simulation, over weeks of Zipf traffic beside other ways to keep documents.

Each week a part of the documents changes places in the order of popularity. A third of them has a fact that
changes once, a tenth has facts that change every few days. Every rung costs what was measured
(`loadtests/modules/ladder/costs.py` names the sources), and is ready after it has been made. All ways are
asked the same questions. `--quick`: one seed and three weeks.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.ladder.arms import AllPinned, AllText, Arm, Ladder, LeastRecent
from loadtests.modules.ladder.plot import plot
from loadtests.modules.ladder.traffic import Change, Document, documents, events
from loadtests.modules.ladder.weeks import Weeks, run
from memserve.domain.ladder import LadderBudget, Rung

MIB = 1 << 20
DOCUMENTS, QUESTIONS_A_DAY = 200, 2000
BUDGET = LadderBudget(512 * MIB, 4000.0)
"""The seconds are a day's: 5 % of one core."""


@dataclass(slots=True)
class Season:
    """All arms under one seed."""

    weeks: int
    of: dict[str, Weeks]
    ladder: Ladder
    changes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("ladder", __doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--weeks", type=int, default=8)
    options.add_argument("--plot", type=Path, help="write the first seed's days to this SVG file")
    chosen = options.parse_args(arguments)
    seeds, weeks = (1, 3) if chosen.quick else (chosen.seeds, chosen.weeks)
    if seeds < 1 or weeks < 2:
        options.error("--seeds must be at least 1, and --weeks at least 2")
    seasons = [season(seed, weeks) for seed in range(seeds)]
    show(seasons)
    if chosen.plot is not None:
        plot(seasons[0].of, BUDGET.resident_bytes, chosen.plot)
        report(f"{chosen.plot} has the days of seed 0")
    return finish(bars_of(seasons), figures_of(seasons), chosen.json)


def season(seed: int, weeks: int, count: int = DOCUMENTS, questions: int = QUESTIONS_A_DAY) -> Season:
    """Run every arm. count: of documents. questions: a day."""
    of = documents(count, random.Random(f"{seed}:documents"))
    happens = list(events(of, weeks, questions, random.Random(f"{seed}:events")))
    ladder = Ladder(of, BUDGET)
    ran: dict[str, Weeks] = {}
    for arm in _arms(of, ladder):
        ran[arm.name] = run(arm, of, happens)
        report(f"seed {seed}, {arm.name}: {len(happens)} questions and changes")
    return Season(weeks, ran, ladder, sum(isinstance(each, Change) for each in happens))


def _arms(of: list[Document], ladder: Ladder) -> list[Arm]:
    return [AllText(of), AllPinned(of), LeastRecent(of, BUDGET), ladder]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def all_s(ran: Weeks) -> float:
    """Seconds of all answers and of all making."""
    return ran.hot.seconds + ran.other.seconds + ran.making_s


def right_s(ran: Weeks) -> float:
    """The same for each right answer, which is what the policy saves."""
    return all_s(ran) / (ran.hot.right + ran.other.right)


def show(seasons: Sequence[Season]) -> None:
    """Print the table, and where the ladder's documents stand in the end."""
    rows = []
    for name in seasons[0].of:
        ran = [each.of[name] for each in seasons]
        rows.append(
            [
                name,
                f"{_mean([each.hot.mean_s for each in ran]):.3f}",
                f"{_mean([each.other.mean_s for each in ran]):.3f}",
                f"{_mean([each.hot.right_s for each in ran]):.2f}",
                f"{_mean([each.hot.tokens / each.hot.count for each in ran]):.0f}",
                f"{_mean([each.hot.right / each.hot.count for each in ran]):.2f}",
                f"{max(each.most_bytes for each in ran) / MIB:.0f}",
                f"{max(each.unasked_bytes for each in ran) / MIB:.0f}",
                f"{_mean([each.making_s for each in ran]) / (7 * seasons[0].weeks):.0f}",
                f"{_mean([all_s(each) for each in ran]) / (7 * seasons[0].weeks):.0f}",
            ]
        )
    print_table(
        [
            "way",
            "s, hot",
            "s, others",
            "s a right, hot",
            "tokens",
            "right",
            "most MiB",
            "unasked MiB",
            "make s/day",
            "all s/day",
        ],
        rows,
    )
    for rung, count in sorted(_stand(seasons).items(), key=lambda each: each[0].height):
        print(f"{count / len(seasons):.0f} of {DOCUMENTS} documents end as {rung}")
    moves = sum(len(each.ladder.moves) for each in seasons)
    print(
        f"{moves / len(seasons):.0f} moves and "
        f"{_mean([each.changes for each in seasons]):.0f} changes of facts; "
        f"{sum(each.ladder.stale_between for each in seasons)} answers from weights in the second "
        "between a change and its decision"
    )


def _stand(seasons: Sequence[Season]) -> Counter[Rung]:
    return sum((each.ladder.rungs() for each in seasons), Counter())


def bars_of(seasons: Sequence[Season]) -> list[Bar]:
    """What the ladder is for."""
    text, recent, ladder = AllText.name, LeastRecent.name, Ladder.name

    def ratio(other: str) -> float:
        return _mean([each.of[ladder].hot.mean_s / each.of[other].hot.mean_s for each in seasons])

    moves_a_week = _mean([len(each.ladder.moves) / each.weeks / DOCUMENTS for each in seasons])
    unasked = max(each.of[ladder].unasked_bytes for each in seasons)
    return [
        Bar("seconds of an answer about hot documents, the ladder ÷ all as text", ratio(text), at_most=0.2),
        Bar("the same ÷ KV of which the least recent leaves", ratio(recent), at_most=0.7),
        Bar(
            "seconds of all answers and of making for a right answer, the same",
            _mean([right_s(each.of[ladder]) / right_s(each.of[recent]) for each in seasons]),
            at_most=1.0,
        ),
        Bar(
            "share right about hot documents, the ladder less all as text",
            _mean(
                [
                    each.of[ladder].hot.right / each.of[ladder].hot.count
                    - each.of[text].hot.right / each.of[text].hot.count
                    for each in seasons
                ]
            ),
            at_least=0.0,
        ),
        Bar(
            "bytes of documents that nobody asked for in five days ÷ the budget, at most",
            unasked / BUDGET.resident_bytes,
            at_most=0.02,
        ),
        Bar(
            "stale answers from weights after the decision about a change",
            sum(each.of[ladder].stale for each in seasons),
            at_most=0,
        ),
        Bar(
            "facts that changed twice, distilled",
            sum(each.ladder.distilled_unstable for each in seasons),
            at_most=0,
        ),
        Bar(
            "bytes ÷ the budget, at most",
            max(each.ladder.most_bytes for each in seasons) / BUDGET.resident_bytes,
            at_most=1,
        ),
        Bar(
            "seconds of making in a day ÷ the budget, at most",
            max(each.ladder.most_spent_s for each in seasons) / BUDGET.make_s,
            at_most=1,
        ),
        Bar("moves of a document in a week", moves_a_week, at_most=1),
    ]


def figures_of(seasons: Sequence[Season]) -> dict[str, object]:
    """By plain names, means over the seeds."""
    figures: dict[str, object] = {"seeds": len(seasons), "weeks": seasons[0].weeks}
    for name in seasons[0].of:
        ran = [each.of[name] for each in seasons]
        figures[name] = {
            "hot_answer_s": _mean([each.hot.mean_s for each in ran]),
            "other_answer_s": _mean([each.other.mean_s for each in ran]),
            "hot_right_answer_s": _mean([each.hot.right_s for each in ran]),
            "hot_tokens": _mean([each.hot.tokens / each.hot.count for each in ran]),
            "hot_right": _mean([each.hot.right / each.hot.count for each in ran]),
            "most_mib": max(each.most_bytes for each in ran) / MIB,
            "unasked_mib": max(each.unasked_bytes for each in ran) / MIB,
            "making_s": _mean([each.making_s for each in ran]),
            "all_s": _mean([all_s(each) for each in ran]),
            "all_right_s": _mean([right_s(each) for each in ran]),
        }
    figures["end_on"] = {str(rung): count / len(seasons) for rung, count in _stand(seasons).items()}
    return figures


if __name__ == "__main__":
    sys.exit(main())
