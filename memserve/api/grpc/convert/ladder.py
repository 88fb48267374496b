"""Converts the ladder's report to the message of `StatusService`."""

from __future__ import annotations

from memserve.domain.ladder import LadderAction, LadderReport, LadderStep, LadderUse, Rung
from memserve.pb.v1 import status_pb2 as pb

RUNGS = {rung: getattr(pb, f"RUNG_{rung.name}") for rung in Rung.known()}
ACTIONS = {action: getattr(pb, f"LADDER_ACTION_{action.name}") for action in LadderAction.known()}


def ladder_response(report: LadderReport) -> pb.GetLadderResponse:
    return pb.GetLadderResponse(
        mode=report.mode,
        at_s=report.at_s,
        budget=pb.LadderUse(resident_bytes=report.budget.resident_bytes, make_s=report.budget.make_s),
        use=_use(report.use),
        steps=[_step(step) for step in report.steps],
    )


def _step(step: LadderStep) -> pb.LadderStep:
    decision = step.decision
    return pb.LadderStep(
        namespace=decision.subject,
        action=ACTIONS[decision.action],
        from_rung=RUNGS[decision.from_rung],
        to_rung=RUNGS[decision.to_rung],
        reason=decision.reason,
        before=_use(decision.before),
        after=_use(decision.after),
        makes_room_for=decision.makes_room_for,
        outcome=step.outcome,
    )


def _use(use: LadderUse) -> pb.LadderUse:
    return pb.LadderUse(resident_bytes=use.resident_bytes, make_s=use.make_s)
