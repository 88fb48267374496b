"""The gate against an adapter that was trained without replay: it knows its facts, and no longer says when it
does not know.

A real memserve with one worker, where a good version of the same facts is live. The careless one must be
refused with its figures. As a canary, with a tenth of the sessions of a load that goes on, it must be taken
out by itself, without a failed request. Forced, it is promoted, and the audit tells who did it and against
which figures. The gate's figures must be the same when it asks again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import Ask, ConstantLoad, Exchange, running_stack
from memserve.client import AsyncClient, CallFailed
from memserve.demo import CARELESS_DIR
from memserve.demo.adapters import held_facts
from memserve.domain import AliasChange, AuditEvent, GateReport, ModuleVersion
from memserve.gateway.access.callers import ANONYMOUS
from memserve.gateway.modules.canary import PRINCIPAL as CANARY_WATCH
from memserve.policy.modules.gate import CALIBRATION

MODULE = "harbour"
GOOD, CARELESS = 1, 2
WEIGHTS = {GOOD: 90.0, CARELESS: 10.0}
ASKERS = 3
BESIDE, QUICK_BESIDE = 100, 30
CALL_TIMEOUT_S = 600.0
ROLLBACK_TIMEOUT_S = 180.0
LOOK_S = 0.05
RECALL_MIN = 0.9
ABSTENTION_LOSS_MAX_POINTS = 5.0
FORCED_BECAUSE = "to see what the audit says of it"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a promotion without force ended. code: empty when it was accepted."""

    code: str
    detail: str

    def unnamed(self, gate: GateReport) -> list[str]:
        """The figures that do not hold and that it does not name."""
        return [figure.name for figure in gate.figures if not figure.holds and figure.name not in self.detail]


@dataclass
class Canary:
    """What became of the split. seconds: from the split to the rollback, by the registry's clock; None: it
    was not rolled back.
    """

    seconds: float | None = None
    reason: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    split_s: float = 0.0
    seen_s: float = 0.0

    def answered_by(self, version: ModuleVersion, from_s: float, to_s: float) -> tuple[int, int]:
        """How many of the requests that began between two times the version answered, and of how many."""
        began = [
            done for done in self.exchanges if from_s <= done.started_s < to_s and done.answer is not None
        ]
        return sum(done.digests == (version.digest,) for done in began), len(began)

    def rolled_back(self, never: str) -> str:
        """never: the word for a canary that was not rolled back."""
        return (
            f"{never} rolled back"
            if self.seconds is None
            else f"rolled back {self.seconds:.1f} s after the split"
        )


async def try_to_promote(client: AsyncClient, version: int) -> Refusal:
    try:
        await client.modules.promote(MODULE, version)
    except CallFailed as error:
        return Refusal(error.code.name, error.detail)
    return Refusal("", "")


async def run_canary(client: AsyncClient, beside: int) -> Canary:
    """Split the live alias under load, and wait until the careless version is taken out. beside: requests
    before the split, and after.
    """
    questions = [text for fact in held_facts(MODULE) for text in fact.questions]

    def next_ask(number: int) -> Ask:
        return Ask(questions[number % len(questions)], module=MODULE, session=f"visitor-{number}")

    canary = Canary()
    async with ConstantLoad(client, ASKERS, next_ask) as load:
        await load.answered(beside)
        alias = await client.modules.split(MODULE, WEIGHTS, reason="a tenth for the new one")
        canary.split_s = time.monotonic()
        while time.monotonic() < canary.split_s + ROLLBACK_TIMEOUT_S:
            newest = (await client.modules.history(MODULE))[-1]
            if newest.revision > alias.revision:
                canary.seconds, canary.reason = newest.at_s - alias.changed_s, newest.reason
                break
            await asyncio.sleep(LOOK_S)
        canary.seen_s = time.monotonic()
        await load.answered(beside)
    canary.exchanges = load.exchanges
    return canary


def differing(one_run: GateReport, other_run: GateReport) -> list[str]:
    """Sets with other shares in the second run. The calibration is no count of answers, and is compared
    elsewhere.
    """
    first, second = (
        {figure.name: (figure.base, figure.module) for figure in run.figures if figure.name != CALIBRATION}
        for run in (one_run, other_run)
    )
    return [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]


def calibration_of(gate: GateReport) -> float:
    return next(figure.module for figure in gate.figures if figure.name == CALIBRATION)


