"""A refusal says the rule that was broken: what is at a bound is taken, what is beyond is refused with the
bound in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from memserve.api import rules
from memserve.api.grpc.convert import inference as convert
from memserve.api.grpc.convert import modules as convert_modules
from memserve.api.grpc.convert.paging import page_size
from memserve.errors import InvalidField
from memserve.memory.modules import memory as parametric
from memserve.pb.v1 import inference_pb2, module_pb2
from memserve.policy.modules.references import LIVE, check_alias_name, parse_reference
from memserve.policy.modules.traffic import check_targets

MESSAGE = inference_pb2.Message(role=inference_pb2.ROLE_USER, content="hello")
INT32, INT64 = 2**31 - 1, 2**63 - 1


def generate(**fields: Any) -> Callable[[], object]:
    return lambda: convert.generation_request(
        inference_pb2.GenerateRequest(**{"messages": [MESSAGE], **fields})
    )


def sampled(**fields: Any) -> Callable[[], object]:
    return generate(sampling=inference_pb2.Sampling(**fields))


def composed(**fields: Any) -> Callable[[], object]:
    parents = [module_pb2.ComposeParent(reference="a@1"), module_pb2.ComposeParent(reference="b@1")]
    request = {"name": "both", "method": module_pb2.COMPOSE_METHOD_TIES, "parents": parents, **fields}
    return lambda: convert_modules.composition(module_pb2.ComposeModuleRequest(**request))


def published(**fields: Any) -> Callable[[], object]:
    files = [module_pb2.UploadFile(file_name="adapter_config.json")]
    return lambda: convert_modules.publication(
        module_pb2.PublishModuleHeader(
            **{"name": "tone", "kind": module_pb2.MODULE_KIND_LORA, "files": files, **fields}
        )
    )


def expert(**fields: Any) -> Callable[[], object]:
    return generate(experts=[inference_pb2.Expert(**{"reference": "e", **fields})])


# What is at a bound.
TAKEN = {
    "max_tokens": [sampled(max_tokens=0), sampled(max_tokens=1), sampled(max_tokens=rules.MAX_TOKENS_MAX)],
    "min_tokens": [
        sampled(min_tokens=5),
        sampled(min_tokens=5, max_tokens=5),
        sampled(min_tokens=rules.MAX_TOKENS_MAX, max_tokens=rules.MAX_TOKENS_MAX),
    ],
    "temperature": [sampled(temperature=0), sampled(temperature=2)],
    "top_p": [sampled(top_p=0), sampled(top_p=1e-9), sampled(top_p=1)],
    "seed": [sampled(seed=0), sampled(seed=INT64)],
    "stop": [sampled(stop=["x" * 64] * 8)],
    "messages": [generate(messages=[MESSAGE] * 1000)],
    "session": [generate(session="x" * 256)],
    "recall": [
        generate(
            recall=inference_pb2.Recall(namespaces=[f"n{i}" for i in range(16)], limit=64, timeout_ms=60_000)
        )
    ],
    "slo": [generate(slo=inference_pb2.Slo(ttft_ms=3_600_000, tpot_ms=1e-3))],
    "expert": [expert(alpha=-10), expert(alpha=0), expert(alpha=10)],
    "compose": [
        composed(rank=1024, density=1, seed=2**53, notes="x" * 16384),
        composed(parents=[module_pb2.ComposeParent(reference="a@1", weight=100)] * 8),
    ],
    "publish": [published(sources=["x" * 1024] * 64, recipe="x" * 16384, notes="x" * 16384)],
    "page_size": [lambda: page_size(0), lambda: page_size(1000)],
    "reason": [lambda: convert_modules.reason("x" * convert_modules.REASON_MAX_BYTES)],
    "reference": [lambda: parse_reference("f", "x" * 64), lambda: parse_reference("f", "a@999999999")],
    "alias": [lambda: check_alias_name("f", LIVE)],
}
# What is beyond: the field, and what its rule says.
REFUSED: list[tuple[Callable[[], object], str, str]] = [
    (sampled(max_tokens=-1), "sampling.max_tokens", "from 1 to 1048576"),
    (sampled(max_tokens=INT32), "sampling.max_tokens", "from 1 to 1048576"),
    (sampled(min_tokens=-1), "sampling.min_tokens", "from 1 to 1048576"),
    (sampled(min_tokens=INT32), "sampling.min_tokens", "from 1 to 1048576"),
    (sampled(min_tokens=6, max_tokens=5), "sampling.min_tokens", "6 is over max_tokens, which is 5"),
    (sampled(temperature=2.01), "sampling.temperature", "to 2"),
    (sampled(temperature=math.nan), "sampling.temperature", "to 2"),
    (sampled(top_p=1.01), "sampling.top_p", "at most 1"),
    (sampled(seed=-1), "sampling.seed", "from 0 to 2^63 - 1"),
    (sampled(stop=["x"] * 9), "sampling.stop", "at most 8"),
    (sampled(stop=["x" * 65]), "sampling.stop", "64 bytes"),
    (sampled(stop=[""]), "sampling.stop", "of 1 to"),
    (generate(messages=[MESSAGE] * 1001), "messages", "at most 1000"),
    (generate(session="x" * 257), "session", "at most 256 bytes"),
    (generate(worker_id="x" * 65), "worker_id", "at most 64"),
    (
        generate(recall=inference_pb2.Recall(namespaces=[f"n{i}" for i in range(17)])),
        "recall.namespaces",
        "at most 16",
    ),
    (generate(recall=inference_pb2.Recall(limit=65)), "recall.limit", "from 1 to 64"),
    (generate(recall=inference_pb2.Recall(timeout_ms=60_001)), "recall.timeout_ms", "from 1 to 60000"),
    (generate(slo=inference_pb2.Slo(ttft_ms=3_600_001)), "slo.ttft_ms", "at most 3600000 ms"),
    (generate(slo=inference_pb2.Slo(tpot_ms=-1)), "slo.tpot_ms", "above 0"),
    (expert(alpha=10.1), "experts[0].alpha", "from -10 to 10"),
    (generate(experts=[inference_pb2.Expert(reference="e")] * 2), "experts", "at most one"),
    (composed(rank=1025), "rank", "from 1 to 1024"),
    (composed(density=1.01), "density", "at most 1"),
    (composed(density=math.nan), "density", "at most 1"),
    (composed(seed=2**53 + 1), "seed", f"to {2**53}"),
    (composed(notes="x" * 16385), "notes", "at most 16384 bytes"),
    (composed(parents=[module_pb2.ComposeParent(reference="a@1")] * 9), "parents", "from 2 to 8"),
    (
        composed(parents=[module_pb2.ComposeParent(reference="a@1", weight=101)] * 2),
        "parents[0].weight",
        "to 100",
    ),
    (published(notes="x" * 16385), "header.notes", "at most 16384 bytes"),
    (published(recipe="x" * 16385), "header.recipe", "at most 16384 bytes"),
    (published(sources=["x"] * 65), "header.sources", "at most 64"),
    (published(sources=["x" * 1025]), "header.sources", "1024 bytes"),
    (lambda: page_size(1001), "page_size", "from 1 to 1000"),
    (lambda: page_size(-1), "page_size", "from 1 to 1000"),
    (
        lambda: convert_modules.reason("x" * (convert_modules.REASON_MAX_BYTES + 1)),
        "reason",
        str(convert_modules.REASON_MAX_BYTES),
    ),
    (lambda: parametric.check_text("notes", "é" * 8193), "notes", "at most 16384 bytes"),
    (lambda: parse_reference("f", "-x"), "f", "start with a letter or a digit"),
    (lambda: parse_reference("f", "x" * 65), "f", "1-64"),
    (lambda: parse_reference("f", "a@1234567890"), "f", "from 1 to 999999999"),
    (lambda: parse_reference("f", "a@0"), "f", "from 1 to 999999999"),
    (lambda: check_alias_name("f", "1a"), "f", "starting with a letter"),
    (lambda: check_targets("targets", []), "targets", "from 1 to 8"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_at_a_bound_is_taken(name: str) -> None:
    for build in TAKEN[name]:
        build()


@pytest.mark.parametrize(
    ("build", "field", "rule"), REFUSED, ids=[f"{field}: {rule}" for _, field, rule in REFUSED]
)
def test_what_is_beyond_is_refused_with_the_rule_that_it_breaks(
    build: Callable[[], object], field: str, rule: str
) -> None:
    with pytest.raises(InvalidField) as refusal:
        build()
    assert refusal.value.field == field
    assert rule in refusal.value.rule
