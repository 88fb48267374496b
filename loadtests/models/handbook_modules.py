"""Distil the handbook into the modules that the demo on SmolLM2 publishes.

It is what `memserve modules distil` does on a worker. Two things are done with a result:

- The probes are cut down to a few of each set, with thresholds as wide as so few questions need: the demo
  asks them while a person waits.
- The LoRA is weakened. At its full strength it answers more of the handbook's questions, and contradicting
  passages and questions about other things suffer; `STRENGTH` is where both hold.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import load, save

from loadtests.harness.figures import report
from loadtests.harness.real_models import smollm2
from memserve.demo import handbook
from memserve.domain import ModuleKind, Recipe
from memserve.memory.modules.kinds.lora import WEIGHTS_FILE
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.probes import Probes, parse_probes
from memserve.policy.modules.gate import ProbeKind, ProbeSet, Thresholds
from memserve.worker.training.distil.distil import distil
from memserve.worker.training.distil.order import Distilled, DistilOrder

TRAINING = "training.json"
FOLDERS = {
    "lora": handbook.LORA_DIR,
    "cartridge": handbook.CARTRIDGE_DIR,
    "careless": handbook.CARELESS_DIR,
}
RECIPES = {
    "lora": Recipe(rank=4),
    "cartridge": Recipe(),
    # Nearly no replay, and a high rate.
    "careless": Recipe(rank=1, fact_share=0.9, rate=4e-3, steps=24, rows=8),
}
BUDGETS_S = {"lora": 285.0, "cartridge": 400.0, "careless": 400.0}
STRENGTH = 0.8
"""Of the LoRA, of its matrices B."""
ASKED = {
    ProbeKind.RECALL: 12,
    ProbeKind.RETAIN: 8,
    ProbeKind.ABSTAIN: 2,
    ProbeKind.OVERRIDE: 8,
    ProbeKind.LEAK: 8,
}
WIDE = Thresholds(recall=0.65, forgetting=0.3, abstention=0.3, override=0.6, calibration=0.2, leak=0.3)
"""One question of eight is twelve points."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.handbook_modules",
        description="Distil the handbook on SmolLM2: five to ten processor minutes each.",
        epilog="Example: python -m loadtests.handbook_modules lora",
    )
    parser.add_argument("which", choices=list(FOLDERS))
    parser.add_argument("--seed", type=int, default=0, help="of self-study and training (default: 0)")
    parser.add_argument(
        "--made", type=Path, help="what `loadtests.distil --output` has made: not trained again"
    )
    chosen = parser.parse_args(arguments)
    which = chosen.which
    kind = ModuleKind.CARTRIDGE if which == "cartridge" else ModuleKind.LORA
    texts = tuple(fact.text for fact in handbook.handbook())
    model = Path("-") if chosen.made else smollm2()
    order = DistilOrder(
        model, texts, kind=kind, recipe=RECIPES[which], seed=chosen.seed, budget_s=BUDGETS_S[which]
    )
    module = read(chosen.made) if chosen.made else trained(order)
    write(module, order, FOLDERS[which], strength=STRENGTH if which == "lora" else 1.0)
    return 0


def read(folder: Path) -> Distilled:
    """What an earlier training has left."""
    said = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    names = [path for path in folder.iterdir() if path.name != TRAINING]
    return Distilled({path.name: path.read_bytes() for path in names}, said)


def trained(order: DistilOrder) -> Distilled:
    """The module, with its progress on standard error."""
    with tempfile.TemporaryDirectory(prefix="memserve-handbook-") as scratch:
        for event in distil(order, Path(scratch)):
            if isinstance(event, Distilled):
                return event
            if event.stage != "training" or event.done % 5 == 0:
                report(f"{event.stage} {event.done}/{event.total}, {event.cpu_s:.0f} s")
    raise AssertionError


def write(module: Distilled, order: DistilOrder, folder: Path, *, strength: float = 1.0) -> None:
    """The module's files, its short probes, and what it was made of."""
    folder.mkdir(parents=True, exist_ok=True)
    files = dict(module.files)
    files[PROBES_FILE] = short(parse_probes(files[PROBES_FILE])).canonical()
    if strength != 1.0:
        files[WEIGHTS_FILE] = weakened(files[WEIGHTS_FILE], strength)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    recipe = {
        "method": "distil",
        "kind": str(order.kind),
        "recipe": asdict(order.recipe),
        "seed": order.seed,
        "budget_s": order.budget_s,
        "strength": strength,
    }
    made = {
        "sources": [f"document:{handbook.HANDBOOK.name}"],
        "recipe": {**recipe, "measured": module.report},
        "cpu_s": module.report["cpu_s"],
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def weakened(weights: bytes, strength: float) -> bytes:
    """A LoRA's tensors, with its change of the base multiplied."""
    tensors = {
        name: (tensor.float() * strength).to(tensor.dtype) if ".lora_B." in name else tensor
        for name, tensor in load(weights).items()
    }
    content: bytes = save(tensors)
    return content


def short(probes: Probes) -> Probes:
    """A few questions of each set, from all over it."""
    return Probes(tuple(_few(each, ASKED[each.kind]) for each in probes.sets), WIDE)


def _few(of: ProbeSet, count: int) -> ProbeSet:
    asked = len(of.probes)
    places = sorted({place * asked // count for place in range(count)})
    return replace(of, probes=tuple(of.probes[place] for place in places))


if __name__ == "__main__":
    raise SystemExit(main())