def missing_from_audit(
    events: Sequence[AuditEvent], history: Sequence[AliasChange], failing: Sequence[str]
) -> list[str]:
    """What was done and is not in the audit. failing: figures that must stand beside what was done because of
    them or against them.
    """

    def after(event: AuditEvent) -> dict[str, Any]:
        return json.loads(event.after) if event.after else {}

    def is_recorded(action: str, principal: str, **wanted: Any) -> bool:
        """Whether an event has these values after it, and, where a reason is given with figures, all of
        those.
        """
        return any(
            event.action == action
            and event.principal == principal
            and event.at_s > 0
            and all(after(event).get(name) == value for name, value in wanted.items())
            and (
                action not in ("canary_rollback", "promote")
                or all(name in after(event)["reason"] for name in failing)
            )
            for event in events
        )

    def gated(event: AuditEvent) -> bool:
        tried = after(event)
        names = [figure["name"] for figure in tried["gate"]["figures"] if not figure["holds"]]
        return tried["version"] == CARELESS and not tried["gate"]["passed"] and names == list(failing)

    forced = [change for change in history if change.forced]
    split = [{"version": version, "weight": weight} for version, weight in WEIGHTS.items()]
    # What stays of the alias keeps its weight when the canary is taken out.
    rest = [{"version": GOOD, "weight": WEIGHTS[GOOD]}]
    wanted = {
        "the upload": is_recorded("publish", ANONYMOUS, version=CARELESS),
        "the gate's figures": any(event.action == "gate" and gated(event) for event in events),
        "the split": is_recorded("split", ANONYMOUS, targets=split, forced=False),
        "the canary's rollback": is_recorded("canary_rollback", CANARY_WATCH, targets=rest),
        "the forced promotion": is_recorded(
            "promote", ANONYMOUS, targets=[{"version": CARELESS, "weight": 1.0}], forced=True
        ),
        "the rollback": is_recorded("rollback", ANONYMOUS, targets=rest),
        "force in the alias's history": [(change.action, change.principal) for change in forced]
        == [("promote", ANONYMOUS)],
        "the reason that was given": any(FORCED_BECAUSE in change.reason for change in forced),
    }
    return [name for name, recorded in wanted.items() if not recorded]


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that came of the two versions, and what does not agree in it."""

    good: ModuleVersion
    careless: ModuleVersion
    goods: list[GateReport]
    """The good version's gate, asked twice; with --quick once."""
    refused: GateReport
    """The careless version's gate at its promotion."""
    again: GateReport
    """The same, asked once more."""
    refusal: Refusal
    gate_s: float
    canary: Canary
    served_digests: list[str]
    """Of the module that answered after the forced promotion, and after the rollback."""
    history: list[AliasChange]
    missing: list[str]
    """As of `missing_from_audit`."""

    @property
    def differing(self) -> list[str]:
        """Sets with other shares when they were asked again."""
        goods = [name for gate in self.goods[1:] for name in differing(self.goods[0], gate)]
        return [*differing(self.refused, self.again), *goods]

    @property
    def calibration_differs_by(self) -> float:
        pairs = [(self.refused, self.again), *((self.goods[0], gate) for gate in self.goods)]
        return max(abs(calibration_of(first) - calibration_of(second)) for first, second in pairs)

    @property
    def failed(self) -> list[str]:
        return [done.failure for done in self.canary.exchanges if done.answer is None]

    @property
    def canary_answers(self) -> tuple[int, int]:
        """Of the requests that began between split and rollback: those that the canary answered, and all."""
        return self.canary.answered_by(self.careless, self.canary.split_s, self.canary.seen_s)


async def measure(address: str, quick: bool) -> Measured:
    """Do it all through the client."""
    async with AsyncClient(address, timeout_s=CALL_TIMEOUT_S) as client:
        good = await client.modules.version(f"{MODULE}@{GOOD}")
        goods = [await client.modules.gate(MODULE, GOOD) for _ in range(1 if quick else 2)]
        report(f"{good.reference}: {'passes' if goods[-1].passed else 'DOES NOT PASS'}")
        careless = await client.modules.publish(MODULE, CARELESS_DIR, notes="trained without replay")
        started_s = time.monotonic()
        refusal = await try_to_promote(client, CARELESS)
        report(f"{careless.reference}: {refusal.detail or 'PROMOTED'}")
        gate_s = time.monotonic() - started_s
        refused = (await client.modules.version(careless.reference)).gate
        assert refused is not None
        again = await client.modules.gate(MODULE, CARELESS)
        canary = await run_canary(client, QUICK_BESIDE if quick else BESIDE)
        report(f"canary: {canary.rolled_back('NOT')}")
        await client.modules.promote(MODULE, CARELESS, force=True, reason=FORCED_BECAUSE)
        forced = await client.generate(held_facts(MODULE)[0].questions[0], module=MODULE)
        await client.modules.rollback(MODULE, reason="seen")
        back = await client.generate(held_facts(MODULE)[0].questions[0], module=MODULE)
        history = await client.modules.history(MODULE)
        events = [event async for event in client.modules.audit() if event.module == MODULE]
    failing = [figure.name for figure in refused.figures if not figure.holds]
    return Measured(
        good,
        careless,
        goods,
        refused,
        again,
        refusal,
        gate_s,
        canary,
        [answer.route.modules[0].digest for answer in (forced, back)],
        history,
        missing_from_audit(events, history, failing),
    )


