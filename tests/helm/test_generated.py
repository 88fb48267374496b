"""What the chart has of other files is theirs: the settings, the rules of Prometheus, the dashboards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from memserve.config import Settings
from tests.helm.charts import CHART, NAMES, ROOT, chart, example_manifests, manifests, named, of_kind
from tests.prometheus_programs import program
from tests.test_deploy import DASHBOARDS, EXPRESSIONS, metrics

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "helm" / "generate.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=False, cwd=ROOT, env=environment
    )


def test_the_generated_files_are_what_they_are_made_of() -> None:
    result = generate(ROOT, "--check")
    assert (result.returncode, result.stderr) == (0, "")


STALE = (
    ("deploy/prometheus/rules.yaml", "MemserveNoWorkers", "MemserveNone", "files/prometheus/rules.yaml"),
    ("deploy/grafana/overview.json", "memserve", "other", "files/grafana/overview.json"),
    ("helm/memserve/values.yaml", "commonLabels", "everyLabels", "values.schema.json"),
)


@pytest.mark.parametrize(("source", "old", "new", "stale"), STALE, ids=[each[0] for each in STALE])
def test_a_change_of_the_source_is_noticed(
    tmp_path: Path, source: str, old: str, new: str, stale: str
) -> None:
    for folder in ("helm", "deploy/prometheus", "deploy/grafana"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "docs").mkdir()
    for file in ("values.py", "layout.py"):
        shutil.copy(ROOT / "docs" / file, tmp_path / "docs")
    changed = tmp_path / source
    changed.write_text(changed.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    result = generate(tmp_path, "--check")
    assert result.returncode == 1
    assert stale in result.stderr
    assert generate(tmp_path).returncode == 0
    fresh = (tmp_path / "helm" / "memserve" / stale).read_text(encoding="utf-8")
    assert new in fresh and old not in fresh


def test_the_schema_has_every_setting_with_its_rule() -> None:
    schema = chart().schema
    assert schema is not None
    settings: dict[str, Any] = schema["$defs"]["settings"]["properties"]
    assert settings.keys() == Settings.model_fields.keys()
    assert settings["max_inflight"]["minimum"] == 1
    assert settings["kv_codec"]["enum"] == ["raw", "lossless", "int8"]
    assert all(rule.get("description") for rule in settings.values())


def test_every_value_is_documented_and_every_documented_value_is_one() -> None:
    page = (ROOT / "docs" / "reference" / "values.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    with helm_python.Chart.load(CHART) as loaded:
        values = loaded.values

    def known(path: str) -> bool:
        place: Any = values
        for name in path.split("."):
            if name not in place:
                return False
            place = place[name]
        return True

    assert len(documented) > 150
    # Helm leaves a key without a value out.
    assert {path for path in documented if not known(path)} <= {"gateway.replicas", "workers.replicas"}
    assert {path.split(".")[0] for path in documented} == values.keys()


# Prometheus and Grafana


def test_the_rules_are_those_of_deploy() -> None:
    [rule] = of_kind(example_manifests("everything"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))


def test_promtool_takes_the_rules_as_they_are_rendered(tmp_path: Path) -> None:
    [rule] = of_kind(example_manifests("everything"), "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    done = subprocess.run(
        [program("promtool"), "check", "rules", "rules.yaml"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_are_those_of_deploy() -> None:
    boards = {
        key.removeprefix("memserve-"): json.loads(text)
        for each in of_kind(example_manifests("everything"), "ConfigMap")
        if each["metadata"]["labels"].get("grafana_dashboard")
        for key, text in each["data"].items()
    }
    assert boards == {file.name: json.loads(file.read_text(encoding="utf-8")) for file in DASHBOARDS}


def test_each_query_and_alert_of_the_chart_finds_its_metric() -> None:
    """`tests/test_deploy.py` holds those of deploy against the metrics; the chart's are among them."""
    known = {expression for _, expression in EXPRESSIONS}
    objects = example_manifests("everything")
    text = json.dumps([*of_kind(objects, "PrometheusRule"), *of_kind(objects, "ConfigMap")])
    expressions = set(re.findall(r'\\?"expr\\?": \\?"((?:[^"\\]|\\\\\\"|\\[^"])*)\\?"', text))
    assert expressions
    [rule] = of_kind(objects, "PrometheusRule")
    asked = {each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]}
    for each in of_kind(objects, "ConfigMap"):
        if each["metadata"]["labels"].get("grafana_dashboard"):
            for board in each["data"].values():
                asked |= {
                    target["expr"] for panel in json.loads(board)["panels"] for target in panel["targets"]
                }
    assert len(asked) > 40
    assert asked <= known


def test_the_workers_scaler_asks_for_metrics_that_there_are() -> None:
    [scaler] = of_kind(example_manifests("everything"), "ScaledObject")
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    names = set(re.findall(r"\bmemserve_\w+", query))
    assert names and names <= metrics().keys()
    assert query.count('pod=~"memserve-gateway-.*"') == 2


@pytest.mark.parametrize("name", NAMES)
def test_monitors_find_the_port_that_they_scrape(name: str) -> None:
    objects = example_manifests(name)
    for monitor in of_kind(objects, "ServiceMonitor"):
        [service] = [
            each
            for each in of_kind(objects, "Service")
            if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        ]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    for monitor in of_kind(objects, "PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert selector["app.kubernetes.io/component"] == "worker"


def test_metrics_over_tls_are_scraped_with_certificates_and_the_key() -> None:
    objects = example_manifests("everything")
    [gateway] = named(objects, "ServiceMonitor", "memserve-gateway")["spec"]["endpoints"]
    [worker] = named(objects, "PodMonitor", "memserve-worker")["spec"]["podMetricsEndpoints"]
    for endpoint in (gateway, worker):
        assert endpoint["scheme"] == "https"
        assert endpoint["authorization"]["credentials"] == {"name": "memserve-metrics", "key": "metrics_key"}
        assert endpoint["tlsConfig"]["keySecret"]["key"] == "tls.key"
    assert worker["tlsConfig"]["serverName"] == "memserve-worker"
    public = named(objects, "Certificate", "memserve-public-tls")["spec"]["dnsNames"]
    assert gateway["tlsConfig"]["serverName"] in public
    plain = manifests({"metrics": {"serviceMonitor": {"enabled": True}}})
    [endpoint] = of_kind(plain, "ServiceMonitor")[0]["spec"]["endpoints"]
    assert "scheme" not in endpoint and "authorization" not in endpoint


def test_certificates_have_the_names_that_the_other_side_checks() -> None:
    objects = example_manifests("everything")
    names = {
        each["spec"]["secretName"]: each["spec"]["dnsNames"]
        for each in of_kind(objects, "Certificate")
        if "dnsNames" in each["spec"]
    }
    assert names["memserve-gateway-internal-tls"] == ["memserve-gateway"]
    assert names["memserve-worker-internal-tls"] == ["memserve-worker"]
    assert "memserve-redis-registry" in names["memserve-redis-internal-tls"]
    assert "memserve-grpc.prod.svc" in names["memserve-public-tls"]
    for kind, release in (("Deployment", "memserve-gateway"), ("StatefulSet", "memserve-worker")):
        volumes = named(objects, kind, release)["spec"]["template"]["spec"]["volumes"]
        secrets = [volume["secret"]["secretName"] for volume in volumes if volume["name"] == "internal-tls"]
        assert secrets == [f"{release}-internal-tls"]
