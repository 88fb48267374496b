"""The two demo adapters composed by every method, and one of them compressed: what each version still knows,
and what the gate says to it.

A real memserve with one worker. Each version is composed through the client and promoted to an alias of its
own; the gate asks it what its parents are asked. The verdicts are checked against the issue's thresholds,
which stand here once more. Beside it a small load goes on at a steady pace: none of its requests may fail,
and its TTFT while a version is being composed is compared with that before.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import ANSWER, running_stack
from memserve.client import CallFailed, Client, TextDelta
from memserve.demo.adapters import held_facts
from memserve.domain import GateFigure, GateReport, ModuleVersion

PARENTS = ("harbour", "observatory")
ROUNDING = 1e-9
# Composing, the gate, and a load that waits for its turn, on few cores.
CALL_TIMEOUT_S = 600.0
LOAD_PER_S = 6.0
LANES = 32
# Before each version nothing but the load goes on for so long: what composing is compared with.
QUIET_S = 3.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for. rank, density: 0 for the method's own."""

    method: str
    rank: int = 0
    density: float = 0.0
    weight: float = 1.0

    @property
    def label(self) -> str:
        rank = f", rank {self.rank}" if self.rank else ""
        density = f", density {self.density:g}" if self.density else ""
        weight = f", weights {self.weight:g}" if self.weight != 1 else ""
        return f"{self.method}{rank}{density}{weight}"


QUICK = (Recipe("cat"), Recipe("ties"), Recipe("compress", 8))
ALL = (
    Recipe("linear"),
    Recipe("linear", weight=0.5),
    Recipe("cat"),
    Recipe("cat", weight=0.5),
    Recipe("svd"),
    Recipe("ties"),
    Recipe("ties", density=0.2),
    Recipe("dare"),
    Recipe("core"),
    Recipe("core", density=0.3),
    Recipe("compress", 8),
    Recipe("compress", 4),
)


@dataclass(frozen=True, slots=True)
class Served:
    """A request of the load. due_s: when it was to be sent, of the monotonic clock; the TTFT counts from
    then. failed: why, or empty.
    """

    due_s: float
    ttft_s: float
    failed: str


class SteadyLoad:
    """Asks a demo adapter for its facts at a steady pace, whatever becomes of the answers, while the `with`
    block runs.
    """

    def __init__(self, address: str, adapter: str, per_s: float) -> None:
        self._client = Client(address)
        self._adapter = adapter
        self._questions = [text for fact in held_facts(adapter) for text in fact.questions]
        self._per_s = per_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.served: list[Served] = []
        """In the order in which they ended."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    @property
    def failed(self) -> list[str]:
        return [request.failed for request in self.served if request.failed]

    def ttft_ms(self, windows: Sequence[tuple[float, float]]) -> list[float]:
        """Of the answered requests that were due in any of these windows, each from and to a time of the
        monotonic clock.
        """
        return [
            1000 * request.ttft_s
            for request in self.served
            if not request.failed and any(start <= request.due_s < end for start, end in windows)
        ]

    def _run(self) -> None:
        started_s = time.monotonic()
        with ThreadPoolExecutor(LANES) as lanes:
            for number in itertools.count():
                due_s = started_s + number / self._per_s
                if self._ended.wait(max(0.0, due_s - time.monotonic())):
                    return
                lanes.submit(self._ask, self._questions[number % len(self._questions)], due_s)

    def _ask(self, question: str, due_s: float) -> None:
        first_s = 0.0
        try:
            for event in self._client.stream(question, module=self._adapter, sampling=ANSWER):
                if isinstance(event, TextDelta):
                    first_s = first_s or time.monotonic()
        except CallFailed as error:
            self.served.append(Served(due_s, 0.0, str(error)))
            return
        self.served.append(Served(due_s, (first_s or time.monotonic()) - due_s, ""))


@dataclass
class Measured:
    """What a run finds. wrong: verdicts, each with what is wrong with it. ttft_ms: medians of the load, by
    what went on beside it.

    longest_ttft_ms: the longest of them.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    ttft_ms: dict[str, float] = field(default_factory=dict)
    longest_ttft_ms: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a promotion. refusal: what the call said, empty when it was accepted. code: its
    status.
    """

    report: GateReport
    code: str
    refusal: str
    live: bool

    @property
    def missed(self) -> tuple[str, ...]:
        """The figures that are below the issue's thresholds."""
        return tuple(figure.name for figure in self.report.figures if not meets(figure))

    @property
    def wrong(self) -> str:
        """What is wrong with it; empty: nothing."""
        if not self.report.figures:
            return "the gate asked nothing"
        if not self.missed:
            return "" if self.live else f"refused, though every figure meets its threshold: {self.refusal}"
        if self.live or not self.code:
            return f"promoted, though it misses {', '.join(self.missed)}"
        if self.code != grpc.StatusCode.FAILED_PRECONDITION.name:
            return f"refused with {self.refusal}"
        unnamed = [name for name in self.missed if name not in self.refusal]
        return f"the refusal does not tell {', '.join(unnamed)}" if unnamed else ""


