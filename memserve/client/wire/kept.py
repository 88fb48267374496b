"""Messages of `ExplainAnswer`."""

from __future__ import annotations

from memserve.client.wire.inference import cached_of, explanation_of, kind_of
from memserve.client.wire.memory_values import member
from memserve.client.wire.recalled import OUTCOMES
from memserve.domain import (
    AnswerExplanation,
    KeptAnswer,
    KeptModule,
    KeptPassage,
    KeptPrompt,
    LeaveOneOut,
    PassageWeight,
    RecallOutcome,
    Skipped,
    SkipReason,
)
from memserve.pb.v1 import inference_pb2 as pb

REASONS = {str(reason): reason for reason in SkipReason}


def answer_explanation_of(response: pb.ExplainAnswerResponse) -> AnswerExplanation:
    return AnswerExplanation(
        explanation_of(response.routing) if response.HasField("routing") else None,
        _answer_of(response.answer) if response.HasField("answer") else None,
        response.answer_absent,
        response.leave_one_out_absent,
    )


def _answer_of(answer: pb.KeptAnswer) -> KeptAnswer:
    return KeptAnswer(
        request_id=answer.request_id,
        at_s=answer.at_s,
        model=answer.model,
        worker_id=answer.worker_id,
        namespaces=tuple(answer.namespaces),
        recall_outcome=member(OUTCOMES, answer.recall_outcome, RecallOutcome.UNKNOWN),
        passages=tuple(_passage_of(passage) for passage in answer.passages),
        skipped=tuple(_skipped_of(skipped) for skipped in answer.skipped),
        modules=tuple(_module_of(module) for module in answer.modules),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cached=cached_of(answer.cached_tokens),
        outcome=answer.outcome,
        prompt=_prompt_of(answer.prompt) if answer.HasField("prompt") else None,
        prompt_absent=answer.prompt_absent,
        leave_one_out=_weights_of(answer.leave_one_out) if answer.HasField("leave_one_out") else None,
    )


def _passage_of(passage: pb.KeptPassage) -> KeptPassage:
    return KeptPassage(
        passage.namespace,
        passage.memory_id,
        passage.version,
        passage.score,
        passage.relevance,
        passage.why,
    )


def _skipped_of(skipped: pb.KeptSkipped) -> Skipped:
    reason = REASONS.get(skipped.reason, SkipReason.UNKNOWN)
    return Skipped(skipped.namespace, skipped.memory_id, skipped.version, reason, skipped.detail)


def _module_of(module: pb.KeptModule) -> KeptModule:
    return KeptModule(
        module.name,
        module.version,
        module.digest,
        kind_of(module.kind),
        module.strength,
        tuple(module.sources),
        tuple(module.parents),
    )


def _prompt_of(prompt: pb.KeptPrompt) -> KeptPrompt:
    """The conversation and the passages stay with the gateway: the text has them."""
    return KeptPrompt(prompt.text, tuple(prompt.token_ids), tuple(prompt.answer_ids), (), ())


def _weights_of(found: pb.LeaveOneOut) -> LeaveOneOut:
    return LeaveOneOut(
        tuple(
            PassageWeight(
                weight.namespace, weight.memory_id, weight.version, weight.nats, weight.nats_per_token
            )
            for weight in found.passages
        ),
        found.logprob,
        found.scored_tokens,
        found.at_s,
    )
