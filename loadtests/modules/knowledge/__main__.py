"""The same facts as text, as a warm prefix, as a cartridge, as a LoRA and as a logit expert: one table.

24 facts of invented things are put into a running memserve in every way that it has: remembered, pinned,
distilled into a LoRA and a cartridge by memserve itself, and added to a copy of the model. Then the same
questions are asked by each rung: for the facts in phrasings that no training held, for general knowledge, for
things that no memory names, and with passages that say something else. At last one fact is changed and
another one erased.
`--quick`: the demo model with a few steps of training, and a few questions. Without it each model takes its
distillations' time, ten to twenty minutes for SmolLM2-135M-Instruct. `--report FOLDER` writes the table as
Markdown, and plots.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.distil.worlds import World, demo_world, smollm2_world
from loadtests.modules.knowledge.asking import Figures, Layout, ask, figures_of
from loadtests.modules.knowledge.making import change_and_erase, make_all
from loadtests.modules.knowledge.rungs import RUNGS, TENANTS, Costs, Rung
from loadtests.modules.knowledge.table import COLUMNS, Row, bars_of, printed, write_report
from loadtests.texts.memory_recall.serving import serving
from memserve.domain import Recipe

MOST, QUICK_MOST = 100, 8
DISTIL_TIMEOUT_S = 3600.0
QUICK_RECIPE = Recipe(steps=20)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("knowledge", __doc__)
    options.add_argument("--model", choices=["demo", "smollm2"], help="only this one")
    options.add_argument(
        "--seeds", type=int, default=1, help="of facts, self-study and training (default: 1)"
    )
    options.add_argument("--report", type=Path, metavar="FOLDER", help="write report.md and plots there")
    chosen = options.parse_args(arguments)
    names = [chosen.model] if chosen.model else ["demo"] if chosen.quick else ["demo", "smollm2"]
    tables: dict[str, dict[Rung, dict[str, float | None]]] = {}
    bars: list[Bar] = []
    for name in names:
        make = demo_world if name == "demo" else smollm2_world
        measured = [measure(make(seed), seed, quick=chosen.quick) for seed in range(chosen.seeds)]
        rows = {
            rung: Row(rung, tuple(one[rung][0] for one in measured), tuple(one[rung][1] for one in measured))
            for rung in RUNGS
        }
        tables[name] = {rung: row.as_json(name, rows) for rung, row in rows.items()}
        print(f"{name}, {chosen.seeds} seed{'s' if chosen.seeds > 1 else ''}")
        print_table(COLUMNS, [printed(rung.name, figures) for rung, figures in tables[name].items()])
        print()
        bars += bars_of(name, tables[name], trained=not chosen.quick)
    if chosen.report:
        report(f"written: {write_report(tables, chosen.report)}")
    figures: dict[str, object] = {
        name: {rung.name: row for rung, row in rows.items()} for name, rows in tables.items()
    }
    return finish(bars, figures, chosen.json)


def measure(world: World, seed: int, *, quick: bool) -> dict[Rung, tuple[Figures, Costs]]:
    """One run on a memserve of its own."""
    model = world.model()
    settings: dict[str, Any] = {"max_loras": 2, "max_experts": 1}
    if world.name != "demo":
        settings["model"] = str(model)
    with (
        tempfile.TemporaryDirectory(prefix="memserve-knowledge-") as scratch,
        serving(TENANTS, timeout_s=DISTIL_TIMEOUT_S, **settings) as clients,
    ):
        recipe = QUICK_RECIPE if quick else Recipe()
        costs = make_all(clients, world, model, Path(scratch), recipe, seed)
        layout = Layout(model)
        most = QUICK_MOST if quick else MOST
        replied = {rung: ask(clients[rung.tenant], layout, rung, world, most) for rung in RUNGS}
        change_and_erase(clients, world, costs)
    return {rung: (figures_of(replied[rung]), costs[rung]) for rung in RUNGS}


if __name__ == "__main__":
    sys.exit(main())
