"""One request as a trace, through every process of a running memserve."""

from __future__ import annotations

import json
import secrets
import uuid

import httpx
import pytest

from memserve.client import Client
from memserve.embedded import Stack
from memserve.gateway.live import STEPS
from tests.stack.fixtures import eventually
from tests.stack.otlp import OtlpReceiver, Received

pytestmark = pytest.mark.stack
NUMBERED = [f"{number} {name}" for number, name in enumerate(STEPS, start=1)]
PHASES = ["worker queue", "worker prefill", "worker decode"]


def traced(stack: Stack, traces: OtlpReceiver, *, tokens: int, **memserve: object) -> tuple[str, Received]:
    """The id of a chat's trace, which the caller began, and its tree."""
    address = f"http://127.0.0.1:{stack.settings.http_port}"
    model = httpx.get(f"{address}/v1/models", timeout=60).json()["data"][0]["id"]
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    # New text each time, of more tokens than a chunk has, so that Redis is asked for it.
    words = " ".join(uuid.uuid4().hex for _ in range(4))
    body = {
        "messages": [{"role": "user", "content": f"Where does the ferry leave? {words}"}],
        "model": model,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "memserve": memserve,
    }
    response = httpx.post(
        f"{address}/v1/chat/completions",
        json=body,
        headers={"traceparent": f"00-{trace_id}-{parent_id}-01"},
        timeout=60,
    )
    assert response.status_code == 200, response.text

    def is_whole() -> bool:
        tree = traces.tree(trace_id)
        names = {span.name for span in tree.walk()} if tree else set()
        return names.issuperset([*NUMBERED, *PHASES])

    eventually(is_whole, timeout_s=15)
    tree = traces.tree(trace_id)
    assert tree is not None
    assert tree.parent_id == parent_id
    return response.json()["memserve"]["request_id"], tree


def test_a_trace_has_every_step_and_phase_and_explains_the_time(
    stack: Stack, client: Client, traces: OtlpReceiver
) -> None:
    namespace = f"traces-{uuid.uuid4().hex[:8]}"
    client.remember(namespace, "The ferry leaves from pier 4.")
    _, tree = traced(stack, traces, tokens=256, namespaces=[namespace])
    print("\n".join(tree.lines()))
    by_name = {span.name: span for span in tree.walk()}
    assert [span.name for span in tree.below] == NUMBERED
    assert all(tree.began_ns <= span.began_ns <= span.ended_ns <= tree.ended_ns for span in tree.below)
    seconds = sum(by_name[name].seconds for name in [*NUMBERED[:6], *PHASES])
    assert 0.95 * tree.seconds <= seconds <= 1.02 * tree.seconds
    # What asks a store is below the step that asks it.
    assert "search memories" in {span.name for span in by_name["3 recall"].walk()}
    assert [span.name for span in by_name["5 look-up"].below] == ["EXISTS redis"]
    assert [span.name for span in by_name["7 worker"].below] == PHASES
    assert {span.service for span in tree.walk()} == {"memserve-gateway", "memserve-worker"}


def test_a_trace_says_what_the_receipt_says(stack: Stack, client: Client, traces: OtlpReceiver) -> None:
    request_id, tree = traced(stack, traces, tokens=8)
    assert tree.name.startswith("chat ")
    assert tree.attributes["gen_ai.response.id"] == request_id
    assert tree.attributes["gen_ai.usage.output_tokens"] == 8
    assert tree.attributes["gen_ai.operation.name"] == "chat"
    assert tree.attributes["memserve.worker_id"].startswith("w-")


def test_logs_are_json_objects_when_the_setting_says_so(stack: Stack, client: Client) -> None:
    lines = (stack.settings.data / "logs" / "gateway.log").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert entries
    assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
