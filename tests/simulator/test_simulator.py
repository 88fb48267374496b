"""The simulator that load tests and claims about routing rest on."""

from __future__ import annotations

import ast
import gzip
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loadtests.simulator
from loadtests.simulator.caches import DeviceCache, Holders, LruTier
from loadtests.simulator.fleet import Death, Fleet, Setting
from loadtests.simulator.jobs import Machine
from loadtests.simulator.outcomes import Outcomes, jain
from loadtests.simulator.traces import (
    copies,
    repeated,
    synthetic_trace,
    unshared,
    with_adapters,
    with_tenants,
    write_trace,
)
from memserve.bench.trace import BLOCK_TOKENS, Arrival, read_trace
from memserve.policy.routing.policies import POLICIES

# bench.trace reads a file's format, and decides nothing.
SEEN = ("memserve.policy", "memserve.domain", "memserve.bench.trace")
OURS = Setting(POLICIES["least_harm"], workers=2, rooms=True)
PUSHED = Setting(POLICIES["least_ttft"], workers=2)
TRACE = synthetic_trace(400, seed=3)


def ended(setting: Setting, arrivals: Sequence[Arrival]) -> Outcomes:
    return Fleet(setting).run(arrivals, len(arrivals))


def arrival(at_s: float, blocks: Sequence[int], output: int = 10) -> Arrival:
    return Arrival(at_s, len(blocks) * BLOCK_TOKENS, output, tuple(blocks))


def test_it_sees_the_policies_and_the_domain_and_nothing_else_of_memserve() -> None:
    for path in Path(loadtests.simulator.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                if module.startswith("memserve"):
                    assert module.startswith(SEEN), f"{path}: {module}"


@pytest.mark.parametrize(
    "setting",
    [
        OURS,
        PUSHED,
        replace(PUSHED, margin=1.1),
        replace(OURS, gateways=3, view_age_s=0.1),
        replace(OURS, deaths=(Death(60.0, 0, 20.0),)),
        replace(OURS, machine=Machine(slots=2)),
        replace(OURS, workers=20, scan_all=False, error=0.2, bias=0.9),
    ],
    ids=["ours", "pushed", "plain admission", "gateways", "death", "adapters", "many workers"],
)
def test_every_request_ends_once_and_equal_runs_are_equal(setting: Setting) -> None:
    arrivals = copies(TRACE, 1, 3.0, seed=0)
    if setting.machine.slots:
        arrivals = with_adapters(arrivals, 8, seed=0)
    one, other = (ended(setting, arrivals) for _ in range(2))
    assert sum(tally.offered for tally in one.windows) == len(arrivals)
    assert one.ends.total() == one.requests.offered == len(arrivals) - one.from_number
    assert one == other


def test_a_request_alone_takes_its_forecast() -> None:
    fleet = Fleet(OURS)
    outcomes = fleet.run([arrival(1.0, range(8))], 1)
    costs = OURS.machine.costs
    assert outcomes.ttft_s[0] == pytest.approx(costs.prefill_s(0, 4096) + 2 * costs.step_s, rel=0.02)
    assert outcomes.error < 0.1


def test_a_prompt_that_came_before_is_found_and_a_tenants_copy_is_not() -> None:
    twice = [arrival(1.0, range(8)), arrival(20.0, range(8))]
    first, second = ended(OURS, twice).ttft_s
    assert second < first / 4
    apart = [replace(each, tenant=name) for each, name in zip(twice, "ab", strict=True)]
    first, second = ended(OURS, unshared(apart)).ttft_s
    assert second == pytest.approx(first)


def test_an_overload_is_refused_in_the_rooms_and_late_without_admission() -> None:
    arrivals = copies(TRACE, 2, 40.0, seed=0)
    refusing, late = ended(OURS, arrivals), ended(PUSHED, arrivals)
    assert refusing.ends["refused"] > 0
    assert refusing.ends["ttft"] <= 0.02 * refusing.answers
    assert late.ends["refused"] == 0
    assert late.requests.goodput < refusing.requests.goodput


def test_a_death_loses_no_request_that_had_not_begun() -> None:
    arrivals = copies(TRACE, 2, 10.0, seed=0)
    outcomes = ended(replace(PUSHED, deaths=(Death(15.0, 0, 5.0), Death(30.0, 1, 5.0))), arrivals)
    assert outcomes.ends["lost"] > 0
    assert outcomes.lost_before_a_token == 0


def test_the_others_keep_their_goodput_beside_a_flood() -> None:
    arrivals = copies(synthetic_trace(2000, seed=4), 1, 6.0, seed=0)
    flood = ended(OURS, with_tenants(arrivals, (10.0, 1.0, 1.0, 1.0), seed=0))
    others = [flood.tenants[name] for name in ("t1", "t2", "t3")]
    assert flood.tenants["t0"].goodput < 0.9
    assert sum(each.good for each in others) >= 0.95 * sum(each.offered for each in others) > 100


def test_a_trace_is_read_as_it_was_written_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(TRACE, path)
    assert [each.blocks for each in read_trace(path)] == [each.blocks for each in TRACE]
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_trace(packed) == read_trace(path)
    for wrong in (
        '{"timestamp": 1}',
        "nonsense",
        '{"timestamp": 0, "input_length": 5000, "output_length": 1, "hash_ids": [1]}',
    ):
        path.write_text(path.read_text(encoding="utf-8") + wrong + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match="line 401"):
            read_trace(path)
        write_trace(TRACE, path)


def test_a_long_run_makes_its_arrivals_as_they_are_asked_for() -> None:
    endless = repeated(TRACE, 1 << 40)
    some = list(islice(endless, 1000))
    assert [each.at_s for each in some] == sorted(each.at_s for each in some)
    assert not set(some[0].blocks) & set(some[len(TRACE)].blocks)


def test_jains_index() -> None:
    assert jain([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 3)), max_size=40))
def test_an_engines_memory_holds_no_more_than_it_has(steps: list[tuple[int, int, int]]) -> None:
    """Requests of a few chains come and go. Whatever they do, blocks in use and blocks kept fit."""
    dropped: list[int] = []
    cache = DeviceCache(12, dropped.append)
    under_way: list[tuple[tuple[int, ...], int]] = []
    for chain, length, end in steps:
        blocks = tuple(100 * chain + place for place in range(length))
        hits = next((place for place, block in enumerate(blocks) if block not in cache), length)
        if cache.reserve(blocks[:hits], length + 1):
            cache.publish(blocks[hits:])
            under_way.append((blocks, 1))
        if under_way and end:
            cache.release(*under_way.pop(end % len(under_way)))
        used = len(cache._used) + cache._private
        assert used + len(cache._unused) <= 12
        assert cache.free_blocks == 12 - used >= 0
    for each in under_way:
        cache.release(*each)
    assert cache.free_blocks == 12


def test_holders_and_tiers_forget_what_is_dropped() -> None:
    holders, dropped = Holders(), list[int]()
    tier = LruTier(2, dropped.append)
    tier.put([1, 2])
    tier.put([1, 3])
    assert dropped == [2]
    assert tier.leading([1, 3, 2]) == 2
    for block in (1, 2, 3):
        holders.add(block, 1 << 0)
    holders.add(1, 1 << 5)
    holders.drop(2, 1 << 0)
    assert holders.leading([1, 2, 3]) == {0: 1, 5: 1}
    assert holders.leading([]) == {}