def meets(figure: GateFigure) -> bool:
    """Whether a figure is above the issue's default threshold, by the set's name; the gate's own verdict is
    not looked at.
    """
    base, module = figure.base, figure.module
    match figure.name.rsplit(".", 1)[-1]:
        case "recall":
            return module >= 0.9 - ROUNDING
        case "forgetting":
            return module >= base - 0.02 - ROUNDING
        case "abstention":
            return module >= base - 0.05 - ROUNDING
        case "override":
            return module >= 0.95 * base - ROUNDING
        case "calibration":
            return module <= base + 0.02 + ROUNDING
    raise ValueError(f"no threshold is known for {figure.name}")


def promote(client: Client, version: ModuleVersion, alias: str) -> Verdict:
    """Try to promote it, and see what the gate found and what the alias is now."""
    code, refusal = "", ""
    try:
        client.modules.promote(version.module, version.version, alias=alias)
    except CallFailed as error:
        code, refusal = error.code.name, str(error)
    report = client.modules.version(version.reference).gate
    if report is None:
        raise RuntimeError(f"{version.reference} was not asked: {refusal}")
    targets = [entry.targets for entry in client.modules.get(version.module).aliases if entry.name == alias]
    live = [[share.version for share in shares] for shares in targets] == [[version.version]]
    return Verdict(report, code, refusal, live)


def compose(client: Client, recipe: Recipe) -> ModuleVersion:
    """Into a module of the method's own, so that nothing else is among its versions."""
    parents = dict.fromkeys(PARENTS[:1] if recipe.method == "compress" else PARENTS, recipe.weight)
    name = "-".join((*parents, recipe.method))
    return client.modules.compose(name, recipe.method, parents, rank=recipe.rank, density=recipe.density)


def is_recorded(version: ModuleVersion, recipe: Recipe, parents: Sequence[ModuleVersion]) -> bool:
    """Whether the version tells its parents, the method, its loss and how far the parents' cores overlap."""
    recorded = json.loads(version.recipe)
    measured = recorded["measured"]
    return (
        list(version.parents) == [parent.digest for parent in parents]
        and list(version.sources) == [parent.reference for parent in parents]
        and recorded["method"] == recipe.method
        and [entry["digest"] for entry in recorded["parents"]] == [parent.digest for parent in parents]
        and "loss" in measured
        and (len(parents) == 1 or "core_overlap" in measured)
    )


def row_of(label: str, version: ModuleVersion, verdict: Verdict, seconds: float) -> dict[str, Any]:
    """The figures of a version by plain names. Losses are in points, of shares of right answers."""
    # The sets of one parent have no parent's name before theirs.
    own = {figure.name.removeprefix(f"{PARENTS[0]}."): figure for figure in verdict.report.figures}
    recall = {PARENTS[0]: own.get("recall"), PARENTS[1]: own.get(f"{PARENTS[1]}.recall")}
    if version.module == PARENTS[1]:
        recall = {PARENTS[0]: None, PARENTS[1]: own["recall"]}
    overrides = [figure for name, figure in own.items() if name.rsplit(".", 1)[-1] == "override"]
    measured = json.loads(version.recipe)["measured"] if version.recipe.startswith("{") else {}
    return {
        "version": label,
        "rank": version.rank,
        "loss": measured.get("loss"),
        "core_overlap": measured.get("core_overlap", {}).get("overall"),
        "recall": {name: figure.module if figure is not None else None for name, figure in recall.items()},
        "forgetting_points": 100 * (own["forgetting"].base - own["forgetting"].module),
        "abstention_loss_points": 100 * (own["abstention"].base - own["abstention"].module),
        "text_wins_of_base": min(figure.module / figure.base for figure in overrides),
        "calibration_worse_by": own["calibration"].module - own["calibration"].base,
        "probes": sum(figure.probes for name, figure in own.items() if name != "calibration"),
        "seconds": seconds,
        "missed": list(verdict.missed),
        "promoted": verdict.live,
        "refusal": verdict.refusal,
    }


