"""Dashboards and alerts name metrics that exist, and every alert is tested both ways.

`promtool test rules deploy/prometheus/rules_test.yaml` runs the alerts' tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TESTS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8"))[
    "tests"
]
OF_PROMETHEUS = frozenset({"le"})


def metrics() -> dict[str, set[str]]:
    """Labels by name of every series, from the reference page, which is made from the code."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for name, kind, labels in re.findall(r"^\| `(memserve_\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE):
        names = [name + end for end in ("_bucket", "_sum", "_count")] if kind == "histogram" else [name]
        for each in names:
            found[each] = set(re.findall(r"`(\w+)`", labels)) | OF_PROMETHEUS
    return found


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            yield file.name, panel


EXPRESSIONS = [
    *((f"{file}: {panel['title']}", each["expr"]) for file, panel in panels() for each in panel["targets"]),
    *((rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES),
    *((test["name"], series["series"]) for test in TESTS for series in test["input_series"]),
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_a_query_names_series_and_labels_that_exist(where: str, expression: str) -> None:
    known = metrics()
    names = re.findall(r"\bmemserve_\w+", expression)
    assert names
    assert [name for name in names if name not in known] == []
    labels = set(re.findall(r"(\w+)\s*=~?\s*\"", expression))
    for grouped in re.findall(r"\bby \(([\w, ]+)\)", expression):
        labels |= {label.strip() for label in grouped.split(",")}
    allowed = set().union(*(known[name] for name in names))
    assert labels <= allowed


def test_every_panel_is_drawn_once_with_a_unit() -> None:
    for file in DASHBOARDS:
        board = json.loads(file.read_text(encoding="utf-8"))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(places) == len(set(places)) > 0
        assert len({panel["title"] for panel in board["panels"]}) == len(places)
        assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in board["panels"])
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])


def test_every_alert_says_what_to_read_and_is_tested_firing_and_quiet() -> None:
    alerts = [rule for rule in RULES if "alert" in rule]
    tested = {
        (case["alertname"], bool(case["exp_alerts"])) for test in TESTS for case in test["alert_rule_test"]
    }
    assert tested == {(rule["alert"], fires) for rule in alerts for fires in (True, False)}
    for rule in alerts:
        page, _, section = rule["annotations"]["runbook"].partition("#")
        assert f"## {section.capitalize()}" in (ROOT / page).read_text(encoding="utf-8")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
