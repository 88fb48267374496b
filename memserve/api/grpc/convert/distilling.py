"""Converts between the messages of a distillation and domain values. Requests are checked here."""

from __future__ import annotations

from memserve.api.grpc.convert.modules import kind_number, kind_of, version
from memserve.domain import (
    DEFAULT_RECIPE,
    DistilChoice,
    Distillation,
    DistillationJob,
    DistillationState,
    DistilPlan,
    DistilProgress,
    ModuleKind,
    ModuleVersion,
    Recipe,
)
from memserve.errors import InvalidField
from memserve.gateway.modules.distillation import DistillationStopped, Event
from memserve.memory.modules.kinds.table import check_module_name
from memserve.memory.modules.memory import check_text
from memserve.pb.v1 import module_pb2 as pb
from memserve.policy.modules.recipes import SEED_MAX, check_budget, check_recipe
from memserve.policy.modules.references import parse_reference

NAMESPACES_MAX = 64
_STATES = {state: getattr(pb, f"DISTILLATION_STATE_{state.name}") for state in DistillationState.known()}


def distillation(request: pb.DistilModuleRequest) -> Distillation:
    """Of a LoRA where the request names no kind. Raises InvalidField."""
    check_module_name("name", request.name)
    if not 0 <= request.seed <= SEED_MAX:
        raise InvalidField("seed", f"from 0 to {SEED_MAX}")
    if len(request.namespaces) > NAMESPACES_MAX:
        raise InvalidField("namespaces", f"at most {NAMESPACES_MAX}")
    check_text("notes", request.notes)
    check_budget(request.budget_s)
    if request.from_reference:
        parse_reference("from_reference", request.from_reference)
    choice = DistilChoice(
        tuple(request.namespaces),
        request.filter,
        tuple(request.document_ids),
        tuple((each.namespace, each.memory_id) for each in request.memories),
    )
    return Distillation(
        name=request.name,
        choice=choice,
        kind=kind_of("kind", request.kind) if request.kind else ModuleKind.LORA,
        recipe=_recipe(request.recipe),
        budget_s=request.budget_s,
        seed=request.seed,
        notes=request.notes,
        from_reference=request.from_reference,
    )


def _recipe(value: pb.DistilRecipe) -> Recipe:
    default = DEFAULT_RECIPE
    recipe = Recipe(
        steps=value.steps,
        rows=value.rows,
        rank=value.rank or default.rank,
        rate=value.rate,
        fact_share=value.fact_share,
        fresh=value.fresh,
        stop_loss=value.stop_loss if value.HasField("stop_loss") else default.stop_loss,
        least_teacher=value.least_teacher if value.HasField("least_teacher") else default.least_teacher,
        phrasings=value.phrasings,
        tokens=value.tokens,
        old_share=value.old_share if value.HasField("old_share") else default.old_share,
    )
    check_recipe(recipe)
    return recipe


def response(event: Event) -> pb.DistilModuleResponse:
    if isinstance(event, ModuleVersion):
        return pb.DistilModuleResponse(version=version(event))
    if isinstance(event, DistillationStopped):
        return pb.DistilModuleResponse(cancelled=True)
    if isinstance(event, DistilPlan):
        return pb.DistilModuleResponse(plan=_plan(event))
    return pb.DistilModuleResponse(progress=_progress(event))


def job(value: DistillationJob) -> pb.Distillation:
    passed = {} if value.passed is None else {"passed": value.passed}
    return pb.Distillation(
        job_id=value.job_id,
        module=value.module,
        kind=kind_number(value.kind),
        state=_STATES.get(value.state, pb.DISTILLATION_STATE_UNSPECIFIED),
        principal=value.principal,
        begun_s=value.begun_s,
        ended_s=value.ended_s,
        progress=_progress(value.progress),
        taken_up=value.taken_up,
        version=value.version,
        **passed,
        promoted_to=value.promoted_to,
        reason=value.reason,
        from_reference=value.from_reference,
    )


def _progress(value: DistilProgress) -> pb.DistilProgress:
    return pb.DistilProgress(
        stage=value.stage,
        done=value.done,
        total=value.total,
        cpu_s=value.cpu_s,
        tokens=value.tokens,
        median_loss=value.median_loss,
    )


def _plan(value: DistilPlan) -> pb.DistilPlan:
    return pb.DistilPlan(
        memories=value.memories,
        facts=value.facts,
        questions=value.questions,
        left_out=[
            pb.DistilLeftOut(namespace=each.namespace, memory_id=each.memory_id, reason=each.reason)
            for each in value.left_out
        ],
        examples=value.examples,
        probes=value.probes,
    )
