"""How tenants share the engines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.sharing.fairness import engine_share, worker_to_leave


def test_alone_a_tenant_has_nearly_all_places_and_beside_others_half() -> None:
    assert [engine_share(64, tenants) for tenants in (0, 1, 2, 9)] == [56, 56, 32, 32]
    assert engine_share(1, 1) == 1


def test_a_tenant_leaves_the_worker_where_it_has_the_least() -> None:
    assert worker_to_leave({"a": (3, 3), "b": (1, 9)}) == "b"


def test_a_tenant_without_requests_leaves_the_worker_that_others_use() -> None:
    assert worker_to_leave({"a": (0, 0), "b": (0, 7)}) == "b"


@given(st.integers(1, 50), st.integers(2, 5))
def test_two_tenants_end_on_different_workers_and_stay_there(requests: int, workers: int) -> None:
    held = {f"w{number}": {"noisy": 0, "quiet": 0} for number in range(workers)}

    def send(tenant: str) -> str:
        load = {name: (of_worker[tenant], sum(of_worker.values())) for name, of_worker in held.items()}
        left = worker_to_leave(load)
        open_to = [name for name in held if name != left]
        to = min(open_to, key=lambda name: (sum(held[name].values()), name))
        held[to][tenant] += 1
        return to

    for _ in range(requests):
        send("noisy")
    quiet_at = send("quiet")
    assert held[quiet_at]["noisy"] == min(of_worker["noisy"] for of_worker in held.values())
    for _ in range(requests):
        send("noisy")
    if workers == 2:
        assert held[quiet_at]["noisy"] == 0