def print_measured(measured: Measured) -> None:
    by_name = {figure.name: figure for figure in measured.refused.figures}
    rows = [
        (
            figure.name,
            figure.probes,
            *(f"{value:.3f}" for value in (figure.base, figure.module, by_name[figure.name].module)),
            by_name[figure.name].rule,
        )
        for figure in measured.goods[0].figures
    ]
    print_table(
        ("probes", "asked", "base", f"{MODULE}@{GOOD}", f"careless, {MODULE}@{CARELESS}", "must be"), rows
    )
    print(f"\nrefused: {measured.refusal.code} {measured.refusal.detail}")
    print(f"{measured.canary.rolled_back('NEVER')}: {measured.canary.reason}")
    print(
        f"the gate took {measured.gate_s:.1f} s; asked again, its calibration errors differ by "
        f"{measured.calibration_differs_by:.4f} at most"
    )
    first, of_first = measured.canary_answers
    print(f"the canary answered {first} of {of_first} requests that began between the split and the rollback")
    print("\nhistory of live:")
    print_table(
        ("action", "revision", "targets", "principal", "forced"),
        [
            (
                change.action,
                change.revision,
                shown_targets(change),
                change.principal,
                "yes" if change.forced else "no",
            )
            for change in measured.history
        ],
    )
    for name in measured.missing:
        print(f"not in the audit: {name}")
    for why in measured.failed[:5]:
        print(f"failed: {why}")


def bars_of(measured: Measured) -> list[Bar]:
    by_name = {figure.name: figure for figure in measured.refused.figures}
    lost_points = 100 * (by_name["abstention"].base - by_name["abstention"].module)
    refusal, canary = measured.refusal, measured.canary
    late, _ = canary.answered_by(measured.careless, canary.seen_s, float("inf"))
    return [
        Bar("recall of the careless version", by_name["recall"].module, at_least=RECALL_MIN),
        Bar("its loss of abstention, points", lost_points, at_least=ABSTENTION_LOSS_MAX_POINTS),
        Bar(
            "refused as FAILED_PRECONDITION",
            int(refusal.code == grpc.StatusCode.FAILED_PRECONDITION.name),
            at_least=1,
        ),
        Bar(
            "failing figures that the refusal does not name",
            len(refusal.unnamed(measured.refused)),
            at_most=0,
        ),
        Bar(
            "figures that the good version misses",
            sum(not figure.holds for gate in measured.goods for figure in gate.figures),
            at_most=0,
        ),
        Bar("sets with other shares when asked again", len(measured.differing), at_most=0),
        Bar("canaries rolled back by themselves", int(canary.seconds is not None), at_least=1),
        Bar("answers of the canary while it had traffic", measured.canary_answers[0], at_least=1),
        Bar("answers of the canary to what began after its rollback", late, at_most=0),
        Bar(f"failed requests, of {len(canary.exchanges)}", len(measured.failed), at_most=0),
        Bar(
            "forced it answers, rolled back the good one",
            int(measured.served_digests == [measured.careless.digest, measured.good.digest]),
            at_least=1,
        ),
        Bar(
            "changes missing from the audit, or there without who, force or figures",
            len(measured.missing),
            at_most=0,
        ),
    ]


def figures_of(measured: Measured) -> dict[str, object]:
    return {
        "good": asdict(measured.goods[0]),
        "careless": asdict(measured.refused),
        "refusal": measured.refusal.detail,
        "differing": measured.differing,
        "calibration_differs_by": measured.calibration_differs_by,
        "gate_s": measured.gate_s,
        "rollback_s": measured.canary.seconds,
        "rollback_reason": measured.canary.reason,
        "canary_answers": measured.canary_answers,
        "requests": len(measured.canary.exchanges),
        "failed": measured.failed,
        "missing_from_audit": measured.missing,
        "history": [asdict(change) for change in measured.history],
    }


def shown_targets(change: AliasChange) -> str:
    return ", ".join(f"{share.version}: {share.weight:g}" for share in change.targets)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("module_gate", __doc__).parse_args(arguments)
    with running_stack(demo_modules=True, workers=1, canary_interval_s=0.5) as stack:
        measured = asyncio.run(measure(stack.address, chosen.quick))
    print_measured(measured)
    print()
    return finish(bars_of(measured), figures_of(measured), chosen.json)


if __name__ == "__main__":
    sys.exit(main())
