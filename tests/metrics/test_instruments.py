"""The instruments have their series from the start, and the names of the conventions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from memserve.domain import CachedTokens, FinishReason, Usage
from memserve.metrics.instruments import CHAT, COMPLETION, GATEWAY_LOOPS, GatewayMetrics
from tests.metrics.series import series

USAGE = Usage(10, 3, CachedTokens(), 120.0, 30.0, True, FinishReason.STOP)


def test_an_answer_is_observed_once_under_the_names_of_the_conventions() -> None:
    metrics = GatewayMetrics("tiny")
    before = series(metrics.registry)
    metrics.answered(CHAT, USAGE, 0.2)
    assert series(metrics.registry) == before, "the first answer makes no series, which `rate` would not see"
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "memserve",
        "gen_ai_request_model": "tiny",
    }

    def value(name: str, **more: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels | more)

    assert value("gen_ai_server_time_to_first_token_seconds_sum") == pytest.approx(0.12)
    assert value("gen_ai_server_time_to_first_token_seconds_bucket", le="0.1") == 0
    assert value("gen_ai_server_time_to_first_token_seconds_bucket", le="0.25") == 1
    assert value("gen_ai_server_time_per_output_token_seconds_bucket", le="0.05") == 1
    assert value("gen_ai_server_request_duration_seconds_bucket", le="0.32", error_type="") == 1
    assert value("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 10
    assert value("gen_ai_client_token_usage_bucket", gen_ai_token_type="output", le="4.0") == 1
    assert value("gen_ai_client_token_usage_count", gen_ai_token_type="output") == 1


def test_a_request_without_an_answer_has_its_reason() -> None:
    metrics = GatewayMetrics("tiny")
    metrics.not_answered(COMPLETION, ValueError("of the caller's"), 0.1)
    metrics.not_answered(COMPLETION, GeneratorExit(), 0.1)
    kinds = {
        dict(labels)["error_type"]
        for name, labels in series(metrics.registry)
        if name == "gen_ai_server_request_duration_seconds_count"
    }
    assert kinds == {"", "ValueError", "cancelled"}


def test_every_loop_of_the_code_is_counted_from_the_start() -> None:
    found, listed = set(), {*GATEWAY_LOOPS}
    for folder in ("api", "gateway", "worker"):
        for file in (Path(__file__).parents[2] / "memserve" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "repeat":
                    found.add(ast.literal_eval(node.args[0]))
                # The worker's own list: an import would take vLLM's ten seconds.
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LOOPS":
                    listed |= {*ast.literal_eval(node.value)}
    assert found == listed
