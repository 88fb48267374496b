"""10,000 random calls of every memory RPC by two tenants with the same ids, namespaces and documents.

Two tenants call one gateway at the same time. Each makes the same calls at a gateway that it has alone, and
both replies must be the same: texts, ids, counts, authors, sequences, usage, errors and scores. A third
tenant fills the shared gateway with a million of the words that everybody uses. Times and random ids are
left out, and figures that decay with time may differ by 0.2 %. A search looks at the best of each half only.
Where that cut differs, what both searches found is compared, and the reply is counted by itself. The RPCs are
found in the protos: an RPC without a generator ends the run.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table
from loadtests.texts.memory_isolation.calls import GENERATORS
from loadtests.texts.memory_isolation.running import run, shown
from loadtests.texts.memory_isolation.worlds import methods
from memserve.demo import MODEL_DIR

CALLS, QUICK_CALLS = 10_000, 2_000
CROWD, QUICK_CROWD = 800, 60
LEAST_ANSWERED = 0.4


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("memory_isolation", __doc__)
    options.add_argument("--seed", type=int, default=1, help="seed of the calls (default: 1)")
    options.add_argument(
        "--store", choices=("lite", "remote"), default="lite",
        help="Milvus Lite with the local index, or a `milvus-lite server` (default: lite)",
    )  # fmt: skip
    options.add_argument("--calls", type=int, default=0, help="of both tenants together (default: 10,000)")
    chosen = options.parse_args(arguments)
    if missing := methods().keys() - GENERATORS.keys():
        raise SystemExit(f"no generator draws {', '.join(sorted(missing))}")
    calls = chosen.calls or (QUICK_CALLS if chosen.quick else CALLS)
    with tempfile.TemporaryDirectory(prefix="isolation-") as folder:
        findings = asyncio.run(
            run(
                Path(folder), MODEL_DIR, calls=calls, seed=chosen.seed, store=chosen.store,
                crowd=QUICK_CROWD if chosen.quick else CROWD,
            )
        )  # fmt: skip
    shown(findings.crossings)
    shown(findings.internal)
    print_table(
        ("RPC", "calls", "answered"),
        [(name, findings.calls[name], findings.answered[name]) for name in sorted(findings.calls)],
    )
    made = findings.calls.total()
    bars = [
        Bar("crossings", len(findings.crossings), at_most=0),
        Bar("calls that ended INTERNAL or UNKNOWN", len(findings.internal), at_most=0),
        Bar("calls", made, at_least=calls // 2 * 2),
        Bar("RPCs that were never answered", _never(findings.answered), at_most=0),
        Bar("share answered, so that calls reach something", findings.answered.total() / made,
            at_least=LEAST_ANSWERED),
    ]  # fmt: skip
    print(f"searches that looked at other memories than the tenant's alone: {findings.other_candidates}")
    figures = {
        "other_candidates": findings.other_candidates,
        "calls": dict(findings.calls),
        "codes": dict(findings.codes),
        "store": chosen.store,
    }
    return finish(bars, figures, chosen.json)


def _never(answered: dict[str, int]) -> int:
    """A tenant's key may not reindex, which is every tenant's store: that one must be refused."""
    return sum(not answered.get(name) for name in methods() if name != "ReindexMemories")


if __name__ == "__main__":
    sys.exit(main())
