"""Load tools of other people against `memserve up`, unmodified: do they see what memserve counts?

AIPerf and GuideLLM, each from the package index in an environment of its own (made at the first run), send
streamed chats over the HTTP port to one real worker with 6 layers of the 0.5B shape and the demo model's
tokenizer. Shown are the requests,
the tokens and the mean time to first token of each tool beside those of memserve's own metrics. A TTFT of the
tool's counts its own connection, JSON and event loop too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.outside import installed
from loadtests.harness.random_model import write_model
from loadtests.harness.up import Up
from memserve.demo import MODEL_DIR
from memserve.processes.ports import taken_ports

LAYERS = 6
STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS = 2, 200, 24
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one run, by the tool or by memserve."""

    requests: float
    prompt_tokens: float
    output_tokens: float
    ttft_ms: float
    """Mean."""


@dataclass(frozen=True, slots=True)
class Tool:
    """package: as pip names it, with its version."""

    name: str
    package: str
    command: Callable[[str, Path, Path, int], list[str]]
    """Of the port's URL, the model directory, the folder for results, and the number of requests."""
    read: Callable[[Path], Seen]


def aiperf_command(url: str, model: Path, results: Path, requests: int) -> list[str]:
    return [
        "profile", "--model", model.name, "--url", url, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", str(MODEL_DIR), "--request-count", str(requests), "--concurrency", str(STREAMS),
        "--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--output-tokens-mean", str(OUTPUT_TOKENS),
        "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none",
        "--output-artifact-dir", str(results),
    ]  # fmt: skip


def read_aiperf(results: Path) -> Seen:
    found = json.loads((results / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    return Seen(
        found["request_count"]["avg"],
        found["total_usage_prompt_tokens"]["avg"],
        found["total_usage_completion_tokens"]["avg"],
        found["time_to_first_token"]["avg"],
    )


def guidellm_command(url: str, model: Path, results: Path, requests: int) -> list[str]:
    return [
        "run", "--backend", f"kind=openai_http,target={url},model={model.name}",
        "--profile", f"kind=concurrent,streams={STREAMS}",
        "--constraint", f"kind=max_requests,count={requests}",
        "--tokenizer", f"kind=huggingface_auto,model={MODEL_DIR}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}",
        "--output", f"kind=json,path={results / 'guidellm.json'}", "--disable-progress",
    ]  # fmt: skip


def read_guidellm(results: Path) -> Seen:
    found = json.loads((results / "guidellm.json").read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
    return Seen(
        found["request_totals"]["successful"],
        found["prompt_token_count"]["successful"]["total_sum"],
        found["output_token_count"]["successful"]["total_sum"],
        found["time_to_first_token_ms"]["successful"]["mean"],
    )


TOOLS = (
    Tool("aiperf", "aiperf==0.13.*", aiperf_command, read_aiperf),
    Tool("guidellm", "guidellm==0.8.*", guidellm_command, read_guidellm),
)


def counted(metrics_port: int) -> dict[str, float]:
    """Samples of the gateway's metrics that are summed here, by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("rpc", "Generate") == "Generate":
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def between(before: dict[str, float], after: dict[str, float]) -> Seen:
    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    answers = grown("memserve_ttft_seconds_count")
    return Seen(
        grown("memserve_requests_total"),
        grown("memserve_prompt_tokens_total"),
        grown("memserve_output_tokens_total"),
        1000 * grown("memserve_ttft_seconds_sum") / max(answers, 1.0),
    )


def measure(
    tool: Tool, command: Path, ports: dict[str, int], model: Path, requests: int, outside: dict[str, str]
) -> tuple[Seen, Seen]:
    """What the tool saw, and what memserve counted meanwhile. outside: the tool's environment."""
    url = f"http://127.0.0.1:{ports['http_port']}"
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        results = Path(name)
        before = counted(ports["metrics_port"])
        report(f"{tool.name}: {requests} requests")
        done = subprocess.run(
            [str(command), *tool.command(url, model, results, requests)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=outside,
            encoding="utf-8",
        )
        if done.returncode:
            raise RuntimeError(
                f"{tool.name} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return tool.read(results), between(before, counted(ports["metrics_port"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("outsiders", __doc__).parse_args(arguments)
    outside = dict(os.environ)
    prepare_environment()
    commands = [installed(tool.package, tool.name) for tool in TOOLS]
    seen: dict[str, tuple[Seen, Seen]] = {}
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        model = write_model(Path(name) / "model", LAYERS)
        up = Up(Path(name) / "data", model, 1)
        try:
            up.wait_until_ready()
            ports = taken_ports(up.data, up.process.pid)
            assert ports is not None
            requests = 12 if chosen.quick else 60
            for tool, command in zip(TOOLS, commands, strict=True):
                measure(tool, command, ports, model, 4, outside)  # the first requests of an engine are slow
                seen[tool.name] = measure(tool, command, ports, model, requests, outside)
        finally:
            up.stop()
    fields = Seen.__dataclass_fields__
    print_table(
        ["tool", *(f"{field}, tool / memserve" for field in fields)],
        [
            [name, *(f"{getattr(tool, field):.6g} / {getattr(ours, field):.6g}" for field in fields)]
            for name, (tool, ours) in seen.items()
        ],
    )
    bars = [
        Bar(f"{name}: {field}, difference in %", 100 * abs(_off(tool, ours, field)), at_most=5)
        for name, (tool, ours) in seen.items()
        for field in fields
    ]
    figures: dict[str, Any] = {}
    return finish(bars, figures, chosen.json)


def _off(tool: Seen, ours: Seen, field: str) -> float:
    return float(getattr(tool, field) / max(getattr(ours, field), 1e-9) - 1)


if __name__ == "__main__":
    sys.exit(main())
