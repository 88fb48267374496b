"""Scenario files: what is bundled works, and a wrong key is refused by its name with the rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from memserve.bench.scenario import bundled, open_scenario
from memserve.bench.trace import Arrival
from memserve.bench.workload import make_plan
from memserve.errors import UsageError

TRACE = [Arrival(float(second), 1000, 40, (1, 2)) for second in range(30)]


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_scenario_has_a_title_and_makes_requests(name: str) -> None:
    file = open_scenario(name)
    assert file.scenario.title
    assert make_plan(file.scenario, 0, "s", trace=TRACE).requests


def test_the_issues_six_scenarios_are_bundled() -> None:
    assert set(bundled()) == {"adapters", "agents", "chat", "mooncake", "recall", "sessions"}


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ("[arrivals]\nrate = 1.0", "arrivals.rate", "did you mean rate_per_s?"),
        ("[arivals]\nseconds = 1.0", "arivals", "did you mean arrivals?"),
        ("[slo]\nzzz = 1.0", "slo.zzz", "there are ttft_ms, tpot_ms, e2e_ms"),
        ("[recall]\nnamespace = 'x'", "recall.namespace", "is no key"),
        ("[arrivals]\nrate_per_s = 0", "arrivals.rate_per_s", "greater than 0"),
        ("[arrivals]\nrate_per_s = nan", "arrivals.rate_per_s", "finite"),
        ("[arrivals]\nrate_per_s = '4'", "arrivals.rate_per_s", "valid number"),
        ("[arrivals]\norder = 'uniform'", "arrivals.order", "'poisson' or 'constant'"),
        ("[arrivals]\nrate_per_s = 9000\nseconds = 80000", "arrivals", "at most 200000 in a run"),
        ("[output]\ntokens = 1.5", "output.tokens", "valid integer"),
        ("[adapters]\nreferences = []", "adapters.references", "at least 1 item"),
        ("[slo]\nrefuse_late = true", "slo.refuse_late", "needs slo.send"),
        ("turns = 3", "turns", "dictionary"),
        ("[turns", "", "is not TOML"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_name_with_the_rule(
    tmp_path: Path, text: str, field: str, rule: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        open_scenario(str(path))
    assert refused.value.field == (f"{path}: {field}" if field else str(path))
    assert rule in refused.value.rule


@pytest.mark.parametrize("name", ["no-such", "no-such.toml"])
def test_a_scenario_that_does_not_exist_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        open_scenario(name)


def test_a_key_of_the_command_line_goes_before_the_files() -> None:
    changes = ["turns.count=7", "slo.ttft_ms=12.5", "adapters.references=['a', 'b']", "model='m'"]
    scenario = open_scenario("chat", changes).scenario
    assert (scenario.turns.count, scenario.slo.ttft_ms, scenario.model) == (7, 12.5, "m")
    assert scenario.adapters is not None and scenario.adapters.references == ["a", "b"]


@pytest.mark.parametrize("change", ["turns.count", "turns.count=", "title.x=1", "turns.count=seven"])
def test_a_key_of_the_command_line_that_is_no_toml_is_refused(change: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        open_scenario("chat", [change])
