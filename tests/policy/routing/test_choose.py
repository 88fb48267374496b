"""Where a request goes, as a pure decision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import ModulePlace
from memserve.domain.kinds import LoadCosts
from memserve.policy.routing.choose import choose_worker
from memserve.policy.routing.predict import RoutingCosts, predict_ttft_s
from memserve.policy.routing.snapshot import PlacedModule, WorkerSnapshot, slots_ahead

COSTS = RoutingCosts(fetch_tokens_per_s=100_000, step_s=0.002)
ADAPTER = LoadCosts(load_s=0.05, swap_s=0.005, slot_wait_s=0.1)
EXPERT = LoadCosts(load_s=0.5, swap_s=0.5)
IDLE = WorkerSnapshot("w0", 0, 0, 0, 0, 1000.0)
PROMPT_TOKENS = 1000

tokens = st.integers(0, PROMPT_TOKENS)
snapshots = st.builds(
    WorkerSnapshot,
    worker_id=st.sampled_from(["a", "b", "c", "d"]),
    running=st.integers(0, 100),
    pending_prefill_tokens=st.integers(0, 100_000),
    held_tokens=tokens,
    shared_tokens=tokens,
    prefill_tokens_per_s=st.sampled_from([0.0, 1.0, 500.0, 1e5, 1e7]),
    modules=st.tuples(
        st.builds(PlacedModule, st.sampled_from(ModulePlace.known()), st.just(ADAPTER), st.integers(0, 20)),
        st.builds(PlacedModule, st.sampled_from(ModulePlace.known()), st.just(EXPERT)),
    ),
)
pools = st.lists(snapshots, min_size=1, max_size=4, unique_by=lambda worker: worker.worker_id)


def chosen(*workers: WorkerSnapshot) -> str:
    choice = choose_worker(workers, PROMPT_TOKENS, COSTS)
    assert choice is not None
    return choice.worker_id


def modules(
    adapter: ModulePlace = ModulePlace.DEVICE, expert: ModulePlace = ModulePlace.DEVICE, ahead: int = 0
) -> tuple[PlacedModule, PlacedModule]:
    return PlacedModule(adapter, ADAPTER, ahead), PlacedModule(expert, EXPERT)


def ttft_s(worker: WorkerSnapshot) -> float:
    return predict_ttft_s(worker, PROMPT_TOKENS, COSTS)


def test_without_workers_there_is_no_choice() -> None:
    assert choose_worker([], PROMPT_TOKENS, COSTS) is None


def test_an_uncached_prompt_takes_its_prefill() -> None:
    assert ttft_s(IDLE) == pytest.approx(1.0)


def test_held_tokens_cost_nothing() -> None:
    assert ttft_s(replace(IDLE, held_tokens=1000)) == 0
    assert ttft_s(replace(IDLE, held_tokens=750)) == pytest.approx(0.25)


def test_shared_tokens_cost_their_way_from_redis() -> None:
    assert ttft_s(replace(IDLE, shared_tokens=1000)) == pytest.approx(0.01)
    assert ttft_s(replace(IDLE, held_tokens=400, shared_tokens=1000)) == pytest.approx(0.006)


def test_queued_prompts_running_requests_and_missing_modules_each_cost() -> None:
    assert ttft_s(replace(IDLE, pending_prefill_tokens=500)) == pytest.approx(1.5)
    assert ttft_s(replace(IDLE, running=10)) == pytest.approx(1.02)
    assert ttft_s(replace(IDLE, modules=modules(adapter=ModulePlace.DISK))) == pytest.approx(1.05)
    assert ttft_s(replace(IDLE, modules=modules(adapter=ModulePlace.HOST))) == pytest.approx(1.005)
    assert ttft_s(replace(IDLE, modules=modules(ahead=3))) == pytest.approx(1.3)
    assert ttft_s(replace(IDLE, modules=modules(expert=ModulePlace.ABSENT))) == pytest.approx(1.5)
    assert ttft_s(
        replace(IDLE, modules=modules(adapter=ModulePlace.DISK, expert=ModulePlace.DISK))
    ) == pytest.approx(1.55)


def test_a_worker_that_has_not_measured_itself_is_given_an_assumed_speed() -> None:
    assert ttft_s(replace(IDLE, prefill_tokens_per_s=0.0)) == pytest.approx(0.5)


def test_a_cached_prefix_beats_a_shorter_queue() -> None:
    holder = replace(IDLE, worker_id="holder", held_tokens=992, pending_prefill_tokens=500, running=3)
    assert chosen(replace(IDLE, worker_id="idle"), holder) == "holder"


def test_a_long_queue_beats_a_cached_prefix() -> None:
    holder = replace(IDLE, worker_id="holder", held_tokens=992, pending_prefill_tokens=5000)
    assert chosen(replace(IDLE, worker_id="idle"), holder) == "idle"


def test_a_resident_adapter_breaks_the_tie() -> None:
    assert (
        chosen(
            replace(IDLE, worker_id="a", modules=modules(adapter=ModulePlace.ABSENT)),
            replace(IDLE, worker_id="b"),
        )
        == "b"
    )


def test_a_request_waits_for_a_slot_only_when_other_adapters_have_them_all() -> None:
    assert slots_ahead("mine", {"a", "b", "c"}, slots=4) == 0
    assert slots_ahead("mine", {"a", "b", "c", "d"}, slots=4) == 1
    assert slots_ahead("mine", {"a", "b", "c", "d", "e", "f"}, slots=4) == 3
    assert slots_ahead("mine", {"mine", "a", "b", "c", "d", "e"}, slots=4) == 0


def test_a_free_slot_beats_a_shorter_queue() -> None:
    full = replace(IDLE, worker_id="full", modules=modules(ahead=1))
    assert (
        chosen(
            full,
            replace(
                IDLE, worker_id="free", pending_prefill_tokens=50, modules=modules(adapter=ModulePlace.HOST)
            ),
        )
        == "free"
    )


def test_an_expert_that_is_held_beats_an_adapter_that_is_held() -> None:
    with_adapter = replace(IDLE, worker_id="a", modules=modules(expert=ModulePlace.ABSENT))
    assert (
        chosen(with_adapter, replace(IDLE, worker_id="b", modules=modules(adapter=ModulePlace.ABSENT))) == "b"
    )


def test_equal_workers_are_told_apart_by_running_requests_then_by_name() -> None:
    free = RoutingCosts(step_s=0.0)
    busy, idle = replace(IDLE, worker_id="a", running=1), replace(IDLE, worker_id="b")
    choice = choose_worker([busy, idle], PROMPT_TOKENS, free)
    assert choice is not None
    assert choice.worker_id == "b"
    assert chosen(replace(IDLE, worker_id="b"), replace(IDLE, worker_id="a")) == "a"


def test_the_reason_says_where_the_prefix_is() -> None:
    reasons = []
    for worker in (IDLE, replace(IDLE, held_tokens=64), replace(IDLE, shared_tokens=64)):
        choice = choose_worker([worker], PROMPT_TOKENS, COSTS)
        assert choice is not None
        reasons.append(choice.reason)
    assert "Redis" not in reasons[0]
    assert "memory" not in reasons[0]
    assert "64 of 1000 tokens cached in its own memory" in reasons[1]
    assert "64 of 1000 tokens cached in Redis" in reasons[2]


@given(pools)
def test_no_worker_is_predicted_to_be_sooner_than_the_chosen_one(pool: list[WorkerSnapshot]) -> None:
    choice = choose_worker(pool, PROMPT_TOKENS, COSTS)
    assert choice is not None
    assert choice.predicted_ttft_s == min(ttft_s(worker) for worker in pool)
    assert 0 <= choice.expected_cached_tokens <= PROMPT_TOKENS
    assert "\n" not in choice.reason


@given(pools, st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_workers(
    pool: list[WorkerSnapshot], random: object
) -> None:
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose_worker(pool, PROMPT_TOKENS, COSTS) == choose_worker(shuffled, PROMPT_TOKENS, COSTS)


@given(snapshots, st.integers(1, 500))
def test_more_held_tokens_or_less_work_never_makes_a_worker_later(worker: WorkerSnapshot, more: int) -> None:
    adapter, expert = worker.modules
    sooner = [
        replace(worker, held_tokens=min(worker.held_tokens + more, PROMPT_TOKENS)),
        replace(worker, running=max(worker.running - more, 0)),
        replace(worker, pending_prefill_tokens=max(worker.pending_prefill_tokens - more, 0)),
        replace(worker, modules=(replace(adapter, place=ModulePlace.DEVICE), expert)),
        replace(worker, modules=(adapter, replace(expert, place=ModulePlace.DEVICE))),
        replace(worker, modules=(replace(adapter, ahead=max(adapter.ahead - more, 0)), expert)),
    ]
    assert all(0 <= ttft_s(other) <= ttft_s(worker) + 1e-9 for other in sooner)


@given(pools, snapshots)
def test_a_further_worker_changes_the_choice_only_to_itself(
    pool: list[WorkerSnapshot], worker: WorkerSnapshot
) -> None:
    further = replace(worker, worker_id="z")
    before, after = chosen(*pool), chosen(*pool, further)
    assert after in (before, "z")
