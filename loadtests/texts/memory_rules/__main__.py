"""The rules for duplicates and contradictions: what they say wrongly, and what they miss.

Seeded pairs of memories in English, German, Chinese, Japanese and Arabic, made from sentences with a subject
and a value: other spellings, orders and words for the same, other numbers, dates and names, negations, and
near-misses that are neither (another subject, more detail, something else of the same subject, one more
value, another time). The cosines are the bundled embedding model's. The rules were made with the tuning
sentences. The bars hold for the other sentences, which the rules were not changed for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.texts.memory_rules.frames import HELD_OUT, TUNING
from loadtests.texts.memory_rules.pairs import Pair, pairs_of
from memserve.domain.memories import FindingKind
from memserve.memory.texts.embedding import BertEmbedder
from memserve.policy.recall.duplicates import Candidate, findings_of, word_overlap

Vector = npt.NDArray[np.float32]

SEED = 19
ROUNDS, QUICK_ROUNDS = 20, 3
EMBED_AT_ONCE = 64
CONTRADICTIONS = (FindingKind.CONTRADICTION, FindingKind.UPDATE)


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair, and what the rules say of it."""

    pair: Pair
    said: FindingKind | None

    @property
    def is_right(self) -> bool:
        return self.said is self.pair.expected

    @property
    def false_merge(self) -> bool:
        return self.said is FindingKind.DUPLICATE and self.pair.expected is not FindingKind.DUPLICATE

    @property
    def false_contradiction(self) -> bool:
        return self.said in CONTRADICTIONS and self.pair.expected not in CONTRADICTIONS


def judge(pairs: Sequence[Pair], embedder: BertEmbedder) -> list[Judged]:
    texts = sorted({memory.text for pair in pairs for memory in (pair.old, pair.new)})
    vectors: dict[str, Vector] = {}
    for start in range(0, len(texts), EMBED_AT_ONCE):
        batch = texts[start : start + EMBED_AT_ONCE]
        vectors.update(zip(batch, embedder.embed(batch), strict=True))
    judged = []
    for pair in pairs:
        cosine = float(np.dot(vectors[pair.old.text], vectors[pair.new.text]))
        old, new = replace(pair.old, memory_id="old"), replace(pair.new, memory_id="new")
        candidate = Candidate(old, cosine, word_overlap(pair.old.text, pair.new.text))
        findings = findings_of(new, [candidate])
        judged.append(Judged(pair, findings[0].kind if findings else None))
    return judged


def rates(judged: Sequence[Judged]) -> dict[str, float]:
    """Shares, each of the pairs that it could be wrong for."""
    duplicates = [each for each in judged if each.pair.expected is FindingKind.DUPLICATE]
    contradictions = [each for each in judged if each.pair.expected in CONTRADICTIONS]
    others = [each for each in judged if each.pair.expected is not FindingKind.DUPLICATE]
    consistent = [each for each in judged if each.pair.expected not in CONTRADICTIONS]
    merged = [each for each in judged if each.said is FindingKind.DUPLICATE]
    opposed = [each for each in judged if each.said in CONTRADICTIONS]
    return {
        "false_merges": share([each.false_merge for each in others]),
        "missed_duplicates": share([each.said is not FindingKind.DUPLICATE for each in duplicates]),
        "false_contradictions": share([each.false_contradiction for each in consistent]),
        "missed_contradictions": share([each.said not in CONTRADICTIONS for each in contradictions]),
        "duplicate_precision": share([not each.false_merge for each in merged]),
        "duplicate_recall": share([each.said is FindingKind.DUPLICATE for each in duplicates]),
        "contradiction_precision": share([not each.false_contradiction for each in opposed]),
        "contradiction_recall": share([each.said in CONTRADICTIONS for each in contradictions]),
    }


def share(truths: Sequence[bool]) -> float:
    return sum(truths) / max(1, len(truths))


def print_by(judged: Sequence[Judged], column: str) -> dict[str, dict[str, float]]:
    """A table with a row for each kind of pair, or for each language."""
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        groups.setdefault(each.pair.kind if column == "kind" else each.pair.language, []).append(each)
    print_table(
        (column, "pairs", "right", "false merges", "false contradictions", "missed"),
        [
            (
                name,
                len(group),
                f"{share([each.is_right for each in group]):.3f}",
                sum(each.false_merge for each in group),
                sum(each.false_contradiction for each in group),
                sum(each.said is None and each.pair.expected is not None for each in group),
            )
            for name, group in groups.items()
        ],
    )
    print()
    return {name: {"pairs": len(group), **rates(group)} for name, group in groups.items()}


def print_errors(judged: Sequence[Judged]) -> None:
    wrong = {
        (e.pair.kind, e.pair.language, e.pair.old.text, e.pair.new.text, str(e.said))
        for e in judged
        if not e.is_right
    }
    for kind, language, old, new, said in sorted(wrong):
        report(f"{language}, {kind}: said {said} of {old} / {new}")


def _options() -> argparse.ArgumentParser:
    options = parser("memory_rules", __doc__)
    options.add_argument(
        "--errors", action="store_true", help="list every wrong pair of the tuning sentences"
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = _options().parse_args(arguments)
    rounds = QUICK_ROUNDS if chosen.quick else ROUNDS
    embedder = BertEmbedder()
    report("the sentences that the rules were made with")
    tuning = judge(pairs_of(TUNING, rounds, SEED), embedder)
    if chosen.errors:
        print_errors(tuning)
    report("the held-out sentences")
    held_out = judge(pairs_of(HELD_OUT, rounds, SEED + 1), embedder)
    print("Held-out sentences")
    by_kind = print_by(held_out, "kind")
    by_language = print_by(held_out, "language")
    tuned, measured = rates(tuning), rates(held_out)
    print_table(
        ("share", "tuning", "held out"),
        [(name, f"{tuned[name]:.3f}", f"{measured[name]:.3f}") for name in measured],
    )
    bars = [
        Bar("false merges", measured["false_merges"], at_most=0.01),
        Bar("duplicates missed", measured["missed_duplicates"], at_most=0.25),
        Bar("contradictions missed", measured["missed_contradictions"], at_most=0.25),
        Bar("false contradictions", measured["false_contradictions"], at_most=0.05),
    ]
    figures: dict[str, object] = {
        "pairs": len(held_out),
        "tuning": tuned,
        "held_out": measured,
        "by_kind": by_kind,
        "by_language": by_language,
    }
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
