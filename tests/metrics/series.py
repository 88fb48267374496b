"""Which series a registry has."""

from __future__ import annotations

from prometheus_client import CollectorRegistry


def series(registry: CollectorRegistry) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
