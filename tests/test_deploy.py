"""Dashboards, alerts and their pages name what exists, and promtool shows every alert firing and quiet."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import blocks, text_of
from tests.prometheus_programs import program

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
SECTIONS = ["What a user feels", "How to confirm it", "What to do", "When to escalate"]
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
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE):
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


def test_there_is_a_dashboard_for_everything_that_is_looked_at() -> None:
    assert {file.stem for file in DASHBOARDS} == {"overview", "requests", "kv-cache", "modules", "memories"}
    boards = [json.loads(file.read_text(encoding="utf-8")) for file in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)


def test_every_panel_is_drawn_once_with_a_unit() -> None:
    for file in DASHBOARDS:
        board = json.loads(file.read_text(encoding="utf-8"))
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(places) == len(set(places)) > 0
        assert len({panel["title"] for panel in board["panels"]}) == len(places)
        assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in board["panels"])
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in RULES if "alert" in rule}


def test_every_alert_says_what_to_read_and_is_tested_firing_and_quiet() -> None:
    tested = {
        (case["alertname"], bool(case["exp_alerts"])) for test in TESTS for case in test["alert_rule_test"]
    }
    assert tested == {(alert, fires) for alert in alerts() for fires in (True, False)}
    for alert, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{alert}.md"
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.iterdir()} == alerts().keys()
    operations = text_of(ROOT / "docs" / "operations.md")
    assert all(f"[{alert}](runbooks/{alert}.md)" in operations for alert in alerts())


@pytest.mark.parametrize("alert", alerts())
def test_a_page_says_what_to_do_with_commands_that_exist(alert: str) -> None:
    """`tests/test_docs.py` checks memserve's own commands, and the metrics."""
    text = text_of(RUNBOOKS / f"{alert}.md")
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert all(
        len(part.split("## ")[0].strip()) > 20 for part in re.split(r"^## .+$", text, flags=re.MULTILINE)
    )
    lines = [line for block in blocks(text) if block.language == "sh" for line in block.text.splitlines()]
    assert len(lines) >= 2
    assert {line.split()[0] for line in lines} <= {"memserve", "curl", "tail", "grep", "df", "openssl"}
    looked_at = [name for line in lines for name in re.findall(r"grep \^(\w+)", line)]
    assert [name for name in looked_at if not any(known.startswith(name) for known in metrics())] == []


def test_there_are_recording_rules_for_what_is_asked_most() -> None:
    names = [rule["record"] for rule in RULES if "record" in rule]
    assert len(set(names)) == len(names) >= 8
    assert all(re.fullmatch(r"memserve:\w+:\w+", name) for name in names)


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")]
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments],
        cwd=PROMETHEUS, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_fails_where_an_alert_does_not_do_as_it_should(tmp_path: Path) -> None:
    """That it agrees means something."""
    rules = (PROMETHEUS / "rules.yaml").read_text(encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(
        rules.replace("memserve_ready_workers == 0", "memserve_ready_workers > 9"), encoding="utf-8"
    )
    tests = (PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8")
    (tmp_path / "rules_test.yaml").write_text(tests, encoding="utf-8")
    done = subprocess.run(
        [program("promtool"), "test", "rules", "rules_test.yaml"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "MemserveNoWorkers" in done.stdout + done.stderr
