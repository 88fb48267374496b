"""Whether two replies say the same. What a clock or a random id decides is left out."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from google.protobuf.json_format import MessageToDict

from loadtests.texts.memory_isolation.worlds import Reply, World

# Times, the routing's forecasts, what the engine's cache holds at the moment, and random tokens.
DROPPED = frozenset(
    {
        "at_s", "created_s", "updated_s", "took_ms", "predicted_ttft_ms", "predicted_within_ms", "candidates",
        "ttft_ms", "tpot_ms", "slo_met", "cached_tokens", "stored_tokens", "expected_cached_tokens",
        "redis_tokens", "held_tokens", "next_page_token", "dry_run_token", "sha256", "request_id",
    }
)  # fmt: skip
HITS = ("results", "passages", "memory_id")
"""Compared first: the rest follows from them."""
PREFIX_SOURCE = "RECALL_SOURCE_PREFIX"
_COUNT = re.compile(r"\d+ found and not used")
CLOSE = 2e-3
"""Relative. Strengths decay between two calls."""
BYTES_MAX = 64
"""And a fiftieth: a time in JSON has more digits or fewer."""


def plain(world: World, reply: Reply) -> Any:
    """A reply as lists and dictionaries that two worlds of a tenant must agree on."""
    read = [MessageToDict(message, preserving_proto_field_name=True) for message in reply.messages]
    return {
        "code": reply.code.name,
        "detail": world.named(reply.detail),
        "messages": [_plain(world, message) for message in read],
    }


def unused(reply: Reply) -> dict[tuple[str, str], tuple[int, str]]:
    """By namespace and id, what was found and not used: its version, and why."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for message in reply.messages:
        for holder in (message, getattr(message, "route", None), getattr(message, "answer", None)):
            skipped = getattr(holder, "skipped", ())
            for each in () if isinstance(skipped, bool) else skipped:
                found[each.namespace, each.memory_id] = each.version, str(each.reason)
    return found


def looked_at(reply: Reply) -> set[tuple[str, str]]:
    """By namespace and id, what a search found, used or not."""
    hits = {(hit.memory.namespace, hit.memory.memory_id) for hit in _hits(reply) if not hit.HasField("via")}
    return hits | unused(reply).keys()


def differing_hits(one: World, reply: Reply, other: World, beside: Reply) -> str:
    """Where what both found differs, in a line, when each search looked at other memories too.

    Which memories a search looks at has a cut. The other hits, and how many there are, decide on the order
    and on what is too like another. The memory itself and its strength are the same.
    """
    first, second = (
        {(hit.memory.namespace, hit.memory.memory_id): _of_hit(world, hit) for hit in _hits(each)}
        for world, each in ((one, reply), (other, beside))
    )
    shared = sorted(first.keys() & second.keys())
    return next((found for key in shared if (found := difference(first[key], second[key], str(key)))), "")


def _hits(reply: Reply) -> list[Any]:
    return [
        hit
        for message in reply.messages
        for name in ("results", "passages")
        for hit in getattr(message, name, ())
    ]


def _of_hit(world: World, hit: Any) -> Any:
    read = MessageToDict(hit, preserving_proto_field_name=True)
    return _plain(world, {name: read[name] for name in ("memory", "strength") if name in read})


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where they differ, in a line; "" where they agree."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys(), key=lambda key: (key not in HITS, key)):
            if key not in one or key not in other:
                return f"{path}.{key}: only in one ({_short(one.get(key, other.get(key)))})"
            if found := difference(one[key], other[key], f"{path}.{key}"):
                return found
        return ""
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"{path}: {len(one)} and {len(other)}: {_short(one)} | {_short(other)}"
        return next(
            (
                found
                for place, (a, b) in enumerate(zip(one, other, strict=True))
                if (found := difference(a, b, f"{path}[{place}]"))
            ),
            "",
        )
    if isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE / 10)
        return "" if same else f"{path}: {one:.6g} and {other:.6g}"
    if path.endswith(".bytes") and abs(int(one) - int(other)) <= BYTES_MAX + int(one) // 50:
        return ""
    return "" if one == other else f"{path}: {_short(one)} and {_short(other)}"


def _plain(world: World, value: Any) -> Any:
    if isinstance(value, str):
        return _COUNT.sub("some found and not used", world.named(value))
    if isinstance(value, list):
        return [_plain(world, each) for each in value if not _is_prefix_part(each)]
    if not isinstance(value, dict):
        return value
    if "line" in value:
        return _line(world, value["line"])
    if "routing" in value or ("route" in value and "outcome" in value):
        # Why a worker was chosen hangs on the clock.
        value = {name: each for name, each in value.items() if name not in ("routing", "route", "usage")}
    if "worker_id" in value:
        value = {name: each for name, each in value.items() if name != "reason"}
    if isinstance(value.get("skipped"), list):
        # `unused` compares them: which memories a search looks at has a cut.
        value = {name: each for name, each in value.items() if name != "skipped"}
    return {world.named(name): _plain(world, each) for name, each in value.items() if name not in DROPPED}


def _line(world: World, line: str) -> Any:
    """Of an export."""
    return _plain(world, json.loads(line))


def _is_prefix_part(value: Any) -> bool:
    return isinstance(value, dict) and value.get("source") == PREFIX_SOURCE


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}…"
