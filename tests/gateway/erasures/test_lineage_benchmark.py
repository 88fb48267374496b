"""The parts of `loadtests.lineage`: its facts, and the places that a whole report has."""

from __future__ import annotations

from pathlib import Path

from loadtests.modules.lineage.__main__ import PLACES, Story, lost
from loadtests.modules.lineage.asking import shipped_facts
from memserve.client import AsyncClient
from memserve.domain import Sampling
from memserve.policy.modules.self_study.readings import readings_of
from tests.gateway.erasures.test_erasures import made_of, town
from tests.gateway.running import RunningGateway


def test_each_fact_is_a_statement_with_its_value_and_the_question_does_not_give_it_away() -> None:
    facts = shipped_facts()
    assert len({fact.text for fact in facts}) == len(facts) > 10
    for fact in facts:
        assert [reading.value for reading in readings_of(fact.text)] == [fact.value]
        assert fact.value not in fact.question


def test_what_neighbours_lose_is_not_below_nothing() -> None:
    story = Story(before={"neighbours": {"text": 0.5}}, after={"neighbours": {"text": 1.0}})
    assert lost(story, "text") == 0.0
    story.after["neighbours"]["text"] = 0.25
    assert lost(story, "text") == 0.25


async def test_a_report_names_every_place_that_the_benchmark_asks_for(
    gateway: RunningGateway, client: AsyncClient, tmp_path: Path
) -> None:
    await town(client)
    await made_of(gateway, tmp_path, 1, "m0", "m1")
    await client.modules.promote("handbook", 1)
    await client.generate(
        "Who is the founder of the Velmora Institute?",
        namespaces="town",
        recall_timeout_ms=10_000,
        sampling=Sampling(max_tokens=2),
    )
    erased = await client.lineage.erase("town", "m0")
    assert PLACES - {place.place for place in erased.places} == set()
