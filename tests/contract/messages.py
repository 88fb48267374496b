"""A worker's protobuf messages from values, and values from messages: the worker's end of the wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields

from memserve.domain import (
    DistilProgress,
    FinishReason,
    ModuleKind,
    ModulePlace,
    Priority,
    Recipe,
    Sampling,
)
from memserve.domain.worker_calls import (
    AnswerPart,
    AppliedModule,
    BlockChange,
    BlockEvent,
    ComposedPiece,
    ComposeProgress,
    ComposeRecipe,
    CompositionRequest,
    DistillationRequest,
    DistilReport,
    ScoringRequest,
    TokenScores,
    WorkerRequest,
    WorkerState,
)
from memserve.pb.worker.v1 import worker_pb2 as pb

PLACES = {place: getattr(pb, f"MODULE_PLACE_{place.name}") for place in ModulePlace.known()}
PRIORITIES = {getattr(pb, f"PRIORITY_{priority.name}"): priority for priority in Priority}
REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


def worker_request(message: pb.GenerateRequest) -> WorkerRequest:
    return WorkerRequest(
        request_id=message.request_id,
        token_ids=list(message.token_ids),
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        sampling=Sampling(
            max_tokens=message.max_tokens,
            temperature=message.temperature,
            top_p=message.top_p,
            seed=message.seed if message.HasField("seed") else None,
            stop=tuple(message.stop),
            logprobs=message.logprobs,
            min_tokens=message.min_tokens,
        ),
        modules=tuple(_applied_modules(message)),
        store_whole_prompt=message.keep,
        priority=PRIORITIES.get(message.priority, Priority.NORMAL),
        first_token_s=message.first_token_ms / 1000 or None,
        refuse_late=message.refuse_late,
        do_not_queue=message.do_not_queue,
        cached_tokens=message.expected_cached_tokens,
    )


def scoring_request(message: pb.ScoreTokensRequest) -> ScoringRequest:
    return ScoringRequest(
        request_id=message.request_id,
        token_ids=list(message.token_ids),
        continuation=list(message.continuation),
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        modules=tuple(
            AppliedModule(module.digest, ModuleKind(module.kind), module.strength)
            for module in message.modules
        ),
        priority=PRIORITIES.get(message.priority, Priority.BACKGROUND),
        cached_tokens=message.expected_cached_tokens,
    )


def score_message(scores: TokenScores) -> pb.ScoreTokensResponse:
    cached = scores.cached
    return pb.ScoreTokensResponse(
        logprobs=scores.logprobs,
        cached_tokens=pb.CachedTokens(**asdict(cached)),
    )


def _applied_modules(message: pb.GenerateRequest) -> Iterator[AppliedModule]:
    for module in message.modules:
        yield AppliedModule(module.digest, ModuleKind(module.kind), module.strength)
    if message.modules:
        return
    # A gateway of 0.1.0.
    if message.module_digest:
        yield AppliedModule(message.module_digest, ModuleKind.LORA)
    if message.expert_digest:
        yield AppliedModule(message.expert_digest, ModuleKind.LOGIT_EXPERT, message.expert_alpha)


def answer_message(part: AnswerPart) -> pb.GenerateResponse:
    message = pb.GenerateResponse(text=part.text, token_ids=part.token_ids, logprobs=part.logprobs)
    if part.cached is not None:
        message.cached_tokens.CopyFrom(pb.CachedTokens(**asdict(part.cached)))
    if part.finish_reason is not None:
        message.finish_reason = REASONS[part.finish_reason]
    return message


def composition_request(message: pb.ComposeModuleRequest) -> CompositionRequest:
    return CompositionRequest(
        method=message.method,
        parents=tuple((parent.digest, parent.weight) for parent in message.parents),
        rank=message.rank,
        density=message.density,
        seed=message.seed,
    )


def compose_message(event: ComposeProgress | ComposedPiece | ComposeRecipe) -> pb.ComposeModuleResponse:
    match event:
        case ComposeProgress(done, total):
            return pb.ComposeModuleResponse(progress=pb.ComposeProgress(done=done, total=total))
        case ComposedPiece(file_name, content):
            return pb.ComposeModuleResponse(file=pb.ComposedFile(file_name=file_name, content=content))
        case ComposeRecipe(recipe):
            return pb.ComposeModuleResponse(recipe=recipe)


def distillation_request(message: pb.DistilModuleRequest) -> DistillationRequest:
    value = message.recipe
    recipe = Recipe(**{each.name: getattr(value, each.name) for each in fields(Recipe)})
    return DistillationRequest(
        kind=ModuleKind(message.kind),
        texts=tuple(message.texts),
        recipe=recipe,
        seed=message.seed,
        budget_s=message.budget_s,
        recall_template=message.recall_template,
        parent_digest=message.parent_digest,
        old_texts=tuple(message.old_texts),
        memory_keys=tuple(message.memory_keys),
    )


def distil_message(event: DistilProgress | ComposedPiece | DistilReport) -> pb.DistilModuleResponse:
    match event:
        case DistilProgress(stage, done, total, cpu_s, tokens, median_loss):
            return pb.DistilModuleResponse(
                progress=pb.DistilProgress(
                    stage=stage, step=done, steps=total, cpu_s=cpu_s, tokens=tokens, median_loss=median_loss
                )
            )
        case ComposedPiece(file_name, content):
            return pb.DistilModuleResponse(file=pb.ComposedFile(file_name=file_name, content=content))
        case DistilReport(report):
            return pb.DistilModuleResponse(report=report)


def state_message(state: WorkerState) -> pb.WorkerState:
    return pb.WorkerState(
        running=state.running,
        waiting=state.waiting,
        prefill_tokens_per_s=state.prefill_tokens_per_s,
        decode_tokens_per_s=state.decode_tokens_per_s,
        pending_prefill_tokens=state.pending_prefill_tokens,
        modules=[
            pb.ModuleResidency(digest=digest, place=PLACES[place])
            for digest, place in sorted(state.modules.items())
        ],
        used_modules=sorted(state.used_modules),
    )


def block_messages(event: BlockEvent, keys_in_a_message: int) -> Iterator[pb.WatchResponse]:
    """A large event goes out in several messages with the same number."""
    for start in range(0, max(len(event.keys), 1), keys_in_a_message):
        message = pb.WatchResponse(
            epoch=event.epoch,
            sequence=event.sequence,
            more=start + keys_in_a_message < len(event.keys),
        )
        # The first message of a reset resets. The others add.
        adds = event.change is BlockChange.RESET and start
        blocks = getattr(message, BlockChange.STORED if adds else event.change)
        blocks.SetInParent()  # an empty reset is one too
        blocks.keys.extend(event.keys[start : start + keys_in_a_message])
        yield message
