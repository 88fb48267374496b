"""A real Prometheus scrapes the whole of memserve, with the rules of deploy/prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from memserve.client import Client
from memserve.config import at
from memserve.embedded import Stack
from tests.pages import DOCS, ROOT, text_of
from tests.prometheus_programs import program
from tests.stack.fixtures import WORKERS, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
# The shared memserve has no certificates; `tests/tls` sees these metrics.
WITH_TLS = {"memserve_certificate_expiry_timestamp_seconds", "memserve_certificate_failures_total"}
STARTED_S = 60


def reference() -> set[str]:
    """The names of all metrics, as their samples have them."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", text_of(DOCS / "reference" / "metrics.md"), re.MULTILINE)
    return {name + "_count" if kind == "histogram" else name for name, kind in rows}


@pytest.fixture
def prometheus(stack: Stack, client: Client, tmp_path: Path) -> Iterator[str]:
    """Its address. It scrapes the gateway and every worker each half second."""
    workers = [worker.metrics_address for worker in client.status().workers if worker.ready]
    gateway = at(stack.settings.metrics_host, stack.settings.metrics_port)
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "gateway", "static_configs": [{"targets": [gateway]}]},
            {"job_name": "workers", "static_configs": [{"targets": workers}]},
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [
            program("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}",
        ],
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield address
    finally:
        process.terminate()
        process.wait()
        log.close()


def asked(address: str, path: str, **parameters: str) -> Any:
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return json.loads(answer.read())["data"]


def targets_up(address: str) -> bool:
    try:
        targets = asked(address, "targets")["activeTargets"]
    except OSError:
        return False
    return bool(targets) and all(target["health"] == "up" for target in targets)


def test_prometheus_finds_every_metric_and_computes_every_rule(prometheus: str, client: Client) -> None:
    client.generate("What is the code of Amber Lantern?", max_tokens=4)
    eventually(lambda: targets_up(prometheus), STARTED_S)

    def missing() -> set[str]:
        return reference() - {*asked(prometheus, "label/__name__/values")}

    with contextlib.suppress(AssertionError):
        eventually(lambda: missing() == WITH_TLS, STARTED_S)
    assert missing() == WITH_TLS
    ready = asked(prometheus, "query", query="memserve_ready_workers")["result"]
    assert [float(sample["value"][1]) for sample in ready] == [WORKERS]

    def computed() -> bool:
        rules = [rule for group in asked(prometheus, "rules")["groups"] for rule in group["rules"]]
        assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
        return len(rules) > 0 and all(rule["health"] == "ok" for rule in rules)

    eventually(computed, STARTED_S)
    groups = yaml.safe_load(text_of(RULES))["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    eventually(lambda: recorded <= {*asked(prometheus, "label/__name__/values")}, STARTED_S)
