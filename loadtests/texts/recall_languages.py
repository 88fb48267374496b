"""Recall in twelve languages: with the bundled embedding model, which knows English, and with a multilingual
one.

A real vector memory over Milvus Lite, with a namespace for each language. Each of its ten memories is asked
for in its own language, in other words than its own. The figures are the shares of questions whose memory is
the first found, and among the first five. The multilingual model is multilingual-e5-small, as `--embedder`
takes it, made from a wheel (`loadtests.harness.real_models`).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.languages import FACTS
from loadtests.harness.real_models import multilingual_e5
from loadtests.harness.redis_server import PrivateRedis
from memserve.domain import NewMemory, SearchQuery
from memserve.memory.texts.embedder_files import open_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory

TENANT = "acme"
FOUND_IN = 5
RECALL_LEAST = 0.9
LANGUAGES_LEAST = 8
TIMEOUT_S = 60.0
SYNCED = ("--appendfsync", "always")
QUICK_FACTS = 5


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of the questions whose memory was the first found, and among the first FOUND_IN."""

    first: float
    among: float


async def recall(embedder: BertEmbedder, facts: int) -> dict[str, Recall]:
    """By language, with this number of facts of each."""
    recalls: dict[str, Recall] = {}
    with (
        tempfile.TemporaryDirectory(prefix="memserve-languages-") as name,
        PrivateRedis(Path(name), "--appendonly", "yes", *SYNCED) as redis,
    ):
        memory = await VectorMemory.open(str(Path(name) / "memories.db"), embedder, redis.url)
        try:
            for language, pairs in FACTS.items():
                namespace = language.lower()
                for number, (text, _) in enumerate(pairs):
                    await memory.remember(TENANT, NewMemory(namespace, text, memory_id=str(number)))
                ranks = []
                for number, (_, question) in enumerate(pairs[:facts]):
                    query = SearchQuery((namespace,), question, len(pairs))
                    found = await memory.search(TENANT, query, TIMEOUT_S)
                    ranks.append([hit.memory.memory_id for hit in found.hits].index(str(number)))
                recalls[language] = Recall(
                    ranks.count(0) / len(ranks), sum(rank < FOUND_IN for rank in ranks) / len(ranks)
                )
        finally:
            await memory.close()
    return recalls


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("recall_languages", __doc__).parse_args(arguments)
    facts = QUICK_FACTS if chosen.quick else max(map(len, FACTS.values()))
    report("the multilingual model")
    multilingual = BertEmbedder(open_embedder(multilingual_e5()))
    report("the bundled model")
    before = asyncio.run(recall(BertEmbedder(), facts))
    after = asyncio.run(recall(multilingual, facts))
    print_table(
        ("language", "bundled (English): first", "among five", "multilingual-e5-small: first", "among five"),
        [
            (
                language,
                *(
                    f"{share:.1f}"
                    for recalls in (before, after)
                    for share in (recalls[language].first, recalls[language].among)
                ),
            )
            for language in FACTS
        ],
    )
    worse = [language for language in FACTS if after[language].among < before[language].among]
    bars = [
        Bar("languages", len(after), at_least=LANGUAGES_LEAST),
        Bar(
            "recall at 5, mean of the languages, multilingual",
            mean(recall.among for recall in after.values()),
            at_least=RECALL_LEAST,
        ),
        Bar(
            "languages in which the multilingual model finds less than the bundled one at 5",
            len(worse),
            at_most=0,
        ),
        Bar("recall at 5 of English, bundled", before["English"].among, at_least=RECALL_LEAST),
    ]
    figures: dict[str, object] = {
        name: {language: asdict(recall) for language, recall in recalls.items()}
        for name, recalls in (("bundled", before), ("multilingual", after))
    }
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
