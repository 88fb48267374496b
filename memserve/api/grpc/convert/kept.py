"""Converts kept answers to the messages of `ExplainAnswer`."""

from __future__ import annotations

from dataclasses import asdict

from memserve.api.grpc.convert.inference import cached_tokens, explain_response
from memserve.client.wire.recalled import OUTCOMES
from memserve.domain import AnswerExplanation, KeptAnswer, KeptPrompt, LeaveOneOut
from memserve.pb.v1 import inference_pb2 as pb


def explain_answer_response(found: AnswerExplanation) -> pb.ExplainAnswerResponse:
    return pb.ExplainAnswerResponse(
        routing=None if found.routing is None else explain_response(found.routing),
        answer=None if found.answer is None else _answer(found.answer),
        answer_absent=found.answer_absent,
        leave_one_out_absent=found.leave_one_out_absent,
    )


def _answer(answer: KeptAnswer) -> pb.KeptAnswer:
    return pb.KeptAnswer(
        request_id=answer.request_id,
        at_s=answer.at_s,
        model=answer.model,
        worker_id=answer.worker_id,
        namespaces=answer.namespaces,
        recall_outcome=OUTCOMES.get(answer.recall_outcome, pb.RECALL_OUTCOME_UNSPECIFIED),
        passages=[pb.KeptPassage(**asdict(passage)) for passage in answer.passages],
        skipped=[pb.KeptSkipped(**asdict(skipped)) for skipped in answer.skipped],
        modules=[pb.KeptModule(**asdict(module)) for module in answer.modules],
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cached_tokens=cached_tokens(answer.cached),
        outcome=answer.outcome,
        prompt=None if answer.prompt is None else _prompt(answer.prompt),
        prompt_absent=answer.prompt_absent,
        leave_one_out=None if answer.leave_one_out is None else _weights(answer.leave_one_out),
    )


def _prompt(prompt: KeptPrompt) -> pb.KeptPrompt:
    return pb.KeptPrompt(text=prompt.text, token_ids=prompt.token_ids, answer_ids=prompt.answer_ids)


def _weights(found: LeaveOneOut) -> pb.LeaveOneOut:
    return pb.LeaveOneOut(
        passages=[pb.PassageWeight(**asdict(weight)) for weight in found.passages],
        logprob=found.logprob,
        scored_tokens=found.scored_tokens,
        at_s=found.at_s,
    )
