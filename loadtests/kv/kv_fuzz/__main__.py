"""The reader of Redis's replies, the stored value and the chunks encoded in it, fed with made-up and damaged
bytes for ten minutes.

Hypothesis puts streams together from replies, damaged ones and noise; atheris (libFuzzer) changes bytes where
that reaches new code. Each gets half of the time, in processes of their own, so that whatever a fuzzer does
to one is counted and not suffered. Both feed the same checks. A crash is any exception but the declared one,
or the end of the process; a hang is a case without an end; a wrong value is one that is accepted and is not,
byte for byte, what was stored under its key, or replies that depend on where the stream was split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loadtests.harness.figures import Bar, finish, parser, print_table
from loadtests.kv.kv_fuzz.fuzzers import CHECKS, PROGRAMS, Count, run_fuzzer

SECONDS, QUICK_SECONDS = 600, 36


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_fuzz", __doc__).parse_args(arguments)
    lasts_s = QUICK_SECONDS if chosen.quick else SECONDS
    parts = [(fuzzer, check) for check in CHECKS for fuzzer in PROGRAMS]
    counts = {
        f"{fuzzer}, {check}": run_fuzzer(fuzzer, check, lasts_s / len(parts)) for fuzzer, check in parts
    }
    columns = ("fuzzer", "cases", "values accepted", "refused", "crashes", "hangs", "wrong values")
    print_table(columns, [(name, *(f"{number:,}" for number in row)) for name, row in counts.items()])
    bars = [
        Bar(name, sum(row[count] for row in counts.values()), at_most=0)
        for name, count in (("crashes", Count.CRASHES), ("hangs", Count.HANGS), ("wrong values", Count.WRONG))
    ]
    for count, name in ((Count.ACCEPTED, "accepted"), (Count.REFUSED, "refused")):
        bars.append(
            Bar(
                f"values {name}, by the fuzzer that reached fewest",
                min(row[count] for row in counts.values()),
                at_least=1,
            )
        )
    named = {name: {count.name.lower(): row[count] for count in Count} for name, row in counts.items()}
    return finish(bars, {"seconds": lasts_s, "counts": named}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
