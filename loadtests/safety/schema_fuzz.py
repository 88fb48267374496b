"""Schemathesis against the OpenAPI document that a running `memserve up` serves: is there a request that
breaks the HTTP port?

Schemathesis comes from the package index, in an environment of its own (made at the first run), unmodified.
It makes requests from `/openapi.json`, right ones and wrong ones, for as many minutes as it is given, and
looks at every answer: no status of 500 and more that is not in the document, statuses, headers, types and
bodies as the document has them, wrong requests refused. One thing is changed in the document before it reads
it: the name of a model is one of those that are served, or nearly all requests would end at that. Afterwards
memserve's own counters say how many requests it answered, and that it counted no 500; and the worker answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.outside import installed
from loadtests.harness.up import Up
from memserve.client import Client
from memserve.demo import MODEL_DIR
from memserve.processes.ports import taken_ports

MINUTES, QUICK_MINUTES = 10.0, 0.5
SEED = 1
REQUEST_TIMEOUT_S = 60
# A request that says no number of tokens gets so many.
OUTPUT_TOKENS = 16
# What a wrong answer is. That right requests are taken is not asked: a body of the right shape may break a
# rule that JSON Schema cannot say, such as that the last message is the user's.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
MODELLED = ("ChatBody", "CompletionBody", "EmbeddingBody")


# Nobody can answer now, or not within the time that the request gave.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What schemathesis reports."""

    cases: int
    failures: dict[str, int]
    """How many requests, by what was wrong with the answer."""
    output: str
    """As it was printed, with a command line for each failure."""

    @property
    def server_errors(self) -> int:
        return sum(count for title, count in self.failures.items() if "Server error" in title)


def ask(url: str) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        return json.loads(answer.read())


def with_models(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The document, with the names of served models as the only ones. The last one embeds."""
    for body in MODELLED:
        chosen = names[-1:] if body == "EmbeddingBody" else names[:-1]
        document["components"]["schemas"][body]["properties"]["model"] = {"enum": [*chosen]}
    return document


def fuzz(command: Path, url: str, minutes: float, folder: Path) -> Found:
    """Raises RuntimeError when schemathesis did not run."""
    names = [model["id"] for model in ask(f"{url}/v1/models")["data"]]
    document = folder / "openapi.json"
    document.write_text(json.dumps(with_models(ask(f"{url}/openapi.json"), names)), encoding="utf-8")
    config, result = folder / "schemathesis.toml", folder / "report.json"
    config.write_text(CONFIG, encoding="utf-8")
    arguments = [
        "--config-file", str(config), "run", str(document), "--url", url,
        "--max-time", str(round(minutes * 60)), "--seed", str(SEED),
        "--checks", ",".join(CHECKS), "--workers", "2", "--request-timeout", str(REQUEST_TIMEOUT_S),
        "--suppress-health-check", "all", "--continue-on-failure", "--no-color",
        "--generation-database", "none", "--report-json-path", str(result), "--warnings", "off",
    ]  # fmt: skip
    done = subprocess.run(
        [str(command), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        cwd=folder,
        timeout=minutes * 60 + 600,
    )
    if not result.exists():
        raise RuntimeError(
            f"schemathesis ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return found_in(json.loads(result.read_text(encoding="utf-8")), done.stdout)


def found_in(said: dict[str, Any], output: str) -> Found:
    """said: schemathesis' report."""
    failures: Counter[str] = Counter()
    for failure in (*said["failures"], *said["errors"]):
        failures[f"{failure['title']}: {', '.join(failure['operations'])}"] += failure["count"]
    return Found(said["test_cases"]["generated"], dict(failures), output)


def answered(metrics_port: int) -> Counter[str]:
    """Calls by their end, as memserve counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    ends: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("memserve_requests_total{"):
            code = line.partition('code="')[2].partition('"')[0]
            ends[code] += int(float(line.rpartition(" ")[2]))
    return ends


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("schema_fuzz", __doc__)
    options.add_argument("--minutes", type=float, default=MINUTES, help="how long to look for such a request")
    chosen = options.parse_args(arguments)
    minutes = QUICK_MINUTES if chosen.quick else chosen.minutes
    command = installed("schemathesis==4.*", "st")
    os.environ["MEMSERVE_DEFAULT_MAX_TOKENS"] = str(OUTPUT_TOKENS)
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        folder = Path(name)
        (folder / "model").symlink_to(MODEL_DIR)
        up = Up(folder / "data", folder / "model", 1)
        try:
            up.wait_until_ready()
            ports = taken_ports(up.data, up.process.pid)
            assert ports is not None
            report(f"schemathesis looks for {minutes:g} minutes")
            found = fuzz(command, f"http://127.0.0.1:{ports['http_port']}", minutes, folder)
            ends = answered(ports["metrics_port"])
            with Client(up.address, timeout_s=60) as client:
                alive = bool(client.generate("Hello.", max_tokens=2).text)
        finally:
            up.stop()
    if found.failures:
        report(found.output)
    print_table(["how it ended", "requests"], sorted(ends.items()))
    print_table(["what was wrong", "requests"], sorted(found.failures.items()) or [("nothing", 0)])
    bars = [
        Bar("answers of 500 and more that schemathesis saw", found.server_errors, at_most=0),
        Bar("all failures that schemathesis saw", sum(found.failures.values()), at_most=0),
        Bar("answers of 500 that memserve counted", ends["HTTP_500"], at_most=0),
        Bar("requests a minute", found.cases / minutes, at_least=100),
        Bar("requests answered with 200", ends["HTTP_200"], at_least=10),
        Bar("the worker answers afterwards", alive, at_least=1),
    ]
    figures: dict[str, object] = {"minutes": minutes, "cases": found.cases, "failures": found.failures}
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
