"""The Redis tier's Prometheus instruments, in the form that vLLM registers and fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)

from memserve.kv.ledger.records import Admission, Removal
from memserve.kv.outcomes import StoreStats
from memserve.kv.values.envelope import Refusal
from memserve.policy.kv.loading import Decision

PREFIX = "memserve_kv_tier_"
COUNTERS = {
    "hits": "Chunks loaded from Redis and verified.",
    "misses": "Chunks that were to be loaded and were not: gone, refused, or not answered.",
    "stored": "Chunks stored in Redis.",
    "already_present": "Chunks that were to be stored and were there already.",
    "store_failures": "Chunks that were to be stored and were not.",
    "stores_dropped": "Chunks that were not stored because too many waited for it already.",
    "unanswered": "Calls that Redis failed, refused, or did not answer in time.",
    "skipped": "Calls not made because the circuit was open.",
    "circuit_opened": "Times that a server was given up for a while.",
    "read_bytes": "Bytes of KV loaded from Redis, as they are stored there.",
    "written_bytes": "Bytes of KV stored in Redis, as they are stored there.",
    "read_seconds": "Time spent loading, summed over threads.",
    "write_seconds": "Time spent storing, summed over threads.",
}
LABELLED = {
    "refused": (
        "reason",
        "Values found in Redis that did not verify, and were deleted: truncated_header, not_a_value, "
        "unknown_version, unknown_codec, other_codec, other_namespace, other_key, wrong_length, "
        "bad_checksum, undecodable.",
    ),
    "not_admitted": (
        "reason",
        "Chunks that the ledger would not have: no_room, not_yet (a first use), busy (another stores it).",
    ),
    "removed": (
        "reason",
        "Chunks that this worker removed: tenant_quota, cache_quota, expired, abandoned, again, "
        "refused, vanished.",
    ),
    "loop_failures": (
        "loop",
        "Steps of background threads that failed and are taken again: kv_upkeep, kv_topology.",
    ),
    "load_decisions": ("decision", "Prefixes found in Redis: load, shortened, recompute, probe, unmeasured."),
}
"""Counters by one label: its name, and what is counted."""
GAUGES = {
    "circuit_state": "0: Redis answers. 1: one call is out to see whether it does again. 2: it does not, "
    "and is not asked.",
    "cache_bytes": "Bytes that the ledger counts in Redis, of all tenants, when this worker last asked.",
    "cache_quota_bytes": "The quota of all tenants together. 0: none.",
}


LABEL_VALUES: dict[str, tuple[str, ...]] = {
    "refused": tuple(reason.value for reason in Refusal),
    "not_admitted": tuple({*Admission} - {Admission.STORE, Admission.PRESENT}),
    "removed": tuple(Removal),
    "loop_failures": ("kv_upkeep", "kv_topology"),
    "load_decisions": tuple(Decision),
}
"""Of LABELLED."""


def metric_definitions() -> dict[str, OffloadingMetricMetadata]:
    """By full name, without the `_total` that prometheus_client adds to counters."""
    return {
        **{PREFIX + name: OffloadingCounterMetadata(documentation=text) for name, text in COUNTERS.items()},
        **{
            PREFIX + name: OffloadingCounterMetadata(documentation=text, labelnames=(label,))
            for name, (label, text) in LABELLED.items()
        },
        **{PREFIX + name: OffloadingGaugeMetadata(documentation=text) for name, text in GAUGES.items()},
    }


def begin(stats: OffloadingConnectorStats) -> None:
    """Have every counter from the start: one that begins with its first event hides that event from `rate`
    and `increase`."""
    for name in COUNTERS:
        stats.increase_counter(PREFIX + name, 0)
    for name, values in LABEL_VALUES.items():
        for value in values:
            stats.increase_counter(PREFIX + name, 0, (str(value),))


def tier_stats(
    taken: StoreStats, decisions: Mapping[Decision, int], dropped_chunks: int
) -> OffloadingConnectorStats:
    """The growth of the counters. The tier adds the gauges."""
    stats = OffloadingConnectorStats()
    for name in COUNTERS:
        # Fields of `StoreStats` end in the short form of a unit, metrics in the long form.
        field = name.replace("_seconds", "_s")
        growth = dropped_chunks if name == "stores_dropped" else getattr(taken, field)
        if growth:
            stats.increase_counter(PREFIX + name, growth)
    labelled: dict[str, Mapping[Any, int]] = {
        "refused": taken.refused,
        "not_admitted": taken.not_admitted,
        "removed": taken.removed,
        "loop_failures": taken.loop_failures,
        "load_decisions": decisions,
    }
    for name, counts in labelled.items():
        for label, count in counts.items():
            stats.increase_counter(PREFIX + name, count, (getattr(label, "value", label),))
    return stats
