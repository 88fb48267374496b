"""A worker's process has one engine in its life, a test's has several: vLLM unregisters its own metrics
only.
"""

from __future__ import annotations

from prometheus_client import REGISTRY


def unregister_tier_metrics() -> None:
    for collector in {
        c for name, c in REGISTRY._names_to_collectors.items() if name.startswith("memserve_kv_tier_")
    }:
        REGISTRY.unregister(collector)
