"""The table of HTTP statuses, and the names of fields."""

from __future__ import annotations

import pytest

from memserve.api.grpc.errors import STATUS as GRPC_STATUS
from memserve.api.http.errors import STATUS, named


def test_every_fact_that_can_reach_a_caller_has_an_http_status() -> None:
    assert STATUS.keys() == GRPC_STATUS.keys()


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("sampling.max_tokens", "max_tokens"),
        ("messages[0].content", "messages[0].content"),
        ("slo.ttft_ms", "memserve.slo.ttft_ms"),
        ("session", "memserve.session"),
        ("recall.limit", "memserve.recall_limit"),
        ("sampling.json_schema.properties.x", "response_format.properties.x"),
        ("modules", "memserve.modules"),
        ("memserve.modules[0].reference", "memserve.modules[0].reference"),
        ("model", "model"),
    ],
)
def test_fields_have_the_names_of_the_json(field: str, name: str) -> None:
    assert named(field) == name
