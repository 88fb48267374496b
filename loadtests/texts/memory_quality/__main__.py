"""Quality of the search of text memories, on generated questions with known answers.

Seven languages in six scripts. Questions share words with a fact or none, name a code or date in another
spelling, have a typing error in a name, ask for a fact that has changed, or have no answer. The dense half is
the bundled embedder, which knows English. `fit` fits the coefficients of relevance to other questions, and
prints them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.texts.memory_quality.eastern import ARABIC, CHINESE, JAPANESE, THAI
from loadtests.texts.memory_quality.european import ENGLISH, GERMAN, RUSSIAN
from loadtests.texts.memory_quality.fitting import fit_logistic, reliability
from loadtests.texts.memory_quality.measuring import (
    ARMS,
    DENSE,
    FOUND_IN,
    HYBRID,
    WORDS,
    Measured,
    embedded,
    measure,
)
from loadtests.texts.memory_quality.questions import CHANGES, NOW_S, generate
from loadtests.texts.memory_quality.searching import ExactSearcher
from memserve.memory.texts.embedding import BertEmbedder
from memserve.policy.recall.choosing import usable_at
from memserve.policy.recall.ranking import query_terms, score_words
from memserve.policy.recall.relevance import (
    BUNDLED,
    FEATURES,
    WORD_FEATURES,
    RelevanceModel,
    RelevanceModels,
    features_of,
)
from memserve.policy.recall.versions import subjects_of

TONGUES = (ENGLISH, GERMAN, RUSSIAN, CHINESE, JAPANESE, ARABIC, THAI)
SEED, FIT_SEED = 19, 7
NAMES, QUICK_NAMES = 40, 20
THRESHOLD = 0.5
ECE_MOST = 0.05
NEWEST_LEAST = 0.95
_FIT_HITS = FOUND_IN


def share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def measure_all(names: int, seed: int) -> dict[str, Measured]:
    """By tongue."""
    embedder = BertEmbedder()
    measured = {}
    for tongue in TONGUES:
        made = generate(tongue, seed=seed, names=names, held_out=True)
        report(f"{tongue.name}: {len(made.memories)} memories")
        vectors = embedded(made.questions, embedder, report)
        measured[tongue.name] = measure(made, ExactSearcher(made.memories, embedder, BUNDLED), vectors)
    return measured


def run(names: int, as_json: bool) -> int:
    measured = measure_all(names, SEED)
    bars: list[Bar] = []
    recalls = {name: {arm: share(found.found[arm]) for arm in ARMS} for name, found in measured.items()}
    print_table(
        (f"recall@{FOUND_IN}", *ARMS),
        [(name, *(f"{recall[arm]:.3f}" for arm in ARMS)) for name, recall in recalls.items()],
    )
    kinds = list(dict.fromkeys(kind for found in measured.values() for _, kind in found.found_by_kind))
    print_table(
        ("dense / words / hybrid", *kinds),
        [
            (
                name,
                *(
                    " ".join(f"{share(found.found_by_kind[arm, kind]):.2f}" for arm in (DENSE, WORDS, HYBRID))
                    for kind in kinds
                ),
            )
            for name, found in measured.items()
        ],
    )
    for name, recall in recalls.items():
        gain = recall[HYBRID] - max(recall[DENSE], recall[WORDS])
        bars.append(Bar(f"{name}: hybrid above the better half", gain, at_least=1e-9))
    newest = {
        how: share([right for found in measured.values() for right in found.newest[how]]) for how in CHANGES
    }
    bars += [
        Bar(f"newest valid memory first, {how}", newest[how], at_least=NEWEST_LEAST) for how in CHANGES[:2]
    ]
    print(f"newest valid memory first, {CHANGES[2]}: {newest[CHANGES[2]]:.3f} (no bar)")
    abstention = _abstention(measured)
    hits = [hit for found in measured.values() for hit in found.hits]
    of_hits = reliability([relevance for relevance, _ in hits], [right for _, right in hits])
    print_table(
        ("relevance", "hits", "mean", "observed"),
        [(bounds, count, f"{mean:.3f}", f"{seen:.3f}") for bounds, count, mean, seen in of_hits.rows],
    )
    of_first = reliability(
        *zip(*[hit for found in measured.values() for hit in found.first_hits], strict=True)
    )
    bars.append(Bar("calibration error (ECE) of hits", of_hits.ece, at_most=ECE_MOST))
    print(f"calibration error (ECE) of first hits alone: {of_first.ece:.3f} (no bar)")
    questions = sum(len(found.first) for found in measured.values())
    ranking_ms = 1e3 * sum(found.ranking_s for found in measured.values()) / questions
    print(f"Brier score {of_hits.brier:.4f}; ranking a question takes {ranking_ms:.2f} ms of processor time")
    figures: dict[str, object] = {
        "recall": recalls,
        "newest": newest,
        "abstention": abstention,
        "ece": of_hits.ece,
        "ece_first": of_first.ece,
        "brier": of_hits.brier,
        "ranking_ms": ranking_ms,
        "questions": questions,
    }
    return finish(bars, figures, as_json)


def _abstention(measured: dict[str, Measured]) -> dict[str, dict[str, float]]:
    """By tongue: how often a first hit above THRESHOLD is right, and how many answers are given."""
    figures = {}
    for name, found in measured.items():
        given = [right for relevance, right, _ in found.first if relevance >= THRESHOLD]
        answerable = [relevance >= THRESHOLD and right for relevance, right, has in found.first if has]
        silent = [relevance < THRESHOLD for relevance, _, has in found.first if not has]
        figures[name] = {
            "precision": share(given),
            "recall": share(answerable),
            "abstained": share(silent),
        }
    print_table(
        (f"first hit at relevance {THRESHOLD}", "right of given", "given and right of all", "silent of none"),
        [(name, *(f"{figure:.3f}" for figure in row.values())) for name, row in figures.items()],
    )
    return figures


def fit(names: int) -> int:
    """Fit to questions that `run` does not ask. Prints the coefficients as `relevance.py` has them."""
    embedder = BertEmbedder()
    asked = []
    for tongue in TONGUES:
        made = generate(tongue, seed=FIT_SEED, names=names, held_out=False)
        report(f"{tongue.name}: {len(made.memories)} memories")
        searcher = ExactSearcher(made.memories, embedder, BUNDLED)
        vectors = embedded(made.questions, embedder, report)
        for question, vector in zip(made.questions, vectors, strict=True):
            found = searcher.candidates(question.text, vector)  # type: ignore[arg-type]
            usable = [candidate for candidate in found.found if usable_at(candidate.memory, NOW_S) is None]
            words = [candidate.words or () for candidate in usable]
            scores = score_words(query_terms(question.text), words, found.statistics)
            labels = [candidate.memory.memory_id in question.subject for candidate in usable]
            subjects = subjects_of([candidate.memory for candidate in usable], scores, words)
            cosines = [candidate.cosine for candidate in usable]
            asked.append((question.text, (cosines, scores, subjects), labels))
    empty = RelevanceModel((0.0,) * (len(FEATURES) + 1))
    ones, twos = (RelevanceModel((value,) * (len(FEATURES) + 1)) for value in (1.0, 2.0))
    script = RelevanceModels(known=empty, spelt=ones, foreign=twos)
    for ranked_cosine in (False, True):
        for name in ("known", "spelt", "foreign"):
            by_question = [
                (_counted(features_of(*evidence, ranked_cosine=ranked_cosine), name), labels)
                for text, evidence, labels in asked
                if script.of(text) is getattr(script, name) and labels
            ]
            print(f"{'OTHER' if ranked_cosine else 'BUNDLED'}.{name} {_fitted(by_question)}")
    return 0


def _counted(features: list[list[float]], name: str) -> list[list[float]]:
    """The features, without those that say nothing of letters that the embedder cannot spell."""
    if name != "foreign":
        return features
    return [
        [0.0 if feature not in WORD_FEATURES else value for feature, value in zip(FEATURES, row, strict=True)]
        for row in features
    ]


def _fitted(by_question: Sequence[tuple[list[list[float]], list[bool]]]) -> tuple[float, ...]:
    """Fit to all candidates, then to those that the first fit puts first, because hits are of these."""
    rows = [pair for features, labels in by_question for pair in zip(features, labels, strict=True)]
    coefficients = fit_logistic([row for row, _ in rows], [label for _, label in rows])
    for _ in range(2):
        model = RelevanceModel(coefficients)
        rows = [
            pair
            for features, labels in by_question
            for pair in sorted(zip(features, labels, strict=True), key=lambda pair: -model.log_odds(pair[0]))[
                :_FIT_HITS
            ]
        ]
        coefficients = fit_logistic([row for row, _ in rows], [label for _, label in rows])
    return coefficients


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser(Path(__file__).parent.name, __doc__)
    options.add_argument("command", nargs="?", choices=("run", "fit"), default="run")
    chosen = options.parse_args(arguments)
    names = QUICK_NAMES if chosen.quick else NAMES
    return fit(names) if chosen.command == "fit" else run(names, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
