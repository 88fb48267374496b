"""A worker's last report as routing reads it."""

from __future__ import annotations

from dataclasses import asdict

from memserve.domain.worker_calls import WorkerState
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.load import WaitingTime, WorkerLoad

FETCH_TOKENS_PER_S = 100_000.0
"""How fast KV arrives from Redis."""
# Of a worker that does not report its costs: one of an older version, while it is replaced.
UNKNOWN_TOKENS_PER_S = 2_000.0
UNKNOWN = EngineCosts(
    step_s=0.0,
    token_s=1 / UNKNOWN_TOKENS_PER_S,
    context_s=0.0,
    answer_s=0.004,
    kv_token_s=0.0,
    step_limit_s=1.0,
)


def reported(worker_id: str, state: WorkerState, now_s: float) -> WorkerLoad:
    """now_s: when the report came."""
    engine = state.engine
    if engine is None:
        queued_tokens, running = max(state.pending_prefill_tokens, 0), max(state.running, 0)
        return WorkerLoad(
            worker=worker_id,
            at_s=now_s,
            costs=UNKNOWN,
            waiting=WaitingTime(now_s),
            prefill_s=queued_tokens * UNKNOWN.token_s,
            answers=running,
            fetch_tokens_per_s=FETCH_TOKENS_PER_S,
            requests=running + max(state.waiting, 0),
            queued_tokens=queued_tokens,
        )
    return WorkerLoad(
        worker=worker_id,
        at_s=now_s,
        costs=EngineCosts(**asdict(engine.costs)),
        waiting=WaitingTime.of(now_s, engine.waiting),
        prefill_s=engine.prefill_s,
        seat_s=engine.seat_s,
        answers=engine.answers,
        kv_tokens=engine.kv_tokens,
        free_tokens=engine.free_kv_tokens,
        fetch_tokens_per_s=FETCH_TOKENS_PER_S,
        requests=engine.requests,
        queued_tokens=engine.queued_tokens,
    )