def shown(row: dict[str, Any]) -> list[object]:
    def figure(value: float | None, form: str = ".2f") -> str:
        return "-" if value is None else format(value, form)

    return [
        row["version"],
        row["rank"],
        figure(row["loss"]),
        figure(row["core_overlap"]),
        *(figure(row["recall"][name]) for name in PARENTS),
        figure(row["forgetting_points"], ".1f"),
        figure(row["abstention_loss_points"], ".1f"),
        figure(row["text_wins_of_base"]),
        figure(row["calibration_worse_by"], "+.3f"),
        figure(row["seconds"] or None, ".1f"),
        "yes" if row["promoted"] else "no",
    ]


COLUMNS = (
    "version",
    "rank",
    "loss",
    "cores meet",
    *(f"recall {name}" for name in PARENTS),
    "forgotten, points",
    "abstention lost",
    "text wins ÷ base",
    "calibration",
    "composed in s",
    "fit for use",
)


def measure(recipes: Sequence[Recipe]) -> Measured:
    """Start a memserve, make every version, and have each judged."""
    measured = Measured()
    with (
        running_stack(demo_modules=True, workers=1, max_lora_rank=32) as stack,
        Client(stack.address, timeout_s=CALL_TIMEOUT_S) as client,
        SteadyLoad(stack.address, PARENTS[0], LOAD_PER_S) as load,
    ):
        parents = [client.modules.version(name) for name in PARENTS]
        measured.rows += [
            row_of(parent.module, parent, promote(client, parent, "live"), 0.0) for parent in parents
        ]
        before, composing, judging = [], [], []
        for number, recipe in enumerate(recipes):
            quiet_s = time.monotonic()
            time.sleep(QUIET_S)
            started_s = time.monotonic()
            before.append((quiet_s, started_s))
            version = compose(client, recipe)
            composed_s = time.monotonic()
            verdict = promote(client, version, f"tried-{number}")
            composing.append((started_s, composed_s))
            judging.append((composed_s, time.monotonic()))
            measured.rows.append(row_of(recipe.label, version, verdict, composed_s - started_s))
            report(
                f"{recipe.label}: {verdict.refusal or 'promoted'}; judged in "
                f"{time.monotonic() - composed_s:.1f} s"
            )
            if verdict.wrong:
                measured.wrong.append(f"{recipe.label}: {verdict.wrong}")
            if not is_recorded(version, recipe, parents[: 1 if recipe.method == "compress" else 2]):
                measured.unrecorded.append(recipe.label)
    measured.requests, measured.failed = len(load.served), load.failed
    windows = {"before": before, "composing": composing, "judging": judging}
    measured.ttft_ms = {name: statistics.median(load.ttft_ms(spans)) for name, spans in windows.items()}
    measured.longest_ttft_ms = {name: max(load.ttft_ms(spans)) for name, spans in windows.items()}
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("module_compose", __doc__).parse_args(arguments)
    recipes = QUICK if chosen.quick else ALL
    measured = measure(recipes)
    print_table(COLUMNS, [shown(row) for row in measured.rows])
    fit = [row["version"] for row in measured.rows[len(PARENTS) :] if row["promoted"]]
    print()
    for row in measured.rows:
        if row["missed"]:
            print(f"refused: {row['version']}, which misses {', '.join(row['missed'])}")
    print(f"fit for use, beside the parents: {'; '.join(fit) or 'none'}")
    composing, judging = (
        measured.ttft_ms[name] / measured.ttft_ms["before"] for name in ("composing", "judging")
    )
    print(
        f"{measured.requests} requests beside, {LOAD_PER_S:g} a second: median TTFT "
        f"{measured.ttft_ms['before']:.1f} ms before, "
        f"{composing:.2f} times that while composing (the longest "
        f"{measured.longest_ttft_ms['composing']:.0f} ms, "
        f"before {measured.longest_ttft_ms['before']:.0f} ms), {judging:.2f} times that while the gate asks"
    )
    for line in (
        *(f"wrong verdict: {line}" for line in measured.wrong),
        *(f"failed: {line}" for line in measured.failed[:5]),
    ):
        print(line)
    bars = [
        Bar("versions composed and judged", len(measured.rows) - len(PARENTS), at_least=len(recipes)),
        Bar("wrong verdicts of the gate", len(measured.wrong), at_most=0),
        Bar("versions without their parents, method or measures", len(measured.unrecorded), at_most=0),
        Bar(f"failed requests, of {measured.requests}", len(measured.failed), at_most=0),
    ]
    ratios = {"ttft_composing_of_before": composing, "ttft_judging_of_before": judging}
    return finish(bars, {**asdict(measured), "fit": fit, **ratios}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
