"""Plans: equal seeds offer equal requests, all of them ahead; and what a perfect cache would hold of them."""

from __future__ import annotations

from typing import Any

import pytest

from memserve.bench.ceiling import hit_ceiling, word_units
from memserve.bench.scenario import Scenario, scenario_of
from memserve.bench.trace import Arrival
from memserve.bench.workload import Planned, arrival_times, make_plan
from memserve.domain import Message, Role
from memserve.errors import UsageError


def scenario(**tables: Any) -> Scenario:
    return scenario_of(tables, "test")


SHARED = scenario(
    arrivals={"rate_per_s": 20.0, "seconds": 10.0},
    prompt={"shared_texts": 3, "shared_words": 50},
    turns={"count": 3, "pause_s": 2.0},
)


def test_equal_seeds_and_salts_offer_equal_requests() -> None:
    assert make_plan(SHARED, 1, "s") == make_plan(SHARED, 1, "s")
    assert make_plan(SHARED, 1, "s") != make_plan(SHARED, 2, "s")


def test_another_salt_shares_no_first_word_and_keeps_times_and_lengths() -> None:
    """So no cache knows a prompt of another run, and nothing else differs."""
    one, other = make_plan(SHARED, 1, "s"), make_plan(SHARED, 1, "t")
    firsts = [{request.messages[0].content.split()[0] for request in plan.requests} for plan in (one, other)]
    assert firsts == [{"s"}, {"t"}]
    assert [request.due_s for request in one.requests] == [request.due_s for request in other.requests]
    lengths = [[len(word_units(request.messages)) for request in plan.requests] for plan in (one, other)]
    assert lengths[0] == lengths[1]


def test_requests_are_numbered_by_time_within_the_run_and_as_many_as_asked_for() -> None:
    plan = make_plan(SHARED, 1, "s")
    assert [request.number for request in plan.requests] == list(range(len(plan.requests)))
    assert all(0 <= request.due_s < 10 for request in plan.requests)
    times = [request.due_s for request in plan.requests]
    assert times == sorted(times)
    assert 140 <= len(plan.requests) <= 260


def test_turns_of_every_number_come_from_the_start_on_and_carry_their_history() -> None:
    plan = make_plan(SHARED, 1, "s")
    early = {request.turn for request in plan.requests if request.due_s < 3}
    assert early == {0, 1, 2}
    for request in plan.requests:
        roles = [message.role for message in request.messages]
        assert roles == [Role.SYSTEM, Role.USER, *[Role.ASSISTANT, Role.USER] * request.turn]


def test_constant_arrivals_have_equal_distances() -> None:
    assert list(arrival_times("constant", 4.0, 0.0, 1.0, 0)) == [0.0, 0.25, 0.5, 0.75]


def test_a_rate_of_the_sweep_takes_the_place_of_the_scenarios() -> None:
    assert 300 < len(make_plan(SHARED, 1, "s", 40.0).requests) < 520
    with pytest.raises(UsageError, match="at most 200000"):
        make_plan(scenario(arrivals={"seconds": 1000.0}), 1, "s", 9999.0)


def test_popular_modules_come_more_often_and_some_conversations_have_none() -> None:
    tables = scenario(
        arrivals={"rate_per_s": 100.0, "seconds": 10.0},
        adapters={"references": ["a", "b", "c"], "zipf": 1.5, "base_share": 0.3},
    )
    modules = [request.module for request in make_plan(tables, 0, "s").requests]
    assert modules.count("a") > modules.count("b") > modules.count("c") > 0
    assert 0.2 < modules.count("") / len(modules) < 0.4


def test_questions_of_a_recall_quote_memories_of_the_runs_own_namespace() -> None:
    plan = make_plan(scenario(recall={"memories": 5, "words": 6}), 0, "s")
    assert plan.namespace == "bench-s" and len(plan.memories) == 5
    assert all(
        any(text in request.messages[0].content for text in plan.memories) for request in plan.requests
    )


TRACE = [Arrival(0.0, 600, 100, (1, 2)), Arrival(4.0, 1024, 50, (1, 3)), Arrival(9.0, 512, 10, (4,))]


def replay(**rules: Any) -> Scenario:
    return scenario(trace={"path": "x", "words_per_token": 0.5, **rules}, arrivals={"seconds": 60.0})


def test_a_trace_comes_at_its_factor_with_its_lengths_and_its_shared_blocks() -> None:
    requests = make_plan(replay(factor=2.0), 0, "s", trace=TRACE).requests
    assert [request.due_s for request in requests] == [0.0, 2.0, 4.5]
    assert [request.output_tokens for request in requests] == [100, 50, 10]
    texts = [request.messages[0].content.split() for request in requests]
    # The salt, whole blocks of 256 words, and 88 of 512 tokens of the first prompt's last block.
    assert [len(text) for text in texts] == [1 + 256 + 44, 1 + 512, 1 + 256]
    assert texts[0][:257] == texts[1][:257]
    assert texts[0][257:] != texts[1][257 : 257 + 44]
    assert texts[2][1:] != texts[1][1:257]


def test_a_trace_is_brought_to_the_rate_of_a_sweep() -> None:
    requests = make_plan(replay(factor=5.0), 0, "s", 1.0, TRACE).requests
    assert requests[-1].due_s == pytest.approx(3.0)


def test_long_prompts_of_a_trace_are_cut_and_counted() -> None:
    plan = make_plan(replay(max_words=300), 0, "s", trace=TRACE)
    assert plan.cut_prompts == 1
    assert max(len(request.messages[0].content.split()) for request in plan.requests) == 301
    shorter = make_plan(replay(length_factor=0.5), 0, "s", trace=TRACE)
    assert [request.output_tokens for request in shorter.requests] == [50, 25, 5]


def planned(number: int, text: str, module: str = "") -> Planned:
    return Planned(number, float(number), (Message(Role.USER, text),), 1, module=module)


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        # Four words with the role; the last one is always computed.
        (["a b c", "a b c"], 3 / 8),
        (["a b c", "a b d"], 3 / 8),
        (["a b c", "x b c"], 1 / 8),
        (["a b c", "a b", "a b c"], (2 + 3) / 11),
        (["a b c"], 0.0),
    ],
)
def test_the_ceiling_is_the_share_of_known_beginnings(texts: list[str], share: float) -> None:
    requests = [planned(number, text) for number, text in enumerate(texts)]
    ceiling = hit_ceiling(requests, word_units, "words")
    assert (ceiling.share, ceiling.unit) == (pytest.approx(share), "words")


def test_a_prompt_with_another_module_shares_nothing() -> None:
    assert hit_ceiling([planned(0, "a b"), planned(1, "a b", "m")], word_units, "words").share == 0.0
