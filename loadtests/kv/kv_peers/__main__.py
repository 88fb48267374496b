"""A prefix that only the store holds: TTFT with memserve's Redis tier against LMCache on Redis and against
vLLM's file-system tier.

One real vLLM engine an arm, on the same cores with the same thread binding and a model of a 0.5B shape. Every
arm is asked a prompt cold and stores it. Then, in every round, the engine of each arm in turn forgets it and
is asked again (remote hit) and once more (local hit). A figure is the median of the rounds' ratios.

LMCache (`python -m loadtests.install_lmcache`) runs in its multi-process mode, its server beside the engine,
and moves the KV in and out of the engine's memory itself (`lmcache_driven`): of its ways on the CPU none is
quicker. Its server's memory is emptied before every remote hit. Its engine is vLLM as vLLM serves on the CPU,
with the model in a process of its own. A fourth arm gives LMCache the executor of memserve's workers, which
is quicker and not part of vLLM: what is then left between the two is what their stores make of it.

The file-system tier has memserve's executor, too, and takes the same path through host memory as memserve's,
in chunks of the same size, to files on disk in a temporary folder, or in the folder that `--files-in` names:
in /dev/shm, which is memory, nothing can be quicker, and nothing is shared with another machine.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtests.harness import install_lmcache
from loadtests.harness.engines import (
    prepare_environment,
    write_shape,
)
from loadtests.harness.figures import Bar, finish, parser, print_table, report

if TYPE_CHECKING:
    pass
from loadtests.kv.kv_peers.arms import FILES, LMCACHE, MEMSERVE, files_arm, lmcache_arm, memserve_arm
from loadtests.kv.kv_peers.rounds import measure, rows

AT_MOST = {FILES: 1.0, LMCACHE: 0.85}
MISSING = (
    "LMCache is not installed, its bar is not measured, the exit status will be 1: python -m "
    "loadtests.install_lmcache"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("kv_peers", __doc__)
    options.add_argument(
        "--files-in",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="folder for the file-system tier (default: %(default)s)",
    )
    chosen = options.parse_args(arguments)
    with_lmcache = not chosen.quick and install_lmcache.is_installed()
    if chosen.quick:
        report("LMCache is left out: three engines do not start in a minute")
    elif not with_lmcache:
        report(MISSING)
    prepare_environment()
    sizes, prompts, rounds = ((2080,), 1, 3) if chosen.quick else ((2080, 4128), 2, 10)
    figures: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = write_shape(folder / "model")
        report("starting the engines")
        arms = [memserve_arm(stack, model, folder), files_arm(stack, model, chosen.files_in)]
        if with_lmcache:
            arms += (lmcache_arm(stack, model, folder, vllms_executor=vllms) for vllms in (True, False))
        for tokens in sizes:
            figures += rows(tokens, measure(arms, tokens, prompts, rounds))
    status = show_results(figures, prompts, chosen)
    if not chosen.quick and not with_lmcache:
        report(MISSING)
        return 1
    return status


def show_results(figures: list[dict[str, Any]], prompts: int, chosen: argparse.Namespace) -> int:
    """The table and the bars. Returns the exit status."""
    columns = (
        "tokens, arm",
        "remote s",
        "memserve ÷ it",
        "local s",
        "MB a remote hit",
        "reads by local hits",
        "as local",
        "as cold",
    )
    cells = [
        (
            f"{row['tokens']:,} {row['arm']}",
            *(f"{row[name]:.3f}" for name in ("remote_s", "memserve_of_it", "local_s")),
            f"{row['read_bytes'] / 1e6:.1f}" if row["arm"] != FILES else "",
            row["local_reads"] if row["arm"] != FILES else "",
            f"{row['as_local']} of {prompts}",
            f"{row['as_cold']} of {prompts}",
        )
        for row in figures
    ]
    print_table(columns, cells)
    ours = [row for row in figures if row["arm"] == MEMSERVE]
    longest = max(row["tokens"] for row in figures)
    bars = [
        Bar(
            f"{longest:,} tokens, remote: memserve ÷ {row['arm']}",
            row["memserve_of_it"],
            at_most=AT_MOST[row["arm"]],
        )
        for row in figures
        if row["tokens"] == longest and row["arm"] in AT_MOST
    ]
    bars.append(
        Bar(
            "values that local hits of memserve read from Redis",
            sum(row["local_reads"] for row in ours),
            at_most=0,
        )
    )
    bars.append(
        Bar(
            "remote hits of memserve that answer unlike local ones",
            sum(prompts - row["as_local"] for row in ours),
            at_most=0,
        )
    )
    return finish(bars, {"figures": figures, "files_in": str(chosen.files_in)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
